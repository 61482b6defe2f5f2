//! The loaded programs with a world in their maps, in a namespace with the devices it speaks of.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use quilla_abi::address::v4_mapped;
use quilla_abi::backend::Backend;
use quilla_abi::config::{Config, flag};
use quilla_abi::endpoint::{self, Endpoint, Interface};
use quilla_abi::node::{self, Node};
use quilla_abi::program;
use quilla_abi::route::{Route, RouteKey, kind};
use quilla_abi::service::{Service, ServiceKey, scope};
use quilla_abi::version::SCHEMA;
use quilla_abi::{Be16, epoch};
use quilla_datapath::{Datapath, Object, Options, Outcome, TestContext, TestRunner, bpffs};
use quilla_tests::bare_node;
use quilla_tests::netns::Netns;
use quilla_tests::sandbox;

use crate::model::Hook;
use crate::world::{OVERLAY_PORT, SNAT_PORTS, World};

pub(crate) const POD_DEVICES: [u32; 4] = [11, 12, 13, 14];
pub(crate) const UPLINK: u32 = 21;
pub(crate) const OVERLAY: u32 = 22;

/// A namespace with the devices; the caller must run inside it.
pub(crate) fn namespace(name: &str) -> Result<Netns> {
    bare_node::create(name, &POD_DEVICES, UPLINK, OVERLAY)
}

pub(crate) struct Rig {
    pub datapath: Datapath,
    runners: [TestRunner; 5],
    /// Backends that have a row, by id - 1, for each family.
    backends: [Vec<(SocketAddr, u8)>; 2],
    next_slot: u32,
}

impl Rig {
    /// Loads `object`, with its pins in a place named after the test.
    pub(crate) fn load(name: &str, object: &Object<'_>) -> Result<Self> {
        let bpffs = Path::new(sandbox::FILES).join(format!("bpf-{name}"));
        bpffs::mount(&bpffs)?;
        let options = Options { bpffs, flow_capacity: 65_536, trace: true, ..Options::default() };
        let datapath = Datapath::open_object(object, &options).context("load the object")?;
        let runner = |name| TestRunner::new(&datapath, name);
        let runners = [
            runner(program::FROM_POD)?,
            runner(program::TO_POD)?,
            runner(program::FROM_OVERLAY)?,
            runner(program::TO_OVERLAY)?,
            runner(program::FROM_UPLINK)?,
        ];
        Ok(Self { datapath, runners, backends: Default::default(), next_slot: 0 })
    }

    /// One packet through the program of its hook.
    pub(crate) fn run(&mut self, world: &World, hook: Hook, frame: &[u8]) -> Result<Outcome<'_>> {
        let (program, ifindex, tunnel) = match hook {
            Hook::FromPod(pod) => (0, world.pods[pod].ifindex, 0),
            Hook::ToPod(pod) => (1, world.pods[pod].ifindex, 0),
            Hook::FromOverlay(peer) => {
                let source = peer.map_or([192, 168, 77, 222], |peer| world.peers[peer].underlay.octets());
                (2, world.overlay, u32::from_ne_bytes(source))
            }
            Hook::ToOverlay => (3, world.overlay, 0),
            Hook::FromUplink => (4, world.uplink, 0),
        };
        let context = TestContext { ifindex, cb: [0, 0, 0, 0, tunnel], ..TestContext::default() };
        Ok(self.runners[program].run(frame, &context)?)
    }

    /// Replaces what the maps hold by this world, and forgets all flows.
    pub(crate) fn install(&mut self, world: &World) -> Result<()> {
        self.clear()?;
        self.routes(world)?;
        self.parties(world)?;
        for (number, service) in (1..).zip(&world.services) {
            let mut ids = Vec::new();
            for &backend in &service.backends {
                ids.push(self.backend(backend, service.proto)?);
            }
            self.service(number, service.frontend, service.proto, &ids)?;
        }
        let maps = self.datapath.maps();
        maps.config.set(0, &config(world))?;
        let global = maps.epochs.get(epoch::GLOBAL)?.unwrap_or_default();
        maps.epochs.set(epoch::GLOBAL, &(global + 1))?;
        Ok(())
    }

    /// Deletes an endpoint for good, in the order of design §4: Services first, then the row, then its generation.
    pub(crate) fn delete_backend(&mut self, world: &World, backend: SocketAddr, proto: u8) -> Result<()> {
        let family = usize::from(backend.is_ipv6());
        for (number, service) in (1..).zip(&world.services) {
            if service.proto == proto && service.backends.contains(&backend) {
                let mut ids = Vec::new();
                for &other in service.backends.iter().filter(|other| **other != backend) {
                    ids.push(self.backend(other, proto)?);
                }
                self.service(number, service.frontend, proto, &ids)?;
            }
        }
        let position = self.backends[family].iter().position(|known| *known == (backend, proto));
        let Some(id) = position.and_then(|position| u32::try_from(position + 1).ok()) else { return Ok(()) };
        self.backends[family][id as usize - 1].0.set_port(0);
        let maps = self.datapath.maps();
        let generation = match backend.ip() {
            IpAddr::V4(v4) => {
                maps.backend_ids_v4.remove(&backend_row(v4.octets(), backend.port(), proto))?;
                maps.backends_v4.set(id, &Backend::default())?;
                epoch::BACKENDS_V4 + id
            }
            IpAddr::V6(v6) => {
                maps.backend_ids_v6.remove(&backend_row(v6.octets(), backend.port(), proto))?;
                maps.backends_v6.set(id, &Backend::default())?;
                epoch::BACKENDS_V6 + id
            }
        };
        let value = maps.epochs.get(generation)?.unwrap_or_default();
        Ok(maps.epochs.set(generation, &(value + 1))?)
    }

    fn clear(&mut self) -> Result<()> {
        let maps = self.datapath.maps();
        macro_rules! empty {
            ($($table:ident),+) => {$({
                let keys: Vec<_> = maps.$table.entries()?.into_iter().map(|(key, _)| key).collect();
                maps.$table.remove_batch(&keys)?;
            })+};
        }
        empty!(
            flows_v4,
            flows_v6,
            services_v4,
            services_v6,
            backend_ids_v4,
            backend_ids_v6,
            endpoints_v4,
            endpoints_v6,
            interfaces,
            node_slots,
            routes_v4,
            routes_v6
        );
        for slot in 0..8 {
            maps.nodes.set(slot, &Node::default())?;
        }
        self.backends = Default::default();
        self.next_slot = 0;
        Ok(())
    }

    fn routes(&self, world: &World) -> Result<()> {
        let maps = self.datapath.maps();
        let mut rows = vec![
            ("10.244.1.0", 24, kind::LOCAL_PODS, 0),
            ("fd00:244:0:1::", 64, kind::LOCAL_PODS, 0),
            ("10.96.0.0", 16, kind::SERVICES, 0),
            ("fd00:96::", 112, kind::SERVICES, 0),
        ];
        rows.extend(
            [
                ("0.0.0.0", 8),
                ("127.0.0.0", 8),
                ("169.254.0.0", 16),
                ("240.0.0.0", 4),
                ("::", 128),
                ("::1", 128),
                ("fe80::", 10),
            ]
            .map(|(prefix, length)| (prefix, length, kind::UNROUTABLE, 0)),
        );
        let mut routes: Vec<(IpAddr, u32, u8, u32)> = rows
            .into_iter()
            .map(|(prefix, length, kind, slot)| Ok((prefix.parse()?, length, kind, slot)))
            .collect::<Result<_>>()?;
        for address in world.host.iter().chain(&world.gateway) {
            routes.push((*address, if address.is_ipv4() { 32 } else { 128 }, kind::HOST, 0));
        }
        for peer in &world.peers {
            let node = u8::try_from(peer.slot)?;
            let [v4, v6] = crate::world::pod_address(node, 0);
            routes.extend([(v4, 24, kind::REMOTE_PODS, peer.slot), (v6, 64, kind::REMOTE_PODS, peer.slot)]);
        }
        for (address, prefix_len, kind, slot) in routes {
            let route = Route { kind, pad: 0, node_slot: u16::try_from(slot)? };
            match address {
                IpAddr::V4(v4) => {
                    maps.routes_v4.insert(&RouteKey { prefix_len, addr: v4.octets() }, &route)?;
                }
                IpAddr::V6(v6) => {
                    maps.routes_v6.insert(&RouteKey { prefix_len, addr: v6.octets() }, &route)?;
                }
            }
        }
        Ok(())
    }

    fn parties(&self, world: &World) -> Result<()> {
        let maps = self.datapath.maps();
        for (id, pod) in (1..).zip(&world.pods) {
            let endpoint = Endpoint { ifindex: pod.ifindex, id, pod_mac: pod.mac, host_mac: pod.host_mac };
            let mut interface = Interface {
                id,
                pod_mac: pod.mac,
                flags: endpoint::flag::IPV4 | endpoint::flag::IPV6,
                ..Interface::default()
            };
            for address in pod.addresses {
                match address {
                    IpAddr::V4(v4) => {
                        interface.ipv4 = v4.octets();
                        maps.endpoints_v4.insert(&interface.ipv4, &endpoint)?;
                    }
                    IpAddr::V6(v6) => {
                        interface.ipv6 = v6.octets();
                        maps.endpoints_v6.insert(&interface.ipv6, &endpoint)?;
                    }
                }
            }
            maps.interfaces.insert(&pod.ifindex, &interface)?;
        }
        for peer in &world.peers {
            let row = Node {
                ipv4: peer.underlay.octets(),
                ipv6: [0; 16],
                flags: node::flag::IPV4,
                vtep_mac: peer.vtep_mac,
            };
            maps.nodes.set(peer.slot, &row)?;
            maps.node_slots.insert(&v4_mapped(row.ipv4), &peer.slot)?;
        }
        Ok(())
    }

    /// The id of a backend; its row is written when it is new.
    fn backend(&mut self, backend: SocketAddr, proto: u8) -> Result<u32> {
        let known = &mut self.backends[usize::from(backend.is_ipv6())];
        if let Some(position) = known.iter().position(|other| *other == (backend, proto)) {
            return Ok(u32::try_from(position + 1)?);
        }
        known.push((backend, proto));
        let id = u32::try_from(known.len())?;
        let maps = self.datapath.maps();
        match backend.ip() {
            IpAddr::V4(v4) => {
                let row = backend_row(v4.octets(), backend.port(), proto);
                maps.backends_v4.set(id, &row)?;
                maps.backend_ids_v4.insert(&row, &id)?;
            }
            IpAddr::V6(v6) => {
                let row = backend_row(v6.octets(), backend.port(), proto);
                maps.backends_v6.set(id, &row)?;
                maps.backend_ids_v6.insert(&row, &id)?;
            }
        }
        Ok(id)
    }

    /// Writes slots that nothing names yet, then the Service.
    fn service(&mut self, id: u32, frontend: SocketAddr, proto: u8, backends: &[u32]) -> Result<()> {
        let slot_base = self.next_slot;
        let slot_count = u32::try_from(backends.len())?;
        self.next_slot += slot_count;
        let maps = self.datapath.maps();
        for (slot, backend) in (slot_base..).zip(backends) {
            maps.slots.set(slot, backend)?;
        }
        let row = Service { id, slot_base, slot_count, affinity_seconds: 0, slow_start_seconds: 0, flags: 0 };
        let (port, scope) = (Be16::new(frontend.port()), scope::INTERNAL);
        match frontend.ip() {
            IpAddr::V4(v4) => {
                maps.services_v4.insert(&ServiceKey { addr: v4.octets(), port, proto, scope }, &row)?;
            }
            IpAddr::V6(v6) => {
                maps.services_v6.insert(&ServiceKey { addr: v6.octets(), port, proto, scope }, &row)?;
            }
        }
        Ok(())
    }
}

fn backend_row<A>(addr: A, port: u16, proto: u8) -> Backend<A> {
    Backend { addr, port: Be16::new(port), proto, pad: 0 }
}

fn config(world: &World) -> Config {
    let v4 = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => unreachable!("the first of a pair is IPv4"),
    };
    let v6 = |address: IpAddr| match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(_) => unreachable!("the second of a pair is IPv6"),
    };
    Config {
        schema: SCHEMA,
        flags: flag::MASQUERADE_V4 | flag::MASQUERADE_V6,
        uplink_ifindex: world.uplink,
        overlay_ifindex: world.overlay,
        vni: 7,
        hash_seed: 0x5eed,
        snat_port_min: *SNAT_PORTS.start(),
        snat_port_max: *SNAT_PORTS.end(),
        host_ipv4: v4(world.host[0]),
        host_ipv6: v6(world.host[1]),
        gateway_ipv4: v4(world.gateway[0]),
        gateway_ipv6: v6(world.gateway[1]),
        vtep_mac: world.vtep_mac,
        overlay_port: OVERLAY_PORT,
        frontend_port_min: 1,
        ..Config::default()
    }
}
