//! Random packets that have something to do with one another.
//!
//! Purely random bytes would all be dropped by the first check. Packets are drawn from few addresses and ports, so
//! that connections are continued, answered, closed, reused and collide; some are then damaged.

use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;

use crate::cluster::{NODE_PORTS, SERVICES, VIRTUAL};
use crate::frame::{Piece, arp, damage, frame, is_told_elsewhere, report};
use crate::model::{Hook, Model};
use crate::plain::Plain;
use crate::service::Side;
use crate::tunnel::Outer;
use crate::wire::{Frame, ICMP, ICMPV6, TCP, Tuple, UDP, read};
use crate::world::{World, service_address, virtual_address};

/// A frame and where it is to arrive.
#[derive(Clone, Debug)]
pub(crate) struct Stimulus {
    pub hook: Hook,
    pub frame: Vec<u8>,
    pub carriage: Carriage,
}

/// How a packet of another node arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Carriage {
    /// Taken out of its tunnel by the overlay device; or it is no packet of another node.
    None,
    /// In one that the programs are to take it out of.
    Tunnel(Outer),
    Plain(Plain),
}

/// What the next packet may continue: the tuple with which the answer to an earlier packet would arrive, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Continuation {
    pub hook: Hook,
    pub tuple: Tuple,
}

const CLIENT_PORTS: [u16; 6] = [53, 80, 1024, 1025, 40_000, 61_001];
const SERVER_PORTS: [u16; 8] = [53, 80, 53, 80, 8080, 8472, 443, 30_000];

/// What a Pod sends by way of the stack it does not send past it, too: these have higher ports.
const BY_STACK: u16 = 1_000;

/// Where a Pod's packets from this port arrive.
pub(crate) fn hook_of(pod: usize, port: u16) -> Hook {
    if CLIENT_PORTS.contains(&port.wrapping_sub(BY_STACK)) {
        Hook::ToUplink(Some(pod))
    } else {
        Hook::FromPod(pod)
    }
}

fn seems_by_stack(hook: Hook, frame: &[u8]) -> bool {
    let Hook::FromPod(pod) = hook else { return false };
    matches!(read(frame), Frame::Ip(headers) if hook_of(pod, headers.tuple.sport) != hook)
}

/// A piece that would begin a connection, of which it shows nothing; one that is too big and would do so; or a last hop on which nobody can see whether it
/// ended, or began a connection to an endpoint that is the Service's own address and port: it looks the same.
fn is_unclear(model: &Model, stimulus: &Stimulus) -> bool {
    let Frame::Ip(headers) = read(&stimulus.frame) else { return false };
    // On an uplink it may be another node's as well as the world's.
    let by_uplink = matches!(stimulus.carriage, Carriage::Plain(_));
    if model.is_orphan(stimulus.hook, &headers)
        || (by_uplink && model.is_orphan(Hook::FromUplink, &headers))
        || (stimulus.hook == Hook::FromUplink && model.is_orphan(Hook::FromOverlay(None), &headers))
        || model.hides_its_choice(stimulus.hook, &headers, &stimulus.frame)
    {
        return true;
    }
    let Hook::FromPod(_) = stimulus.hook else { return false };
    let Tuple { dst, dport, proto, .. } = headers.tuple;
    let frontend = model.world.services.frontend(Side::Inside, dst, dport, proto);
    let itself = SocketAddr::new(dst, dport);
    stimulus.frame[headers.ttl_at] <= 1 && frontend.is_some_and(|found| found.backends.contains(&itself))
}

#[derive(Default)]
pub(crate) struct Generator {
    /// Recent packets and their answers, overwritten at random.
    history: Vec<Continuation>,
    /// A datagram of which only the first piece was sent, and its identification.
    begun: Option<(Continuation, u8)>,
    /// Counts changes of the cluster: a later piece shows no ports, so one that would have to choose some anew is
    /// not made. Identifications tell what was begun before the last change.
    age: u8,
    /// Whatever was begun before this is too old to be completed.
    expired: u8,
}

/// Identifications between two changes.
const IDS: u8 = 4;

impl Generator {
    /// Remembers something worth continuing.
    pub(crate) fn learn(&mut self, rng: &mut Rng, continuation: Continuation) {
        if self.history.len() < 64 {
            self.history.push(continuation);
        } else {
            self.history[rng.usize(0..64)] = continuation;
        }
    }

    /// The cluster has changed; time may have passed, too.
    pub(crate) fn settle(&mut self, time_passed: bool) {
        self.age += 1;
        self.begun = None;
        if time_passed {
            self.expired = self.age;
        }
    }

    pub(crate) fn next(&mut self, model: &Model, rng: &mut Rng) -> Stimulus {
        loop {
            let (hook, frame) = self.make(&model.world, rng);
            let carriage = carriage(&model.world, rng, hook, &frame);
            let stimulus = Stimulus { hook, frame, carriage };
            if !is_unclear(model, &stimulus) {
                return stimulus;
            }
        }
    }

    fn make(&mut self, world: &World, rng: &mut Rng) -> (Hook, Vec<u8>) {
        let continuation = self.choose(world, rng);
        let Continuation { hook, tuple } = continuation;
        let from_stack = hook.is_egress();
        let mut frame = match (rng.u8(0..24), self.begun.take()) {
            (0..=15, Some((begun, id))) => {
                return (begun.hook, frame(world, rng, begun.hook, begun.tuple, Piece::Later(id)));
            }
            (16, _) => {
                let id = self.age * IDS + rng.u8(0..IDS);
                self.begun = Some((continuation, id));
                frame(world, rng, hook, tuple, Piece::First(id))
            }
            (17, _) => {
                let age = if self.expired > 0 && rng.bool() { self.expired - 1 } else { self.age };
                let id = age * IDS + rng.u8(0..IDS);
                frame(world, rng, hook, tuple, Piece::Later(id))
            }
            (19, _)
                if rng.u8(0..4) == 0
                    && let Hook::FromPod(pod) = hook =>
            {
                arp(world, rng, pod)
            }
            (18, _) if (tuple.sport, tuple.dport) != (0, 0) => report(world, rng, hook, tuple),
            (20, _) if rng.u8(0..4) == 0 => {
                let may_be_cut = rng.bool();
                frame(world, rng, hook, tuple, Piece::Long { may_be_cut })
            }
            _ => frame(world, rng, hook, tuple, Piece::Whole),
        };
        // The host's own stack makes no damaged packets.
        if rng.u8(0..12) == 0 && !from_stack {
            let whole = frame.clone();
            damage(rng, &mut frame);
            if is_told_elsewhere(&frame) || seems_by_stack(hook, &frame) {
                frame = whole;
            }
        }
        (hook, frame)
    }

    /// Something known, or something new.
    fn choose(&self, world: &World, rng: &mut Rng) -> Continuation {
        match self.history.len() {
            0 => fresh(world, rng),
            known if rng.u8(0..10) < 6 => self.history[rng.usize(0..known)],
            _ => fresh(world, rng),
        }
    }
}

/// What another node sends comes by any way; a test run knows the far end of the device's tunnels over IPv4 only.
fn carriage(world: &World, rng: &mut Rng, hook: Hook, frame: &[u8]) -> Carriage {
    if let Some(plain) = Plain::random(world, rng, hook, frame) {
        return Carriage::Plain(plain);
    }
    match world.tunnels.filter(|_| matches!(hook, Hook::FromOverlay(_))) {
        Some(family) if family == 1 || rng.u8(0..4) != 0 => Carriage::Tunnel(Outer::random(rng)),
        _ => Carriage::None,
    }
}

fn fresh(world: &World, rng: &mut Rng) -> Continuation {
    let family = rng.usize(0..2);
    let pod = rng.usize(0..world.pods.len());
    let own = world.pods[pod].addresses[family];
    let (hook, src, dst) = match rng.u8(0..24) {
        0..=10 => (Hook::FromPod(pod), own, somebody_else(world, rng, family, own)),
        11 | 12 => from_overlay(world, rng, family, own),
        13 | 14 => (Hook::ToPod(pod), host_address(world, rng, family), own),
        15 => (Hook::ToOverlay, world.gateway[family], routed_to_overlay(world, rng, family)),
        16 => (Hook::ToUplink(Some(pod)), own, any_address(world, rng, family)),
        17 => by_node(world, rng, family),
        _ => (Hook::FromUplink, outside(world, rng, family), from_outside(world, rng, family)),
    };
    let proto = [TCP, TCP, TCP, UDP, UDP, if family == 0 { ICMP } else { ICMPV6 }, 132][rng.usize(0..7)];
    let is_node = world.is_host(dst) || dst.is_loopback();
    let ports = if is_node && rng.u8(0..4) != 0 { &NODE_PORTS[..] } else { &SERVER_PORTS };
    let mut tuple = Tuple {
        src,
        dst,
        sport: rng.choice(CLIENT_PORTS).expect("not empty"),
        dport: ports[rng.usize(0..ports.len())],
        proto,
    };
    if hook == Hook::ToUplink(Some(pod)) {
        tuple.sport += BY_STACK;
    }
    if matches!(hook, Hook::FromPod(_) | Hook::FromUplink)
        && rng.u8(0..3) == 0
        && let Some((dst, dport, proto)) = somebody_serving(world, rng, family)
    {
        tuple = Tuple { dst, dport, proto, ..tuple };
    }
    match tuple.proto {
        ICMP | ICMPV6 => tuple.dport = 0,
        TCP | UDP => {}
        _ => (tuple.sport, tuple.dport) = (0, 0),
    }
    Continuation { hook, tuple }
}

/// An address and port of a Service or of a Pod on its node.
fn somebody_serving(world: &World, rng: &mut Rng, family: usize) -> Option<(IpAddr, u16, u8)> {
    if rng.u8(0..8) == 0 {
        let ports = world.pods.iter().flat_map(|pod| &pod.host_ports).collect::<Vec<_>>();
        let port = rng.choice(ports)?;
        return Some((host_address(world, rng, family), port.host_port, port.protocol.number()));
    }
    let service = rng.choice(world.snapshot.services.values().collect::<Vec<_>>())?;
    let port = rng.choice(&service.ports)?;
    let addresses = [&service.cluster_ips, &service.load_balancer_ips, &service.external_ips];
    let mut places: Vec<(IpAddr, u16)> =
        addresses.into_iter().flatten().map(|address| (*address, port.port)).collect();
    places.extend(port.node_port.map(|number| (world.host[family], number)));
    places.retain(|(address, _)| crate::world::family(*address) == family);
    let (address, number) = rng.choice(places)?;
    Some((address, number, port.protocol.number()))
}

/// What the node itself sends to the world, and by its own routes to Pods of other nodes.
fn by_node(world: &World, rng: &mut Rng, family: usize) -> (Hook, IpAddr, IpAddr) {
    let peer = &world.peers[rng.usize(0..world.peers.len())];
    if world.is_native(peer, family) && rng.bool() {
        let pod = peer.pods[rng.usize(0..peer.pods.len())];
        return (Hook::ToUplink(None), world.gateway[family], pod[family]);
    }
    (Hook::ToUplink(None), world.host[family], world.outside[family * 2])
}

/// The host's routes lead to the overlay device for other nodes' Pods only, and for nobody it knows.
fn routed_to_overlay(world: &World, rng: &mut Rng, family: usize) -> IpAddr {
    if rng.u8(0..8) == 0 {
        return service_address(250)[family];
    }
    let pods = &world.peers[rng.usize(0..world.peers.len())].pods;
    pods[rng.usize(0..pods.len())][family]
}

/// A Pod's packets to its own address never leave its namespace.
fn somebody_else(world: &World, rng: &mut Rng, family: usize, own: IpAddr) -> IpAddr {
    // The host's stack never routes there, so nobody else asks for it.
    if rng.u8(0..64) == 0 {
        return ["192.168.77.255", "fd00:77::"][family].parse().expect("an address");
    }
    loop {
        let address = any_address(world, rng, family);
        if address != own {
            return address;
        }
    }
}

fn from_overlay(world: &World, rng: &mut Rng, family: usize, own: IpAddr) -> (Hook, IpAddr, IpAddr) {
    let peer = rng.usize(0..world.peers.len());
    let claimed = &world.peers[rng.usize(0..world.peers.len())].pods;
    let src = claimed[rng.usize(0..claimed.len())][family];
    let dst = if rng.u8(0..4) == 0 { any_address(world, rng, family) } else { own };
    (Hook::FromOverlay((rng.u8(0..12) != 0).then_some(peer)), src, dst)
}

fn host_address(world: &World, rng: &mut Rng, family: usize) -> IpAddr {
    [world.host, world.gateway, world.host, world.second][rng.usize(0..4)][family]
}

/// A client outside; seldom one that says it is of the cluster.
fn outside(world: &World, rng: &mut Rng, family: usize) -> IpAddr {
    match rng.u8(0..16) {
        0 => world.peers[0].pods[0][family],
        1 => world.peers[0].addresses[family],
        2 => [world.pods[0].addresses, world.host, world.gateway, crate::world::pod_address(1, 200)]
            [rng.usize(0..4)][family],
        _ => world.outside[family * 2 + rng.usize(0..2)],
    }
}

/// What somebody outside may speak to.
fn from_outside(world: &World, rng: &mut Rng, family: usize) -> IpAddr {
    match rng.u8(0..8) {
        0..=2 => virtual_address(rng.u8(1..=VIRTUAL))[family],
        3..=5 => world.host[family],
        _ => any_address(world, rng, family),
    }
}

fn any_address(world: &World, rng: &mut Rng, family: usize) -> IpAddr {
    match rng.u8(0..40) {
        32..=35 => virtual_address(rng.u8(1..=VIRTUAL))[family],
        26 | 36..=38 => host_address(world, rng, family),
        39 => ["127.0.0.1", "::1"][family].parse().expect("an address"),
        0..=12 => service_address(rng.u8(1..=SERVICES))[family],
        13..=18 => world.pods[rng.usize(0..world.pods.len())].addresses[family],
        19..=23 => {
            let pods = &world.peers[rng.usize(0..world.peers.len())].pods;
            pods[rng.usize(0..pods.len())][family]
        }
        24 | 25 => world.outside[family * 2 + rng.usize(0..2)],
        27 => crate::world::pod_address(1, 200)[family],
        28 => crate::world::pod_address(2, 250)[family],
        29 => service_address(250)[family],
        30 => ["224.0.0.5", "ff02::5"][family].parse().expect("an address"),
        _ => ["169.254.169.254", "fe80::1234"][family].parse().expect("an address"),
    }
}
