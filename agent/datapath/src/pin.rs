//! Which pinned maps may be used again, and what happens to the others.
//!
//! Decides once per [`crate::Datapath::open`], before anything is loaded. A pin that does not fit is renamed, never
//! removed: programs that still run keep their map, and a person can still look at it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use quilla_abi::config::Config;
use quilla_abi::map as name;
use quilla_abi::version::SCHEMA;

use crate::error::{DatapathError, Result};
use crate::map::{ArrayTable, PINNED};
use crate::sys::{self, MapInfo};

/// What must agree for a map to be used by another object. The kernel and aya accept anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

impl From<MapInfo> for Shape {
    fn from(info: MapInfo) -> Self {
        let MapInfo { kind, key_size, value_size, max_entries, flags, .. } = info;
        Self { kind, key_size, value_size, max_entries, flags }
    }
}

/// What became of the pins that an earlier agent left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Maps that are used again, with their content.
    pub recovered: Vec<&'static str>,
    /// Maps that were moved aside (`NAME-replaced`) and made anew, empty.
    pub replaced: Vec<&'static str>,
}

/// A flow remembers epochs, and names backends, nodes and endpoints by number. Without the map that gave one of those
/// its meaning it would be believed wrongly.
const FLOWS: [&str; 2] = [name::FLOWS_V4, name::FLOWS_V6];
const MEANING_OF_FLOWS: [&str; 6] =
    [name::EPOCHS, name::BACKENDS_V4, name::BACKENDS_V6, name::NODES, name::ENDPOINTS_V4, name::ENDPOINTS_V6];

enum Found {
    Nothing,
    Fitting(OwnedFd),
    Unfit,
}

/// Looks at every pin in `directory` and moves aside those that the object with `shapes` must not use.
pub(crate) fn sort(directory: &Path, shapes: &BTreeMap<String, Shape>) -> Result<Opened> {
    let mut found = BTreeMap::new();
    for &map in PINNED {
        let shape =
            shapes.get(map).ok_or_else(|| DatapathError::Missing { kind: "map", name: map.to_owned() })?;
        found.insert(map, look(&directory.join(map), shape)?);
    }
    let fits = |map: &str| matches!(found.get(map), Some(Found::Fitting(_)));
    let same_schema = same_schema(found.get(name::CONFIG))?;
    let flows_have_meaning = MEANING_OF_FLOWS.into_iter().all(fits);
    for (map, state) in &mut found {
        let usable = same_schema && (flows_have_meaning || !FLOWS.contains(map));
        if !usable && matches!(state, Found::Fitting(_)) {
            *state = Found::Unfit;
        }
    }
    let mut opened = Opened::default();
    for (map, state) in found {
        match state {
            Found::Nothing => {}
            Found::Fitting(_) => opened.recovered.push(map),
            Found::Unfit => {
                move_aside(&directory.join(map))?;
                tracing::warn!(map, "pinned map does not fit this version, moved aside");
                opened.replaced.push(map);
            }
        }
    }
    Ok(opened)
}

fn look(path: &Path, shape: &Shape) -> Result<Found> {
    let fd = match sys::get(path) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => return Err(DatapathError::kernel("open pin", path.to_string_lossy(), source)),
    };
    // Of a pinned program or link the sizes make no sense as a map's, so that it does not fit either.
    let info: MapInfo = sys::info(fd.as_fd())
        .map_err(|source| DatapathError::kernel("inspect pin", path.to_string_lossy(), source))?;
    Ok(if Shape::from(info) == *shape { Found::Fitting(fd) } else { Found::Unfit })
}

/// Whether the row of `config` says the schema of this build. A row nobody has written yet (0) stands for maps that
/// were made a moment before an agent died.
fn same_schema(config: Option<&Found>) -> Result<bool> {
    let Some(Found::Fitting(fd)) = config else {
        return Ok(false);
    };
    let fd = fd.try_clone().map_err(|source| DatapathError::kernel("duplicate map", name::CONFIG, source))?;
    let row = ArrayTable::<Config>::new(name::CONFIG, fd)?.get(0)?.unwrap_or_default();
    Ok(row.schema == SCHEMA || row.schema == 0)
}

/// One that was moved aside before goes.
fn move_aside(path: &Path) -> Result<()> {
    fs::rename(path, aside(path))
        .map_err(|source| DatapathError::kernel("move aside", path.to_string_lossy(), source))
}

/// Undoes [`sort`] after a failed load: an agent that is rolled back finds the maps its programs still use.
pub(crate) fn put_back(directory: &Path, opened: &Opened) {
    for map in &opened.replaced {
        let pin = directory.join(map);
        // The loader may have got as far as pinning a new map there; renaming takes its place.
        if let Err(error) = fs::rename(aside(&pin), &pin) {
            tracing::error!(map, %error, "cannot put a pinned map back");
        }
    }
}

/// Lets go of the maps that were moved aside.
pub(crate) fn forget_replaced(directory: &Path) -> Result<()> {
    for map in PINNED {
        let aside = aside(&directory.join(map));
        match fs::remove_file(&aside) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(DatapathError::kernel("remove pin", aside.to_string_lossy(), source));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A BPF file system allows no dots.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-replaced");
    name.into()
}
