//! Attaching programs: by links that are pinned, replaced in place and found again, or by filters of clsact.
//!
//! A link's pin is named `PROGRAM-DEVICE` (or `PROGRAM-cgroup`). Attaching what is attached already updates the link or
//! the filter, so that every packet meets exactly one program, the old one or the new one. Nothing is ever detached in
//! order to be attached again: what another mechanism attached goes afterwards. Devices are those of the calling thread's
//! namespace.

mod clsact;

use std::ffi::CString;
use std::fmt;
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
use crate::netlink::Side;
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

/// By what programs are attached to a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mechanism {
    /// Filters of the clsact queueing discipline. No packet and no other change of a device waits for them, but other
    /// tools may remove them.
    #[default]
    Clsact,
    /// tcx links (Linux 6.6), which only their pins keep. The kernel waits for a grace period at each that comes or goes,
    /// and with it every other change of a device.
    Tcx,
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clsact => "clsact",
            Self::Tcx => "tcx",
        })
    }
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

    fn side(self) -> Side {
        match self {
            Self::Ingress => Side::Ingress,
            Self::Egress => Side::Egress,
        }
    }
}

type Pair = [(&'static str, Direction); 2];

const POD: Pair = [(FROM_POD, Direction::Ingress), (TO_POD, Direction::Egress)];
const UPLINK: Pair = [(FROM_UPLINK, Direction::Ingress), (TO_UPLINK, Direction::Egress)];
const OVERLAY: Pair = [(FROM_OVERLAY, Direction::Ingress), (TO_OVERLAY, Direction::Egress)];

impl Datapath {
    /// Attaches to the host side of a Pod's veth, by what is asked for or else by what the options say; returns its
    /// number. Where another has the place of a filter it is tcx, and on a kernel without tcx always clsact.
    pub fn attach_pod(&self, device: &str, asked: Option<Mechanism>) -> Result<u32> {
        let ifindex = ifindex(device)?;
        let attached = match asked.unwrap_or(self.status().pods) {
            Mechanism::Tcx if self.status().tcx => self.attach_links(POD, device, ifindex),
            _ => match self.attach_filters(POD, device, ifindex, clsact::FIRST) {
                Err(error @ DatapathError::PlaceTaken { .. }) if self.status().tcx => {
                    tracing::debug!(device, error = %error, "attach by tcx");
                    self.attach_links(POD, device, ifindex)
                }
                done => done,
            },
        };
        match (attached, self::ifindex(device)) {
            (Ok(()), _) => Ok(ifindex),
            // It went meanwhile, for which the kernel has many words.
            (Err(_), Err(gone)) => Err(gone),
            (Err(error), Ok(_)) => Err(error),
        }
    }

    /// By what both programs of a Pod are attached, those of another agent included; `None` if one is missing, or a
    /// filter of another runs before it.
    pub fn pod_mechanism(&self, device: &str) -> Result<Option<Mechanism>> {
        self.mechanism(POD, device, clsact::FIRST)
    }

    /// The same of the programs of an uplink.
    pub fn uplink_mechanism(&self, device: &str) -> Result<Option<Mechanism>> {
        self.mechanism(UPLINK, device, clsact::LATE)
    }

    /// The same of the programs of the overlay device.
    pub fn overlay_mechanism(&self, device: &str) -> Result<Option<Mechanism>> {
        self.mechanism(OVERLAY, device, clsact::LATE)
    }

    /// Attaches to a device that leads to the other nodes or the world.
    pub fn attach_uplink(&self, device: &str) -> Result<()> {
        self.rename_pins(UPLINK, device)?;
        self.attach_shared(UPLINK, device)
    }

    /// Attaches to the overlay device.
    pub fn attach_overlay(&self, device: &str) -> Result<()> {
        self.attach_shared(OVERLAY, device)
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
        for (program, direction) in POD {
            unpin(&self.pin(program, device))?;
            clsact::detach(program, device, direction, clsact::FIRST)?;
        }
        Ok(())
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

    /// Removes the links of devices and groups that are gone; says which.
    pub fn prune_links(&self) -> Result<Vec<String>> {
        self.unpin_links(|link| link.defunct)
    }

    fn mechanism(&self, pair: Pair, device: &str, priority: u16) -> Result<Option<Mechanism>> {
        let ifindex = ifindex(device)?;
        let linked = |program| -> Result<bool> {
            let link = open(&self.pin(program, device))?;
            Ok(link.is_some_and(|(_, info)| info.ifindex() == Some(ifindex)))
        };
        if linked(pair[0].0)? && linked(pair[1].0)? {
            return Ok(Some(Mechanism::Tcx));
        }
        Ok(clsact::runs(pair, ifindex, priority)?.then_some(Mechanism::Clsact))
    }

    fn unpin_links(&self, which: impl Fn(&LinkStatus) -> bool) -> Result<Vec<String>> {
        let names = self.links()?.into_iter().filter(which).map(|link| link.name);
        names.map(|name| unpin(&self.layout.links.join(&name)).map(|()| name)).collect()
    }

    /// Links of a device that is called something else by now get pins of its new name: a program cannot be attached to it
    /// twice.
    fn rename_pins(&self, pair: Pair, device: &str) -> Result<()> {
        let ifindex = ifindex(device)?;
        for (program, _) in pair {
            let pin = self.pin(program, device);
            let others = self.links()?.into_iter().map(|link| self.layout.links.join(link.name));
            let prefix = pin_name(program, "");
            let of_program = |path: &PathBuf| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
                    && *path != pin
            };
            for other in others.filter(of_program) {
                if open(&other)?.is_some_and(|(_, info)| info.ifindex() == Some(ifindex)) {
                    unpin(&pin)?;
                    fs::rename(&other, &pin).map_err(|source| failed("rename link", &other, source))?;
                }
            }
        }
        Ok(())
    }

    /// To a device that others attach to as well: after theirs, and where others cannot remove it by mistake.
    fn attach_shared(&self, pair: Pair, device: &str) -> Result<()> {
        let ifindex = ifindex(device)?;
        if self.status().tcx {
            self.attach_links(pair, device, ifindex)
        } else {
            self.attach_filters(pair, device, ifindex, clsact::LATE)
        }
    }

    fn attach_links(&self, pair: Pair, device: &str, ifindex: u32) -> Result<()> {
        for (program, direction) in pair {
            let at_target = |info: &LinkInfo| info.ifindex() == Some(ifindex);
            self.attach_link(program, device, Target::Device(ifindex), direction.tcx(), at_target)?;
            let priority = if pair == POD { clsact::FIRST } else { clsact::LATE };
            clsact::detach(program, device, direction, priority)?;
        }
        Ok(())
    }

    fn attach_filters(&self, pair: Pair, device: &str, ifindex: u32, priority: u16) -> Result<()> {
        self.attach_clsact(pair, device, ifindex, priority)?;
        pair.into_iter().try_for_each(|(program, _)| unpin(&self.pin(program, device)))
    }

    fn attach_link(
        &self,
        program: &'static str,
        target_name: &str,
        target: Target<'_>,
        attach_type: u32,
        at_target: impl Fn(&LinkInfo) -> bool,
    ) -> Result<()> {
        let pin = self.pin(program, target_name);
        let fd = self.program(program)?;
        if let Some((link, info)) = open(&pin)? {
            if at_target(&info) {
                return sys::link_update(link.as_fd(), fd)
                    .map_err(|source| failed("replace the program of", &pin, source));
            }
            // The device of that name is another one now, or the operator chose another group.
            unpin(&pin)?;
        }
        let link = sys::link_create(fd, target, attach_type)
            .map_err(|source| failed("create link", &pin, source))?;
        sys::pin(link.as_fd(), &pin).map_err(|source| failed("pin link", &pin, source))
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
