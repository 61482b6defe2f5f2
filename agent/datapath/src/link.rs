//! Attaching programs: links that are pinned, replaced in place, and found again.
//!
//! A link's pin is named `PROGRAM-DEVICE` (or `PROGRAM-cgroup`). Attaching what is attached already updates the link,
//! so that every packet meets exactly one program, the old one or the new one. Nothing is ever detached in order to be
//! attached again. Devices are those of the calling thread's namespace.

mod clsact;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::TcAttachType;
use quilla_abi::program::{
    FROM_OVERLAY, FROM_POD, FROM_UPLINK, SOCK_ADDR, SOCK_RELEASE, TO_OVERLAY, TO_POD, TO_UPLINK,
};

use crate::cgroup::Cgroup;
use crate::datapath::Datapath;
use crate::error::{DatapathError, Result};
use crate::sys::{self, LinkInfo, Target};

const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
/// Attach types of [`SOCK_ADDR`], in its order.
const SOCK_ADDR_TYPES: [u32; SOCK_ADDR.len()] = [10, 11, 14, 15, 19, 20, 29, 30];
const SOCK_RELEASE_TYPE: u32 = 34;

/// A pinned link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// Name of the pin.
    pub name: String,
    /// The kernel's id of the link.
    pub id: u32,
    /// The kernel's id of the program it runs.
    pub program: u32,
    /// Its device or group is gone: the link does nothing.
    pub defunct: bool,
}

/// Which way a program looks at a device's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    fn tcx(self) -> u32 {
        match self {
            Self::Ingress => TCX_INGRESS,
            Self::Egress => TCX_EGRESS,
        }
    }

    fn clsact(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

type Pair = [(&'static str, Direction); 2];

const POD: Pair = [(FROM_POD, Direction::Ingress), (TO_POD, Direction::Egress)];
const UPLINK: Pair = [(FROM_UPLINK, Direction::Ingress), (TO_UPLINK, Direction::Egress)];
const OVERLAY: Pair = [(FROM_OVERLAY, Direction::Ingress), (TO_OVERLAY, Direction::Egress)];

impl Datapath {
    /// Attaches to the host side of a Pod's veth; returns its number.
    pub fn attach_pod(&self, device: &str) -> Result<u32> {
        self.attach_pair(POD, device)
    }

    /// Attaches to a device that leads to the other nodes or the world.
    pub fn attach_uplink(&self, device: &str) -> Result<()> {
        self.attach_pair(UPLINK, device).map(drop)
    }

    /// Attaches to the overlay device.
    pub fn attach_overlay(&self, device: &str) -> Result<()> {
        self.attach_pair(OVERLAY, device).map(drop)
    }

    /// Attaches the socket programs to a group of the cgroup2 hierarchy; to the root only if that is what is given.
    /// They see the sockets of the processes in the group and below.
    pub fn attach_sockets(&self, cgroup: &Path) -> Result<()> {
        let group = Cgroup::open(cgroup)?;
        let types = SOCK_ADDR.into_iter().zip(SOCK_ADDR_TYPES);
        for (program, attach_type) in types.chain([(SOCK_RELEASE, SOCK_RELEASE_TYPE)]) {
            let target = Target::Cgroup(group.directory.as_fd());
            let at_target = |info: &LinkInfo| info.cgroup() == Some(group.id);
            self.attach_link(program, "cgroup", target, attach_type, at_target)?;
        }
        Ok(())
    }

    /// Detaches from a Pod's veth, whether or not the device is still there.
    pub fn detach_pod(&self, device: &str) -> Result<()> {
        self.detach_pair(POD, device)
    }

    /// Detaches the programs of the uplinks and of the overlay from every other device than these, where an agent with
    /// other options attached them; says which links went. Filters of clsact are not pinned and stay.
    pub fn detach_others(&self, uplinks: &[String], overlay: &str) -> Result<Vec<String>> {
        let pins = |pair: Pair, device: &str| pair.map(|(program, _)| pin_name(program, device));
        let mut wanted: Vec<_> = uplinks.iter().flat_map(|uplink| pins(UPLINK, uplink)).collect();
        wanted.extend(pins(OVERLAY, overlay));
        let programs = UPLINK.into_iter().chain(OVERLAY).map(|(program, _)| program);
        let prefixes: Vec<_> = programs.map(|program| format!("{program}-")).collect();
        let ours = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
        self.unpin_links(|link| ours(&link.name) && !wanted.contains(&link.name))
    }

    /// Detaches the socket programs.
    pub fn detach_sockets(&self) -> Result<()> {
        SOCK_ADDR
            .into_iter()
            .chain([SOCK_RELEASE])
            .try_for_each(|program| unpin(&self.pin(program, "cgroup")))
    }

    /// Every pinned link, by name.
    pub fn links(&self) -> Result<Vec<LinkStatus>> {
        let failed = |source| DatapathError::kernel("list", self.layout.links.to_string_lossy(), source);
        let mut links = Vec::new();
        for entry in fs::read_dir(&self.layout.links).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some((_, info)) = open(&entry.path())? else { continue };
            links.push(LinkStatus {
                name: entry.file_name().to_string_lossy().into_owned(),
                id: info.id,
                program: info.program,
                defunct: info.ifindex() == Some(0) || info.cgroup() == Some(0),
            });
        }
        links.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(links)
    }

    /// The pinned links of a device.
    pub fn links_of(&self, device: &str) -> Result<Vec<LinkStatus>> {
        let name = pin_name("", device);
        let mut links = self.links()?;
        links.retain(|link| link.name.find('-').is_some_and(|at| link.name[at..] == name));
        Ok(links)
    }

    /// Removes the links of devices and groups that are gone; says which.
    pub fn prune_links(&self) -> Result<Vec<String>> {
        self.unpin_links(|link| link.defunct)
    }

    fn unpin_links(&self, which: impl Fn(&LinkStatus) -> bool) -> Result<Vec<String>> {
        let names = self.links()?.into_iter().filter(which).map(|link| link.name);
        names.map(|name| unpin(&self.layout.links.join(&name)).map(|()| name)).collect()
    }

    fn attach_pair(&self, pair: Pair, device: &str) -> Result<u32> {
        let ifindex = ifindex(device)?;
        for (program, direction) in pair {
            if self.status().tcx {
                let at_target = |info: &LinkInfo| info.ifindex() == Some(ifindex);
                let target = Target::Device(ifindex);
                if self.attach_link(program, device, target, direction.tcx(), at_target)? {
                    // An agent that attached the other way may have been here before.
                    clsact::detach(program, device, direction.clsact())?;
                }
            } else {
                self.attach_clsact(program, device, direction.clsact())?;
                unpin(&self.pin(program, device))?;
            }
        }
        Ok(ifindex)
    }

    fn detach_pair(&self, pair: Pair, device: &str) -> Result<()> {
        for (program, direction) in pair {
            if self.status().tcx {
                unpin(&self.pin(program, device))?;
            } else {
                clsact::detach(program, device, direction.clsact())?;
            }
        }
        Ok(())
    }

    /// Says whether the link is a new one.
    fn attach_link(
        &self,
        program: &'static str,
        target_name: &str,
        target: Target<'_>,
        attach_type: u32,
        at_target: impl Fn(&LinkInfo) -> bool,
    ) -> Result<bool> {
        let pin = self.pin(program, target_name);
        let fd = self.program(program)?;
        if let Some((link, info)) = open(&pin)? {
            if at_target(&info) {
                return sys::link_update(link.as_fd(), fd)
                    .map(|()| false)
                    .map_err(|source| failed("replace the program of", &pin, source));
            }
            // The device of that name is another one now, or the operator chose another group.
            unpin(&pin)?;
        }
        let link = sys::link_create(fd, target, attach_type)
            .map_err(|source| failed("create link", &pin, source))?;
        sys::pin(link.as_fd(), &pin).map(|()| true).map_err(|source| failed("pin link", &pin, source))
    }

    fn pin(&self, program: &str, target: &str) -> PathBuf {
        self.layout.links.join(pin_name(program, target))
    }
}

/// A BPF file system allows no dots, and a device's name no colons.
fn pin_name(program: &str, target: &str) -> String {
    format!("{program}-{}", target.replace('.', ":"))
}

fn failed(operation: &'static str, pin: &Path, source: io::Error) -> DatapathError {
    DatapathError::kernel(operation, pin.to_string_lossy(), source)
}

fn open(pin: &Path) -> Result<Option<(OwnedFd, LinkInfo)>> {
    let link = match sys::get(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("open link", pin, source)),
    };
    let info = sys::info(link.as_fd()).map_err(|source| failed("inspect link", pin, source))?;
    Ok(Some((link, info)))
}

fn unpin(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove link", pin, source)),
        _ => Ok(()),
    }
}

/// Of a device in the calling thread's namespace.
pub(crate) fn ifindex(device: &str) -> Result<u32> {
    let missing = || DatapathError::NoDevice { name: device.to_owned() };
    let name = CString::new(device).map_err(|_| missing())?;
    // SAFETY: `name` is a C string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(missing()),
        ifindex => Ok(ifindex),
    }
}
