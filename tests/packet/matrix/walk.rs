//! Goes the ways of the matrix: plans its Services, installs them, sends what each client sends, and compares what comes
//! out. Clients on the node itself are translated in their sockets, so they are real ones.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use quilla_abi::service::Service as Row;
use quilla_abi::{DropReason, epoch};
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family as ModelFamily, Node, ObjectName, Protocol, Service,
    ServicePort, ServiceType, Snapshot, TrafficPolicy,
};
use quilla_plan::{Desired, NodeFacts, plan};
use quilla_tests::cgroup::Cgroup;
use quilla_tests::packet::{Packet, decode, tcp};
use quilla_tests::sandbox::Sandbox;

use super::{CASES, Case, Client, Endpoints, Flow, Front, Outcome, Source, To};
use crate::rig::{DEVICE_A, Family, Hook, NODE_PORT, Rig, Seen, TCP, Who, from_a, namespace, tell};
use crate::sockets::be;

const TARGET: u16 = 8080;
/// Connections per flow: two backends that share them are both met, but once in 2^31 times.
const TRIES: u16 = 32;

/// S25, S26, S30-S35: Pods and clients outside, one frame at a time.
pub(crate) fn packets() -> Result<()> {
    tell("matrix", |rig, family| {
        install(rig, family)?;
        let walked = walk(
            |flow| !of_node(flow.0),
            |number, case, flow| {
                let ask = |port| ask_by_packet(rig, family, (number, case, flow), port);
                met(flow.3, ask)
            },
        )?;
        ensure!(walked == 25, "{walked} flows");
        Ok(())
    })
}

/// S25, S26, S30-S32, S35, S36: processes of the node. The kernel gives them the address of the way to the backend,
/// because the socket is translated before it looks for one.
pub(crate) fn sockets() -> Result<()> {
    let netns = namespace("matrix-node")?;
    for family in Family::BOTH {
        let host = family.ip(Who::Host);
        for who in [Who::PodB, Who::Remote] {
            netns.ip(&format!("route add local {} dev lo src {host}", family.ip(who)))?;
        }
    }
    let cgroup = Cgroup::create(&Sandbox::current()?.cgroup().join("matrix"))?;
    netns.run(|| {
        let mut rig = Rig::load("matrix-node", false)?;
        rig.datapath.attach_sockets(cgroup.path())?;
        be(&rig, true)?;
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, TARGET))?;
        for family in Family::BOTH {
            install(&mut rig, family)?;
            // Node ports at the loopback are of IPv4 only, as kube-proxy's.
            let (v4, expected) = (family == Family::V4, if family == Family::V4 { 13 } else { 10 });
            let wanted = |flow: &Flow| of_node(flow.0) && (v4 || flow.0 != Client::Localhost);
            let walked = walk(wanted, |number, _, flow| {
                met(flow.3, |_| ask_by_socket(&cgroup, &listener, family, (number, flow)))
            })?;
            ensure!(walked == expected, "{walked} flows");
        }
        rig.datapath.detach_sockets()?;
        Ok(())
    })?
}

/// S37: a Pod of this node is who sends by a veth that we made, whatever its address; nobody else is, whatever theirs.
pub(crate) fn local_pods() -> Result<()> {
    tell("matrix-local", |rig, family| {
        install(rig, family)?;
        // Its only endpoint is on the other node, and clients outside are subject to the policy.
        let vip = family.at(Who::Vip(3), 80);
        let remote = family.at(Who::Remote, TARGET);
        let of_pod = Packet::tcp(family.at(Who::PodA, 40_000), vip).flags(tcp::SYN);
        let abroad = Packet::tcp(family.at(Who::World, 40_000), vip).flags(tcp::SYN);
        let served = |seen: &Seen, opening: &Packet, client| {
            seen.to_other_node(&opening.clone().between(client, remote).ttl(63));
        };
        let seen = rig.run(Hook::FromPodA, &from_a(of_pod.clone()));
        served(&seen, &of_pod, family.at(Who::PodA, 40_000));
        rig.run(Hook::FromUplink, &of_pod).dropped(DropReason::SpoofedAddress);
        rig.run(Hook::FromUplink, &abroad).dropped(DropReason::NoLocalBackend);
        // A Pod with an address out of nobody's range.
        let maps = rig.datapath.maps();
        let mut pod = maps.interfaces.get(&DEVICE_A)?.context("Pod A's device")?;
        let endpoint = maps.endpoints_v4.get(&pod.ipv4)?.context("Pod A")?;
        match family.ip(Who::World) {
            IpAddr::V4(address) => {
                pod.ipv4 = address.octets();
                maps.endpoints_v4.insert(&pod.ipv4, &endpoint)?;
            }
            IpAddr::V6(address) => {
                pod.ipv6 = address.octets();
                maps.endpoints_v6.insert(&pod.ipv6, &endpoint)?;
            }
        }
        maps.interfaces.insert(&DEVICE_A, &pod)?;
        rig.bump(epoch::GLOBAL)?;
        let seen = rig.run(Hook::FromPodA, &from_a(abroad.clone()));
        served(&seen, &abroad, family.at(Who::World, 40_000));
        rig.run(Hook::FromUplink, &abroad).dropped(DropReason::NoLocalBackend);
        // A veth that nobody made a Pod's.
        rig.datapath.maps().interfaces.remove(&DEVICE_A)?;
        rig.run(Hook::FromPodA, &from_a(of_pod)).dropped(DropReason::UnknownInterface);
        Ok(())
    })
}

fn of_node(client: Client) -> bool {
    matches!(client, Client::Node | Client::Localhost)
}

/// Every flow that is asked for; how many those were.
fn walk(
    wanted: impl Fn(&Flow) -> bool,
    mut ask: impl FnMut(u8, &Case, &Flow) -> Result<()>,
) -> Result<usize> {
    let mut walked = 0;
    for (number, case) in (0..).zip(&CASES) {
        for flow in case.flows.iter().filter(|flow| wanted(flow)) {
            let what = format!("{}: {:?} to {:?}", case.what, flow.0, flow.1);
            ensure!(flow.agrees() == flow.4.is_empty(), "{what}: a difference and its reason go together");
            ask(number, case, flow).context(what)?;
            walked += 1;
        }
    }
    Ok(walked)
}

/// Asks often enough to meet every backend; checks the source at each, and who they were together.
fn met((to, source): Outcome, mut ask: impl FnMut(u16) -> Result<Outcome>) -> Result<()> {
    let mut seen: Vec<To> = Vec::new();
    for port in 0..TRIES {
        let (who, shown) = ask(port)?;
        let expected = match (source, who) {
            (Source::GatewayIfFar, To::There) => Source::Gateway,
            (Source::GatewayIfFar, _) => Source::Kept,
            _ => source,
        };
        ensure!(shown == expected, "{who:?} sees {shown:?}, not {expected:?}");
        if !seen.contains(&who) {
            seen.push(who);
        }
    }
    let found = match seen[..] {
        [To::Here, To::There] | [To::There, To::Here] => To::Any,
        [only] => only,
        _ => anyhow::bail!("met {seen:?}"),
    };
    ensure!(found == to, "answered by {found:?}, not {to:?}");
    Ok(())
}

/// The address and port by which a client asks for the Service of a case.
fn front(family: Family, number: u8, flow: &Flow) -> SocketAddr {
    match (flow.1, flow.0) {
        (Front::ClusterIp, _) => family.at(Who::Service(40 + number), 80),
        (Front::Balancer, _) => family.at(Who::Vip(1 + number), 80),
        (Front::NodePort, Client::Localhost) => (Ipv4Addr::LOCALHOST, node_port(number)).into(),
        (Front::NodePort, _) => family.at(Who::Host, node_port(number)),
    }
}

fn node_port(number: u8) -> u16 {
    NODE_PORT + 80 + u16::from(number)
}

fn ask_by_packet(
    rig: &mut Rig,
    family: Family,
    (number, case, flow): (u8, &Case, &Flow),
    port: u16,
) -> Result<Outcome> {
    let inside = flow.0 == Client::Pod;
    let client = family.at(if inside { Who::PodA } else { Who::World }, 40_000 + port);
    let opening = Packet::tcp(client, front(family, number, flow)).flags(tcp::SYN);
    let seen = if inside {
        rig.run(Hook::FromPodA, &from_a(opening.clone()))
    } else {
        rig.run(Hook::FromUplink, &opening)
    };
    match seen.reason {
        Some(DropReason::NotAService) => return Ok((To::NoService, Source::Kept)),
        Some(DropReason::NoLocalBackend) => return Ok((To::Dropped, Source::Kept)),
        reason => ensure!(reason.is_none(), "dropped: {reason:?}"),
    }
    let (from, to) = ends(&seen, family)?;
    let source = match from.ip() {
        ip if ip == client.ip() => Source::Kept,
        ip if ip == family.ip(Who::Gateway) => Source::Gateway,
        ip if ip == family.ip(Who::Host) => Source::Host,
        ip => anyhow::bail!("nobody's address: {ip}"),
    };
    // Delivered where it is addressed to, whole.
    let expected = opening.between(from, to).ttl(63);
    if to == family.at(Who::Remote, TARGET) {
        seen.to_other_node(&expected);
        return Ok((To::There, source));
    }
    if case.endpoints == Endpoints::Itself {
        seen.to_pod_a(&expected);
    } else {
        seen.to_pod_b(&expected);
    }
    Ok((To::Here, source))
}

/// Both ends of the connection as the frame says now.
fn ends(seen: &Seen, family: Family) -> Result<(SocketAddr, SocketAddr)> {
    let decoded = decode(seen.frame());
    let layer = if family == Family::V4 { "ipv4" } else { "ipv6" };
    let end = |ip: &str, port: &str| -> Result<SocketAddr> {
        let field = |name: &str| decoded.get(name).map(str::to_owned).with_context(|| format!("{decoded}"));
        let ip: IpAddr = field(&format!("{layer}.{ip}"))?.parse()?;
        Ok(SocketAddr::new(ip, field(&format!("tcp.{port}"))?.parse()?))
    };
    Ok((end("src", "sport")?, end("dst", "dport")?))
}

fn ask_by_socket(
    cgroup: &Cgroup,
    listener: &TcpListener,
    family: Family,
    (number, flow): (u8, &Flow),
) -> Result<Outcome> {
    let front = front(family, number, flow);
    let members = cgroup.path().join("cgroup.procs");
    let dial = format!("echo $$ > {} && exec 3<>/dev/tcp/{}/{}", members.display(), front.ip(), front.port());
    let output = Command::new("bash").args(["-c", &dial]).output().context("run bash")?;
    ensure!(output.status.success(), "{front}: {}", String::from_utf8_lossy(&output.stderr));
    let (connection, peer) = listener.accept()?;
    let server = connection.local_addr()?.ip().to_canonical();
    let to = if server == family.ip(Who::PodB) { To::Here } else { To::There };
    ensure!(to == To::Here || server == family.ip(Who::Remote), "{server} answers");
    let source = peer.ip().to_canonical();
    ensure!(source == family.ip(Who::Host), "seen as {source}");
    Ok((to, Source::Host))
}

/// Plans the Services of all cases and writes the family's frontends.
fn install(rig: &mut Rig, family: Family) -> Result<()> {
    let desired = planned();
    let (mut ids, mut marked) = (Vec::new(), BTreeSet::new());
    for (key, frontend) in desired.frontends.iter() {
        if key.address.is_ipv4() != (family == Family::V4) {
            continue;
        }
        let set = &desired.sets[&frontend.set];
        let known = ids.iter().position(|other| other == &frontend.set).unwrap_or_else(|| {
            ids.push(Arc::clone(&frontend.set));
            ids.len() - 1
        });
        let row =
            Row { id: 100 + u32::try_from(known)?, flags: set.flags | frontend.flags, ..Row::default() };
        let members = set.members.iter().map(|member| member.backend);
        let members: Vec<_> = members.map(|one| SocketAddr::new(one.address, one.port)).collect();
        rig.serve((SocketAddr::new(key.address, key.port), TCP), key.scope, row, &members)?;
    }
    for (marker, ()) in desired.markers.iter() {
        if marker.address.is_ipv4() == (family == Family::V4) && marked.insert(*marker) {
            rig.mark(marker.address, marker.scope)?;
        }
    }
    Ok(())
}

fn planned() -> Desired {
    let of_both = |who| Family::BOTH.map(|family| family.ip(who)).to_vec();
    let mut snapshot = Snapshot::default();
    for (name, who, number) in [("here", Who::Host, 1), ("there", Who::OtherNode, 2)] {
        let pod_cidrs = [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")];
        let node = Node {
            name: name.into(),
            addresses: of_both(who),
            pod_cidrs: pod_cidrs.iter().map(|cidr| cidr.parse().expect("a prefix")).collect(),
            zone: None,
            leaving: false,
        };
        snapshot.nodes.insert(name.into(), Arc::new(node));
    }
    for (number, case) in (0..).zip(&CASES) {
        let service = service(number, case);
        let slices = snapshot.slices.or_default(service.name.clone());
        for family in Family::BOTH {
            let slice = slice(&service.name, family, case.endpoints);
            slices.insert(slice.name.name.clone(), Arc::new(slice));
        }
        snapshot.services.insert(service.name.clone(), Arc::new(service));
    }
    let facts = NodeFacts { addresses: of_both(Who::Host), ..NodeFacts::new("here") };
    let (desired, problems) = plan(&snapshot, &facts);
    assert!(problems.is_empty(), "{problems:?}");
    desired
}

fn service(number: u8, case: &Case) -> Service {
    let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    let of_both = |who| Family::BOTH.map(|family| family.ip(who)).to_vec();
    Service {
        kind: ServiceType::LoadBalancer,
        cluster_ips: of_both(Who::Service(40 + number)),
        load_balancer_ips: of_both(Who::Vip(1 + number)),
        ports: vec![ServicePort {
            name: "".into(),
            port: 80,
            protocol: Protocol::Tcp,
            node_port: Some(node_port(number)),
        }],
        internal_policy: policy(case.internal_local),
        external_policy: policy(case.external_local),
        ..Service::new(ObjectName::new("shop", format!("service-{number}")))
    }
}

fn slice(service: &ObjectName, family: Family, endpoints: Endpoints) -> EndpointSlice {
    let endpoints = match endpoints {
        Endpoints::Both => vec![(Who::PodB, "here"), (Who::Remote, "there")],
        Endpoints::Far => vec![(Who::Remote, "there")],
        Endpoints::Itself => vec![(Who::PodA, "here")],
    };
    let endpoint = |(who, node): (Who, &str)| Endpoint {
        address: family.ip(who),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        hints: None,
        pod: None,
    };
    EndpointSlice {
        name: ObjectName::new("shop", format!("{}-{family:?}", service.name)),
        service: service.clone(),
        family: if family == Family::V4 { ModelFamily::V4 } else { ModelFamily::V6 },
        ports: vec![EndpointPort { name: "".into(), port: TARGET, protocol: Protocol::Tcp }],
        endpoints: endpoints.into_iter().map(endpoint).collect(),
        weight: 1,
    }
}
