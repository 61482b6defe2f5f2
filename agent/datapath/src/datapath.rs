//! The loaded data path: opened once by the agent, or by a test, and kept while it attaches programs and writes rows.
//!
//! Dropping a [`Datapath`] changes nothing in the kernel: maps and links are pinned, and the next one finds them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Mutex;

use aya::Ebpf;
use quilla_abi::version::SCHEMA;

use crate::bpffs::{self, Layout};
use crate::error::{DatapathError, Result};
use crate::kernel::{self, Release};
use crate::link::Mechanism;
use crate::map::Maps;
use crate::object::Object;
use crate::pin::{self, Opened};
use crate::program::{self, Constants};
use crate::sys;

/// How to open the data path.
#[derive(Clone, Debug)]
pub struct Options {
    /// A mounted BPF file system; everything is pinned under `quilla/` in it.
    pub bpffs: PathBuf,
    /// Entries of each flow table. Changing it replaces the tables.
    pub flow_capacity: u32,
    /// Let the programs say their verdict in `cb` ([`quilla_abi::trace`]).
    pub trace: bool,
    /// Let the programs count their helper calls in `helpers`.
    pub count_helpers: bool,
    /// Use tcx links where the kernel has them; otherwise as before Linux 6.6.
    pub tcx: bool,
    /// By what to attach to Pods, where nothing else is asked for.
    pub pods: Mechanism,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bpffs: PathBuf::from(bpffs::DEFAULT),
            flow_capacity: quilla_abi::map::capacity::FLOWS,
            trace: false,
            count_helpers: false,
            tcx: true,
            pods: Mechanism::default(),
        }
    }
}

/// How the data path runs on this kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The kernel.
    pub release: Release,
    /// The kernel has tcx links.
    pub tcx: bool,
    /// By what Pods are attached to, where nothing else is asked for.
    pub pods: Mechanism,
    /// Checksums that a network card computed for IPv6 stay valid through a translation.
    pub ipv6_checksum: bool,
    /// Ticks per second of the programs' clock.
    pub hz: u32,
}

impl Status {
    /// By what uplinks and the overlay device are attached to.
    pub fn uplinks(&self) -> Mechanism {
        if self.tcx { Mechanism::Tcx } else { Mechanism::Clsact }
    }
}

/// The programs and maps in the kernel.
pub struct Datapath {
    pub(crate) layout: Layout,
    pub(crate) programs: BTreeMap<String, OwnedFd>,
    /// Only for clsact, which aya attaches.
    pub(crate) object: Mutex<Ebpf>,
    maps: Maps,
    opened: Opened,
    status: Status,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath")
            .field("layout", &self.layout)
            .field("opened", &self.opened)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Datapath {
    /// Loads the embedded object over the maps that are pinned, or makes them. Attaches nothing and empties nothing.
    pub fn open(options: &Options) -> Result<Self> {
        Self::open_object(&Object::embedded(), options)
    }

    /// The same with another object.
    pub fn open_object(object: &Object<'_>, options: &Options) -> Result<Self> {
        let layout = Layout::create(&options.bpffs)?;
        let mut shapes = object.shapes()?;
        for flows in [quilla_abi::map::FLOWS_V4, quilla_abi::map::FLOWS_V6] {
            shapes.entry(flows.to_owned()).and_modify(|shape| shape.max_entries = options.flow_capacity);
        }
        let opened = pin::sort(&layout.maps, &shapes)?;
        let release = Release::current()?;
        let tcx = release >= Release::TCX && options.tcx;
        let status = Status {
            release,
            tcx,
            pods: if tcx { options.pods } else { Mechanism::Clsact },
            ipv6_checksum: release >= Release::IPV6_CHECKSUM,
            hz: kernel::ticks_per_second()?,
        };
        let constants = Constants {
            hz: status.hz,
            ipv6_checksum: status.ipv6_checksum,
            trace: options.trace,
            count_helpers: options.count_helpers,
            flow_capacity: options.flow_capacity,
        };
        let loaded = program::load(object, constants, &layout.maps)
            .inspect_err(|_| pin::put_back(&layout.maps, &opened))?;
        let maps = Maps::new(|map| {
            sys::get(&layout.maps.join(map)).map_err(|source| DatapathError::kernel("open map", map, source))
        })?;
        sign(&maps)?;
        tracing::info!(
            recovered = opened.recovered.len(),
            replaced = opened.replaced.len(),
            programs = loaded.fds.len(),
            tcx = status.tcx,
            pods = %status.pods,
            "data path loaded"
        );
        let (object, programs) = (Mutex::new(loaded.object), loaded.fds);
        Ok(Self { layout, programs, object, maps, opened, status })
    }

    /// The maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// What became of the maps that were pinned.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Lets go of maps that were moved aside, and of their memory. For an agent that has replaced every program that
    /// used them.
    pub fn forget_replaced(&self) -> Result<()> {
        pin::forget_replaced(&self.layout.maps)
    }

    /// How the data path runs on this kernel.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// A program of the object.
    pub fn program(&self, name: &str) -> Result<BorrowedFd<'_>> {
        self.programs
            .get(name)
            .map(AsFd::as_fd)
            .ok_or_else(|| DatapathError::Missing { kind: "program", name: name.to_owned() })
    }
}

/// Writes the schema into a configuration nobody has written yet, so that no other version takes the maps for its own.
fn sign(maps: &Maps) -> Result<()> {
    let mut row = maps.config.get(0)?.unwrap_or_default();
    if row.schema == SCHEMA {
        return Ok(());
    }
    row.schema = SCHEMA;
    maps.config.set(0, &row)
}
