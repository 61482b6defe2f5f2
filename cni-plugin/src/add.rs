//! ADD: reserve, wire, attach, answer. Nothing is printed before the agent made the endpoint effective, and a step
//! that fails undoes the ones before it.

use quilla_cni_protocol::{
    AddResult, CniError, Dns, Given, Interface, IpConfig, Lease, NetworkConfig, Request, Reservation,
    Response, Route, Wanted, failpoint,
};
use serde_json::Value;

use crate::agent::{Agent, unexpected};
use crate::chained::Chained;
use crate::invocation::Target;
use crate::ipam::{Allocation, Delegate};
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::wishes::Wishes;
use crate::{bandwidth, check, del, host, log, pod};

/// An ADD at work.
#[derive(Debug)]
struct Add<'a> {
    target: &'a Target,
    config: &'a NetworkConfig,
    ipam: Option<&'a Delegate<'a>>,
    wishes: Wishes,
    netns: Netns,
}

/// Attaches the Pod and returns what the runtime is told.
pub(crate) fn run(
    target: &Target,
    config: &NetworkConfig,
    ipam: Option<&Delegate<'_>>,
) -> Result<Value, CniError> {
    let previous = config.prev_result.as_ref().map(AddResult::decode).transpose()?.unwrap_or_default();
    let wishes = Wishes::read(config, &target.args)?;
    let netns = Netns::open(&target.netns)?;
    failpoint!(AddStarted);
    let chained = Chained::find(&previous, &netns, &target.attachment.ifname)?;
    let agent = Agent::connect(config)?;
    failpoint!(AddConnected);
    let add = Add { target, config, ipam, wishes, netns };
    match chained {
        Some(chained) => {
            add.adopt(agent, chained)?;
            // CNI-13: we changed nothing that it tells of.
            Ok(config.prev_result.clone().unwrap_or_default())
        }
        None => Ok(previous.merge(add.attach(agent)?).encode(config.version)),
    }
}

impl Add<'_> {
    /// Makes the interface, with addresses of the agent or of the IPAM plugin.
    fn attach(&self, mut agent: Agent) -> Result<AddResult, CniError> {
        let Some(ipam) = self.ipam else { return self.connect(agent, None) };
        // An IPAM plugin takes a second ADD for a mistake: ask first whether there was one.
        if let Some(reservation) = self.known(&mut agent)? {
            return self.again(&reservation);
        }
        let Allocation { leases, result } = ipam.add(&self.target.attachment)?;
        let connected = self.connect(agent, Some(Given::Addresses { leases }));
        if connected.is_err() {
            noted(ipam.del(&self.target.attachment));
        }
        let dns = result.dns.filter(|dns| *dns != Dns::default());
        connected.map(|own| AddResult { dns: own.dns.or(dns), ..own })
    }

    fn connect(&self, mut agent: Agent, given: Option<Given>) -> Result<AddResult, CniError> {
        match self.reserve(&mut agent, given)? {
            Response::Reserved(reservation) => {
                self.wire(&mut agent, &reservation).inspect_err(|_| self.undo(agent))?;
                Ok(self.describe(&reservation, self.mtu(&reservation)))
            }
            // The runtime lost our answer and asks again.
            Response::Attached(reservation) => {
                self.require_programs(&mut agent)?;
                self.again(&reservation)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Attaches programs to an interface that another plugin made.
    fn adopt(&self, mut agent: Agent, chained: Chained) -> Result<(), CniError> {
        let Chained { given, host_ifindex, netns_cookie } = chained;
        let attachment = self.target.attachment.clone();
        match self.reserve(&mut agent, Some(given))? {
            Response::Reserved(reservation) => bandwidth::enforce(
                &self.netns,
                &attachment.ifname,
                self.mtu(&reservation),
                &self.wishes.bandwidth,
            )
            .and_then(|()| agent.ask_done(Request::Attach { attachment, host_ifindex, netns_cookie }))
            .inspect_err(|_| self.undo(agent)),
            Response::Attached(reservation) => {
                self.require_programs(&mut agent)?;
                check::require_effective(&self.netns, &attachment.ifname, &reservation)
            }
            other => Err(unexpected(&other)),
        }
    }

    fn reserve(&self, agent: &mut Agent, given: Option<Given>) -> Result<Response, CniError> {
        let Wishes { ips, mac, port_mappings, bandwidth, .. } = &self.wishes;
        let wanted = Wanted {
            // An IPAM plugin and the maker of an interface read the wishes for themselves.
            ips: if given.is_none() { ips.clone() } else { Vec::new() },
            mac: *mac,
            port_mappings: port_mappings.clone(),
            bandwidth: *bandwidth,
            mtu: self.config.mtu,
            programs: self.config.programs,
            given,
        };
        agent.ask(Request::Reserve {
            attachment: self.target.attachment.clone(),
            network: self.config.name.clone(),
            netns: self.target.netns.clone(),
            pod: self.target.args.pod.clone(),
            wanted: Box::new(wanted),
        })
    }

    /// What an earlier ADD of the same attachment got.
    fn known(&self, agent: &mut Agent) -> Result<Option<Reservation>, CniError> {
        // The question takes the attachment's lock, so that the answer stays true until we are done.
        let checked = agent.ask(Request::Check { attachment: self.target.attachment.clone() });
        let error = match checked {
            Ok(Response::Attached(reservation)) => return Ok(Some(reservation)),
            Ok(other) => return Err(unexpected(&other)),
            Err(error) => error,
        };
        match agent.ask(Request::List { network: self.config.name.clone() })? {
            Response::Endpoints { endpoints }
                if endpoints.iter().any(|endpoint| endpoint.attachment == self.target.attachment) =>
            {
                Err(error)
            }
            Response::Endpoints { .. } => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    /// CNI-16: an answer that is given again is still true of what the agent did.
    fn require_programs(&self, agent: &mut Agent) -> Result<(), CniError> {
        match agent.ask(Request::Check { attachment: self.target.attachment.clone() })? {
            Response::Attached(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// CNI-12: the identical result, if it is still true; with the MTU that the interface has, whatever is configured by
    /// now.
    fn again(&self, reservation: &Reservation) -> Result<AddResult, CniError> {
        check::require_effective(&self.netns, &self.target.attachment.ifname, reservation)?;
        let link = Netlink::open()?.link(&reservation.host_ifname)?;
        Ok(self.describe(reservation, link.mtu.unwrap_or_else(|| self.mtu(reservation))))
    }

    fn wire(&self, agent: &mut Agent, reservation: &Reservation) -> Result<(), CniError> {
        let attachment = &self.target.attachment;
        failpoint!(AddReserved);
        let mut netlink = Netlink::open()?;
        let mtu = self.mtu(reservation);
        host::create(&mut netlink, &self.netns, &attachment.ifname, mtu, reservation)?;
        let netns_cookie = pod::configure(&self.netns, &attachment.ifname, reservation)?;
        let host_ifindex = host::configure(&mut netlink, reservation)?;
        bandwidth::enforce(&self.netns, &attachment.ifname, mtu, &self.wishes.bandwidth)?;
        let attachment = attachment.clone();
        agent.ask_done(Request::Attach { attachment, host_ifindex, netns_cookie })?;
        failpoint!(AddAttached);
        Ok(())
    }

    /// The operator's MTU, or else the agent's.
    fn mtu(&self, reservation: &Reservation) -> u32 {
        self.config.mtu.unwrap_or(reservation.mtu)
    }

    /// Undoes a half-done ADD. A DEL in all but name, over the connection that holds the reservation; what cannot be
    /// undone now is left to the DEL that follows every failed ADD.
    fn undo(&self, agent: Agent) {
        noted(bandwidth::lift(&self.netns, &self.target.attachment.ifname, &self.wishes.bandwidth));
        noted(del::detach(&self.target.attachment, self.config, Some(agent)));
    }

    /// The result: both interfaces, one address per family, the default routes.
    fn describe(&self, reservation: &Reservation, mtu: u32) -> AddResult {
        let interface = |name: &str, mac, sandbox| Interface {
            name: name.to_owned(),
            mac: Some(mac),
            mtu: Some(mtu),
            sandbox,
            socket_path: None,
            pci_id: None,
        };
        let sandbox = self.target.netns.to_string_lossy().into_owned();
        AddResult {
            interfaces: vec![
                interface(&reservation.host_ifname, reservation.host_mac, None),
                interface(&self.target.attachment.ifname, reservation.pod_mac, Some(sandbox)),
            ],
            ips: reservation.leases.iter().map(address).collect(),
            routes: reservation.leases.iter().map(default_route).collect(),
            dns: self.wishes.dns.clone().or_else(|| self.config.dns.clone()),
        }
    }
}

fn noted(undone: Result<(), CniError>) {
    if let Err(error) = undone {
        log::notice(&format!("undo: {error}"));
    }
}

fn address(lease: &Lease) -> IpConfig {
    IpConfig { address: lease.address.into(), gateway: Some(lease.gateway), interface: Some(1) }
}

fn default_route(lease: &Lease) -> Route {
    let dst = if lease.address.is_ipv4() { DEFAULT_IPV4 } else { DEFAULT_IPV6 };
    Route { dst, gw: Some(lease.gateway), mtu: None, advmss: None, priority: None, table: None, scope: None }
}

const DEFAULT_IPV4: ipnet::IpNet =
    ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0));
const DEFAULT_IPV6: ipnet::IpNet =
    ipnet::IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0));
