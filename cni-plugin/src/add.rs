//! ADD: reserve, wire, attach, answer. Nothing is printed before the agent made the endpoint effective, and a step
//! that fails undoes the ones before it.

use quilla_cni_protocol::{
    AddResult, CniError, Interface, IpConfig, NetworkConfig, Request, Reservation, Response, Route,
};

use crate::agent::{Agent, unexpected};
use crate::invocation::Target;
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::{check, del, host, log, pod};

/// Attaches the Pod and returns what the runtime is told.
pub(crate) fn run(target: &Target, config: &NetworkConfig) -> Result<AddResult, CniError> {
    let previous = config.prev_result.as_ref().map(AddResult::decode).transpose()?.unwrap_or_default();
    let netns = Netns::open(&target.netns)?;
    let mut agent = Agent::connect(config)?;
    let reservation = match reserve(&mut agent, target, config)? {
        Response::Reserved(reservation) => reservation,
        // The runtime lost our answer and asks again: the identical result, if it is still true.
        Response::Attached(reservation) => {
            check::require_effective(&netns, &target.attachment.ifname, &reservation)?;
            return Ok(previous.merge(describe(target, config, &reservation)));
        }
        other => return Err(unexpected(&other)),
    };
    if let Err(error) = wire(&mut agent, &netns, target, config, &reservation) {
        undo(agent, target, config);
        return Err(error);
    }
    Ok(previous.merge(describe(target, config, &reservation)))
}

fn reserve(agent: &mut Agent, target: &Target, config: &NetworkConfig) -> Result<Response, CniError> {
    agent.ask(Request::Reserve {
        attachment: target.attachment.clone(),
        network: config.name.clone(),
        netns: target.netns.clone(),
        pod: target.pod.clone(),
    })
}

fn wire(
    agent: &mut Agent,
    netns: &Netns,
    target: &Target,
    config: &NetworkConfig,
    reservation: &Reservation,
) -> Result<(), CniError> {
    let ifname = &target.attachment.ifname;
    let mut netlink = Netlink::open()?;
    host::create(&mut netlink, netns, ifname, mtu(config, reservation), reservation)?;
    let netns_cookie = pod::configure(netns, ifname, reservation)?;
    let host_ifindex = host::configure(&mut netlink, reservation)?;
    agent.ask_done(Request::Attach { attachment: target.attachment.clone(), host_ifindex, netns_cookie })
}

/// The operator's MTU, or else the agent's.
fn mtu(config: &NetworkConfig, reservation: &Reservation) -> u32 {
    config.mtu.unwrap_or(reservation.mtu)
}

/// Undoes a half-done ADD. A DEL in all but name, over the connection that holds the reservation; what cannot be undone
/// now is left to the DEL that follows every failed ADD.
fn undo(agent: Agent, target: &Target, config: &NetworkConfig) {
    if let Err(error) = del::detach(&target.attachment, config, Some(agent)) {
        log::notice(&format!("undo: {error}"));
    }
}

/// The result: both interfaces, one address per family, the default routes.
fn describe(target: &Target, config: &NetworkConfig, reservation: &Reservation) -> AddResult {
    let interface = |name: &str, mac, sandbox| Interface {
        name: name.to_owned(),
        mac: Some(mac),
        mtu: Some(mtu(config, reservation)),
        sandbox,
        socket_path: None,
        pci_id: None,
    };
    let sandbox = target.netns.to_string_lossy().into_owned();
    AddResult {
        interfaces: vec![
            interface(&reservation.host_ifname, reservation.host_mac, None),
            interface(&target.attachment.ifname, reservation.pod_mac, Some(sandbox)),
        ],
        ips: reservation
            .leases
            .iter()
            .map(|lease| IpConfig {
                address: lease.address.into(),
                gateway: Some(lease.gateway),
                interface: Some(1),
            })
            .collect(),
        routes: reservation
            .leases
            .iter()
            .map(|lease| Route {
                dst: if lease.address.is_ipv4() { DEFAULT_IPV4 } else { DEFAULT_IPV6 },
                gw: Some(lease.gateway),
                mtu: None,
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            })
            .collect(),
        dns: config.dns.clone(),
    }
}

const DEFAULT_IPV4: ipnet::IpNet =
    ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0));
const DEFAULT_IPV6: ipnet::IpNet =
    ipnet::IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0));
