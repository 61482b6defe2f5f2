//! The loaded programs with one small cluster in their maps: two Pods, another node, six Services.

mod frontend;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result};
use quilla_abi::address::v4_mapped;
use quilla_abi::backend::Backend;
use quilla_abi::config::{self, Config};
use quilla_abi::endpoint::{self, Endpoint, Interface};
use quilla_abi::node::{self, Node};
use quilla_abi::route::{Route, RouteKey, kind};
use quilla_abi::service::{Service, ServiceKey, scope};
use quilla_abi::version::SCHEMA;
use quilla_abi::{Be16, DropReason, counter, epoch, flow, program, trace};
use quilla_datapath::{Datapath, Options, TestContext, TestRunner, bpffs};
use quilla_tests::assert_frames_eq;
use quilla_tests::bare_node;
use quilla_tests::netns::Netns;
use quilla_tests::packet::Packet;
use quilla_tests::sandbox;

pub(crate) const NEXT: i32 = -1;
pub(crate) const OK: i32 = 0;
pub(crate) const SHOT: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

pub(crate) const DEVICE_A: u32 = 11;
pub(crate) const DEVICE_B: u32 = 12;
pub(crate) const UPLINK: u32 = 21;
pub(crate) const OVERLAY: u32 = 22;
/// Slot of the other node.
pub(crate) const SLOT: u32 = 2;

pub(crate) const MAC_A: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub(crate) const MAC_B: [u8; 6] = [2, 0, 0, 0, 1, 3];
pub(crate) const HOST_MAC_A: [u8; 6] = [2, 0, 0, 0, 2, 2];
pub(crate) const HOST_MAC_B: [u8; 6] = [2, 0, 0, 0, 2, 3];
pub(crate) const VTEP: [u8; 6] = [2, 0, 0, 0, 3, 1];
pub(crate) const OTHER_VTEP: [u8; 6] = [2, 0, 0, 0, 3, 2];

pub(crate) const SNAT_MIN: u16 = 61_000;
pub(crate) const SNAT_MAX: u16 = 61_999;

/// Rows of the drop counters; those of the forward counters follow.
const DROP_ROWS: usize = quilla_abi::drop_reason::COUNT as usize;
const ANSWERED: usize = DROP_ROWS + counter::path::ANSWERED as usize;

/// First of the ports that Services may have on the node's addresses.
pub(crate) const NODE_PORT: u16 = 30_000;

/// Whom an address belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    PodA,
    PodB,
    /// In this node's Pod CIDR, but nobody.
    Nobody,
    /// A Pod on the other node.
    Remote,
    Gateway,
    Host,
    /// The other node itself.
    OtherNode,
    World,
    /// The n-th Service address.
    Service(u8),
    /// The n-th address of a load balancer: no address of a node.
    Vip(u8),
}

/// Every story is told twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn ip(self, who: Who) -> IpAddr {
        let (v4, v6) = match who {
            Who::PodA => ("10.244.1.2".into(), "fd00:244:0:1::2".into()),
            Who::PodB => ("10.244.1.3".into(), "fd00:244:0:1::3".into()),
            Who::Nobody => ("10.244.1.99".into(), "fd00:244:0:1::99".into()),
            Who::Remote => ("10.244.2.2".into(), "fd00:244:0:2::2".into()),
            Who::Gateway => ("10.244.1.1".into(), "fd00:244:0:1::1".into()),
            Who::Host => ("192.168.77.1".into(), "fd00:77::1".into()),
            Who::OtherNode => ("192.168.77.2".into(), "fd00:77::2".into()),
            Who::World => ("203.0.113.9".into(), "2001:db8::9".into()),
            Who::Service(n) => (format!("10.96.0.{n}"), format!("fd00:96::{n}")),
            Who::Vip(n) => (format!("192.0.2.{n}"), format!("2001:db8:7::{n}")),
        };
        let text: String = if self == Self::V4 { v4 } else { v6 };
        text.parse().expect("an address")
    }

    pub(crate) fn at(self, who: Who, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(who), port)
    }
}

/// A Service's last byte and protocol, and what stands behind it. TCP is served on port 80, UDP on 53.
type Behind = (u8, u8, &'static [(Who, u16)]);

const SERVICES: [Behind; 7] = [
    (10, TCP, &[(Who::PodB, 8080)]),
    (11, TCP, &[(Who::PodB, 8080)]),
    (12, UDP, &[(Who::PodB, 5353)]),
    (13, TCP, &[(Who::PodA, 8080)]),
    (14, UDP, &[(Who::PodA, 5353)]),
    (15, TCP, &[(Who::Remote, 8080)]),
    (16, TCP, &[]),
];

/// Where a frame meets the data path.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook {
    FromPodA,
    FromPodB,
    ToPodA,
    /// With the address of the tunnel's far end.
    FromOverlay([u8; 4]),
    /// Decapsulated on the uplink and sent on to the device.
    FromOverlaySent,
    ToOverlay,
    /// A packet of the agent's that tries direct encapsulation.
    ToOverlayProbe,
    FromUplink,
    /// As it is where the kernel remembers that a packet was in a tunnel (`skb->encapsulation`).
    FromUplinkMarked,
    /// A packet that the Pod's own tunnel made.
    FromPodAMarked,
    /// A frame that Pod A gave a priority (VLAN 0), or made part of a VLAN.
    FromPodATagged(Tag),
    /// The same on the uplink.
    FromUplinkTagged(Tag),
    /// A second uplink, which lends Pod B's device its number.
    FromOtherUplink,
    /// By the given device, 0 for the node's own packets into the stack, and now out.
    ToUplink(u32),
}

/// A VLAN tag that the device has taken out of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tag {
    Priority,
    Vlan,
}

impl Tag {
    const BOTH: [Self; 2] = [Self::Priority, Self::Vlan];

    /// Priority 5, and the VLAN's number.
    fn value(self) -> u16 {
        5 << 13 | if self == Self::Priority { 0 } else { 7 }
    }
}

/// In which state a program gets its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dress {
    Plain,
    /// The kernel remembers that they were in a tunnel (`skb->encapsulation`).
    Marked,
    Tagged(Tag),
}

/// The other node's tunnel.
pub(crate) const FROM_OTHER_NODE: Hook = Hook::FromOverlay([192, 168, 77, 2]);

impl Hook {
    fn program(self) -> &'static str {
        match self {
            Self::FromPodA | Self::FromPodAMarked | Self::FromPodATagged(_) | Self::FromPodB => {
                program::FROM_POD
            }
            Self::ToPodA => program::TO_POD,
            Self::FromOverlay(_) | Self::FromOverlaySent => program::FROM_OVERLAY,
            Self::ToOverlay | Self::ToOverlayProbe => program::TO_OVERLAY,
            Self::FromUplink | Self::FromUplinkMarked | Self::FromUplinkTagged(_) | Self::FromOtherUplink => {
                program::FROM_UPLINK
            }
            Self::ToUplink(_) => program::TO_UPLINK,
        }
    }

    fn dress(self) -> Dress {
        match self {
            Self::FromUplinkMarked | Self::FromPodAMarked => Dress::Marked,
            Self::FromPodATagged(tag) | Self::FromUplinkTagged(tag) => Dress::Tagged(tag),
            _ => Dress::Plain,
        }
    }

    fn context(self) -> TestContext {
        let ifindex = match self {
            Self::FromPodA | Self::FromPodAMarked | Self::FromPodATagged(_) | Self::ToPodA => DEVICE_A,
            Self::FromPodB | Self::FromOtherUplink => DEVICE_B,
            Self::FromOverlay(_) | Self::FromOverlaySent | Self::ToOverlay | Self::ToOverlayProbe => OVERLAY,
            Self::FromUplink | Self::FromUplinkMarked | Self::FromUplinkTagged(_) | Self::ToUplink(_) => {
                UPLINK
            }
        };
        let mut cb = [0; 5];
        if let Self::FromOverlay(remote) = self {
            cb[trace::TUNNEL_SOURCE] = u32::from_ne_bytes(remote);
        }
        let ingress_ifindex = if let Self::ToUplink(came_by) = self { came_by } else { 0 };
        let mark = match self {
            Self::FromOverlaySent => program::SENT_MARK,
            Self::ToOverlayProbe => program::PROBE_MARK,
            _ => 0,
        };
        TestContext { ifindex, ingress_ifindex, cb, mark, segment: 0, summed: false }
    }
}

/// What became of a frame. That exactly one counter moved, by one packet and its bytes, is checked already.
#[derive(Debug)]
pub(crate) struct Seen {
    input: Vec<u8>,
    verdict: i32,
    packet: Vec<u8>,
    cb: [u32; 5],
    mark: u32,
    pub(crate) reason: Option<DropReason>,
    path: u32,
}

impl Seen {
    pub(crate) fn slow(&self) -> bool {
        self.cb[trace::VERDICT] & trace::SLOW_PATH != 0
    }

    #[track_caller]
    pub(crate) fn dropped(&self, reason: DropReason) {
        assert_eq!(self.reason, Some(reason), "{self:?}");
        assert_eq!(self.verdict, SHOT);
        assert_frames_eq!(&self.input, &self.packet);
    }

    /// Dropped, and its sender is told: the packet became the answer.
    #[track_caller]
    pub(crate) fn answered(&self, reason: DropReason, ifindex: u32, expected: &Packet) {
        assert_eq!(self.reason, Some(reason), "{self:?}");
        self.went(counter::path::ANSWERED, REDIRECT, ifindex, expected);
    }

    /// Not ours: untouched, and others may look at it.
    #[track_caller]
    pub(crate) fn passed(&self) {
        assert_eq!((self.path, self.verdict), (counter::path::PASSED, NEXT), "{self:?}");
        assert_frames_eq!(&self.input, &self.packet);
    }

    #[track_caller]
    pub(crate) fn went(&self, path: u32, verdict: i32, ifindex: u32, expected: &Packet) {
        let way = (self.path, self.verdict, self.cb[trace::IFINDEX]);
        assert_eq!(way, (path, verdict, ifindex), "{self:?}");
        assert_frames_eq!(&expected.build(), &self.packet);
    }

    /// Into Pod A or B from an ingress hook.
    #[track_caller]
    pub(crate) fn to_pod_a(&self, expected: &Packet) {
        let expected = expected.clone().macs(HOST_MAC_A, MAC_A);
        self.went(counter::path::LOCAL_POD, REDIRECT, DEVICE_A, &expected);
    }

    #[track_caller]
    pub(crate) fn to_pod_b(&self, expected: &Packet) {
        let expected = expected.clone().macs(HOST_MAC_B, MAC_B);
        self.went(counter::path::LOCAL_POD, REDIRECT, DEVICE_B, &expected);
    }

    /// Encapsulated to the other node.
    #[track_caller]
    pub(crate) fn to_other_node(&self, expected: &Packet) {
        assert_eq!(self.cb[trace::NODE_SLOT], SLOT);
        self.went(counter::path::OVERLAY, REDIRECT, OVERLAY, &expected.clone().macs(VTEP, OTHER_VTEP));
    }

    /// Out of the uplink, to a next hop that the kernel finds.
    #[track_caller]
    pub(crate) fn to_world(&self, expected: &Packet) {
        self.went(counter::path::UPLINK, REDIRECT, UPLINK, expected);
    }

    #[track_caller]
    pub(crate) fn to_stack(&self, expected: &Packet) {
        self.went(counter::path::STACK, OK, 0, expected);
    }

    pub(crate) fn verdict(&self) -> i32 {
        self.verdict
    }

    pub(crate) fn mark(&self) -> u32 {
        self.mark
    }

    pub(crate) fn frame(&self) -> &[u8] {
        &self.packet
    }
}

pub(crate) struct Rig {
    pub(crate) datapath: Datapath,
    /// By program and the state of its packets.
    runners: BTreeMap<(&'static str, Dress), TestRunner>,
    /// Backends in the order of their ids, which start at 1, by family.
    backends: [Vec<(SocketAddr, u8)>; 2],
    slots: u32,
    /// Frames come with the sum of all their bytes, which the programs must keep right (E7).
    pub(crate) summed: bool,
    /// Frames are to be cut into segments of this length by a device; 0: they are not.
    pub(crate) segment: u32,
}

/// Tells a story in a namespace and with maps of its own.
pub(crate) fn tell(name: &str, story: impl Fn(&mut Rig, Family) -> Result<()> + Sync) -> Result<()> {
    let netns = namespace(name)?;
    netns.run(|| {
        for family in Family::BOTH {
            let place = format!("{name}-{family:?}");
            let mut rig = Rig::load(&place, false)?;
            story(&mut rig, family).with_context(|| format!("{family:?}"))?;
        }
        Ok(())
    })?
}

/// A namespace with the devices; the programs run inside it.
pub(crate) fn namespace(name: &str) -> Result<Netns> {
    bare_node::create(name, &[DEVICE_A, DEVICE_B], UPLINK, OVERLAY)
}

impl Rig {
    pub(crate) fn load(name: &str, count_helpers: bool) -> Result<Self> {
        let bpffs = Path::new(sandbox::FILES).join(format!("bpf-{name}"));
        bpffs::mount(&bpffs)?;
        let options =
            Options { bpffs, flow_capacity: 4096, trace: true, count_helpers, ..Options::default() };
        let datapath = Datapath::open(&options).context("load the object")?;
        let mut runners = program::TC
            .into_iter()
            .map(|name| Ok(((name, Dress::Plain), TestRunner::new(&datapath, name)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        for name in [program::FROM_POD, program::FROM_UPLINK] {
            runners.insert((name, Dress::Marked), TestRunner::in_tunnel(&datapath, name)?);
            for tag in Tag::BOTH {
                let runner = TestRunner::tagged(&datapath, name, tag.value())?;
                runners.insert((name, Dress::Tagged(tag)), runner);
            }
        }
        let mut rig = Self {
            datapath,
            runners,
            backends: [Vec::new(), Vec::new()],
            slots: 0,
            summed: false,
            segment: 0,
        };
        rig.install()?;
        Ok(rig)
    }

    /// One frame through the program of its hook.
    #[track_caller]
    pub(crate) fn run(&mut self, hook: Hook, packet: &Packet) -> Seen {
        self.run_frame(hook, &packet.build())
    }

    #[track_caller]
    pub(crate) fn run_frame(&mut self, hook: Hook, frame: &[u8]) -> Seen {
        let before = self.counted();
        let runner = self.runners.get_mut(&(hook.program(), hook.dress())).expect("a tc program");
        let context = TestContext { summed: self.summed, segment: self.segment, ..hook.context() };
        let outcome = runner.run(frame, &context).unwrap_or_else(|error| panic!("{hook:?}: {error}"));
        let (verdict, packet, cb, mark) =
            (outcome.verdict, outcome.packet.to_vec(), outcome.cb, outcome.mark);
        let after = self.counted();
        let moved: Vec<(usize, u64, u64)> = (0..before.len())
            .filter(|&row| before[row] != after[row])
            .map(|row| (row, after[row].0 - before[row].0, after[row].1 - before[row].1))
            .collect();
        // A drop is counted as it came, or as it was in the tunnel; everything else as it goes. An answer is both.
        let came = |bytes: u64| [0, 50, 70].map(|outer| bytes + outer).contains(&(frame.len() as u64));
        let (reason, path) = match moved[..] {
            [(row, 1, bytes)] if row < DROP_ROWS && came(bytes) => (row, 0),
            [(row, 1, bytes)] if bytes == packet.len() as u64 => (0, row - DROP_ROWS),
            [(row, 1, dropped), (ANSWERED, 1, bytes)] if came(dropped) && bytes == packet.len() as u64 => {
                (row, ANSWERED - DROP_ROWS)
            }
            _ => panic!("counters moved: {moved:?}"),
        };
        let traced = (cb[trace::VERDICT] >> 8 & 0xff, cb[trace::PATH]);
        assert_eq!((traced.0 as usize, traced.1 as usize), (reason, path), "the trace tells the same");
        let reason = u8::try_from(reason).ok().and_then(DropReason::from_number);
        let path = u32::try_from(path).expect("a path");
        Seen { input: frame.to_vec(), verdict, packet, cb, mark, reason, path }
    }

    /// The same frame many times, without a look at the counters; how often it was not simply dropped.
    pub(crate) fn flood(&mut self, hook: Hook, packet: &Packet, times: u32) -> Result<u32> {
        let runner = self.runners.get_mut(&(hook.program(), hook.dress())).expect("a tc program");
        let (frame, context) = (packet.build(), hook.context());
        let mut answered = 0;
        for _ in 0..times {
            answered += u32::from(runner.run(&frame, &context)?.verdict != SHOT);
        }
        Ok(answered)
    }

    /// Drops by reason, then forwards by path, as (packets, bytes).
    fn counted(&self) -> Vec<(u64, u64)> {
        let maps = self.datapath.maps();
        let drops = (0..256).map(|row| maps.drops.total(row));
        let forwards = (0..counter::path::COUNT).map(|row| maps.forwards.total(row));
        drops.chain(forwards).map(|total| total.map(|c| (c.packets, c.bytes)).expect("counters")).collect()
    }

    /// How often each kind of helper ran for one frame.
    pub(crate) fn helpers(&mut self, hook: Hook, packet: &Packet) -> BTreeMap<u32, u64> {
        let read = |rig: &Self| -> Vec<u64> {
            let total = |row| rig.datapath.maps().helpers.total(row).expect("counters");
            (0..counter::helper::COUNT).map(total).collect()
        };
        let before = read(self);
        let seen = self.run(hook, packet);
        assert!(seen.reason.is_none(), "{seen:?}");
        assert!(!seen.slow(), "{seen:?}");
        let after = read(self);
        (0..).zip(before.iter().zip(after)).map(|(row, (old, new))| (row, new - old)).collect()
    }

    pub(crate) fn bump(&self, index: u32) -> Result<()> {
        let epochs = &self.datapath.maps().epochs;
        let value = epochs.get(index)?.unwrap_or_default();
        Ok(epochs.set(index, &(value + 1))?)
    }

    fn install(&mut self) -> Result<()> {
        let address = |family: Family, who| family.ip(who);
        let pods = [(1, Who::PodA, DEVICE_A, MAC_A, HOST_MAC_A), (2, Who::PodB, DEVICE_B, MAC_B, HOST_MAC_B)];
        for (id, who, ifindex, pod_mac, host_mac) in pods {
            let endpoint = Endpoint { ifindex, id, pod_mac, host_mac };
            let interface = Interface {
                id,
                pod_mac,
                flags: endpoint::flag::IPV4 | endpoint::flag::IPV6,
                ipv4: v4(address(Family::V4, who)),
                ipv6: v6(address(Family::V6, who)),
            };
            let maps = self.datapath.maps();
            maps.endpoints_v4.insert(&interface.ipv4, &endpoint)?;
            maps.endpoints_v6.insert(&interface.ipv6, &endpoint)?;
            maps.interfaces.insert(&ifindex, &interface)?;
        }
        self.install_node()?;
        self.install_routes()?;
        for family in Family::BOTH {
            for (n, proto, backends) in SERVICES {
                let backends: Vec<SocketAddr> =
                    backends.iter().map(|&(who, port)| family.at(who, port)).collect();
                self.set_service(family, n, proto, &backends)?;
            }
        }
        self.datapath.maps().config.set(0, &Self::config())?;
        self.bump(epoch::GLOBAL)
    }

    fn install_node(&self) -> Result<()> {
        let maps = self.datapath.maps();
        let row = Node {
            ipv4: v4(Family::V4.ip(Who::OtherNode)),
            ipv6: v6(Family::V6.ip(Who::OtherNode)),
            flags: node::flag::IPV4 | node::flag::IPV6,
            vtep_mac: OTHER_VTEP,
        };
        maps.nodes.set(SLOT, &row)?;
        maps.node_slots.insert(&v4_mapped(row.ipv4), &SLOT)?;
        Ok(maps.node_slots.insert(&row.ipv6, &SLOT)?)
    }

    fn install_routes(&self) -> Result<()> {
        let slot = u16::try_from(SLOT)?;
        let rows = [
            ("10.244.1.0", 24, kind::LOCAL_PODS, 0),
            ("fd00:244:0:1::", 64, kind::LOCAL_PODS, 0),
            ("10.244.2.0", 24, kind::REMOTE_PODS, slot),
            ("fd00:244:0:2::", 64, kind::REMOTE_PODS, slot),
            ("10.96.0.0", 16, kind::SERVICES, 0),
            ("fd00:96::", 112, kind::SERVICES, 0),
            ("169.254.0.0", 16, kind::UNROUTABLE, 0),
            ("fe80::", 10, kind::UNROUTABLE, 0),
            ("127.0.0.0", 8, kind::UNROUTABLE, 0),
            ("::1", 128, kind::UNROUTABLE, 0),
            ("10.244.1.1", 32, kind::HOST, 0),
            ("fd00:244:0:1::1", 128, kind::HOST, 0),
            ("192.168.77.1", 32, kind::HOST, 0),
            ("fd00:77::1", 128, kind::HOST, 0),
            ("192.0.2.0", 27, kind::SERVICES, 0),
            ("2001:db8:7::", 64, kind::SERVICES, 0),
        ];
        let maps = self.datapath.maps();
        for (prefix, prefix_len, kind, node_slot) in rows {
            let route = Route { kind, pad: 0, node_slot };
            match prefix.parse()? {
                IpAddr::V4(addr) => {
                    maps.routes_v4.insert(&RouteKey { prefix_len, addr: addr.octets() }, &route)?;
                }
                IpAddr::V6(addr) => {
                    maps.routes_v6.insert(&RouteKey { prefix_len, addr: addr.octets() }, &route)?;
                }
            }
        }
        Ok(())
    }

    /// Whether Pods reach an address outside under their own: what the agent writes for a range.
    pub(crate) fn set_native(&self, address: IpAddr, native: bool) -> Result<()> {
        let maps = self.datapath.maps();
        let route = Route { kind: kind::NATIVE, pad: 0, node_slot: 0 };
        macro_rules! set {
            ($table:ident, $key:expr) => {
                if native {
                    maps.$table.insert($key, &route)?;
                } else {
                    maps.$table.remove($key)?;
                }
            };
        }
        match address {
            IpAddr::V4(addr) => set!(routes_v4, &RouteKey { prefix_len: 32, addr: addr.octets() }),
            IpAddr::V6(addr) => set!(routes_v6, &RouteKey { prefix_len: 128, addr: addr.octets() }),
        }
        self.bump(epoch::GLOBAL)
    }

    pub(crate) fn config() -> Config {
        Config {
            schema: SCHEMA,
            flags: config::flag::MASQUERADE_V4 | config::flag::MASQUERADE_V6,
            uplink_ifindex: UPLINK,
            overlay_ifindex: OVERLAY,
            vni: 7,
            hash_seed: 0x5eed,
            snat_port_min: SNAT_MIN,
            snat_port_max: SNAT_MAX,
            host_ipv4: v4(Family::V4.ip(Who::Host)),
            host_ipv6: v6(Family::V6.ip(Who::Host)),
            pods_ipv4: [10, 244, 1, 0],
            pods_mask_ipv4: [255, 255, 255, 0],
            pods_ipv6: v6("fd00:244:0:1::".parse().expect("an address")),
            pods_mask_ipv6: v6("ffff:ffff:ffff:ffff::".parse().expect("an address")),
            gateway_ipv4: v4(Family::V4.ip(Who::Gateway)),
            gateway_ipv6: v6(Family::V6.ip(Who::Gateway)),
            vtep_mac: VTEP,
            overlay_port: config::OVERLAY_PORT,
            frontend_port_min: NODE_PORT,
            frontend_port_max: NODE_PORT + 99,
            ..Config::default()
        }
    }

    /// Writes slots that nothing names yet, then the Service.
    pub(crate) fn set_service(
        &mut self,
        family: Family,
        n: u8,
        proto: u8,
        backends: &[SocketAddr],
    ) -> Result<()> {
        let ids: Vec<u32> =
            backends.iter().map(|&backend| self.backend(backend, proto)).collect::<Result<_>>()?;
        let maps = self.datapath.maps();
        let (slot_base, slot_count) = (self.slots, u32::try_from(ids.len())?);
        for (slot, id) in (slot_base..).zip(&ids) {
            maps.slots.set(slot, id)?;
        }
        self.slots += slot_count;
        let row = Service {
            id: u32::from(n),
            slot_base,
            slot_count,
            affinity_seconds: 0,
            slow_start_seconds: 0,
            flags: 0,
        };
        let port = Be16::new(if proto == TCP { 80 } else { 53 });
        let scope = scope::INTERNAL;
        match family.ip(Who::Service(n)) {
            IpAddr::V4(a) => {
                maps.services_v4.insert(&ServiceKey { addr: a.octets(), port, proto, scope }, &row)?;
            }
            IpAddr::V6(a) => {
                maps.services_v6.insert(&ServiceKey { addr: a.octets(), port, proto, scope }, &row)?;
            }
        }
        Ok(())
    }

    /// The id of a backend; its rows are written when it is new.
    pub(crate) fn backend(&mut self, backend: SocketAddr, proto: u8) -> Result<u32> {
        let known = &mut self.backends[usize::from(backend.is_ipv6())];
        let position = known.iter().position(|other| *other == (backend, proto));
        let position = position.unwrap_or_else(|| {
            known.push((backend, proto));
            known.len() - 1
        });
        let id = u32::try_from(position + 1)?;
        let port = Be16::new(backend.port());
        let maps = self.datapath.maps();
        match backend.ip() {
            IpAddr::V4(addr) => {
                let row = Backend { addr: addr.octets(), port, proto, pad: 0 };
                maps.backends_v4.set(id, &row)?;
                maps.backend_ids_v4.insert(&row, &id)?;
            }
            IpAddr::V6(addr) => {
                let row = Backend { addr: addr.octets(), port, proto, pad: 0 };
                maps.backends_v6.set(id, &row)?;
                maps.backend_ids_v6.insert(&row, &id)?;
            }
        }
        Ok(id)
    }

    /// Lets time pass for all flows: each was seen so much longer ago.
    pub(crate) fn pass(&self, seconds: u32) -> Result<()> {
        let ticks = seconds * quilla_datapath::kernel::ticks_per_second()?;
        let maps = self.datapath.maps();
        macro_rules! pass {
            ($($table:ident)+) => {$(
                for (key, mut flow) in maps.$table.entries()? {
                    flow.last_seen = flow.last_seen.wrapping_sub(ticks);
                    maps.$table.insert(&key, &flow)?;
                }
            )+};
        }
        pass!(flows_v4 flows_v6);
        Ok(())
    }

    /// Removes the entries under which the world's answers are found.
    pub(crate) fn forget_answers(&self) -> Result<()> {
        self.remove_flows(flow::scope::UPLINK..=flow::scope::UPLINK)
    }

    /// Removes all flow entries.
    pub(crate) fn clear(&self) -> Result<()> {
        self.remove_flows(0..=u8::MAX)
    }

    fn remove_flows(&self, scopes: RangeInclusive<u8>) -> Result<()> {
        let maps = self.datapath.maps();
        macro_rules! remove {
            ($($table:ident)+) => {$(
                for (key, _) in maps.$table.entries()? {
                    if scopes.contains(&key.scope) {
                        maps.$table.remove(&key)?;
                    }
                }
            )+};
        }
        remove!(flows_v4 flows_v6);
        Ok(())
    }

    /// Removes the flow entry with this key, as eviction does; there must be one.
    pub(crate) fn evict(&self, proto: u8, src: SocketAddr, dst: SocketAddr) -> Result<()> {
        if self.forget(proto, src, dst)? { Ok(()) } else { anyhow::bail!("no such flow entry") }
    }

    /// Removes the flow entry with this key; whether there was one.
    pub(crate) fn forget(&self, proto: u8, src: SocketAddr, dst: SocketAddr) -> Result<bool> {
        use quilla_abi::flow::FlowKey;
        let (sport, dport) = (Be16::new(src.port()), Be16::new(dst.port()));
        let maps = self.datapath.maps();
        macro_rules! evict {
            ($table:ident, $src:expr, $dst:expr) => {{
                let key = FlowKey { src: $src, dst: $dst, sport, dport, proto, ..FlowKey::default() };
                maps.$table.remove(&key)?
            }};
        }
        Ok(match (src.ip(), dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => evict!(flows_v4, src.octets(), dst.octets()),
            (IpAddr::V6(src), IpAddr::V6(dst)) => evict!(flows_v6, src.octets(), dst.octets()),
            _ => anyhow::bail!("two families"),
        })
    }
}

pub(crate) fn v4(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => panic!("{address} is IPv6"),
    }
}

pub(crate) fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => panic!("{address} is IPv4"),
    }
}

/// What Pod A sends.
pub(crate) fn from_a(packet: Packet) -> Packet {
    packet.macs(MAC_A, HOST_MAC_A)
}

/// What Pod B sends.
pub(crate) fn from_b(packet: Packet) -> Packet {
    packet.macs(MAC_B, HOST_MAC_B)
}
