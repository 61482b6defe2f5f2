//! The node's own devices, addresses and routes: the uplinks as they are, the overlay device and the routes to other
//! nodes' Pods as they should be. Used by the reconciler, on its thread.
//!
//! What was put right once is left alone until the wish changes or an audit asks; nothing foreign is ever touched.

mod address;
mod mtu;
mod overlay;
mod refusal;
mod uplink;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use quilla_abi::config::OVERLAY_PORT;
use quilla_datapath::{
    DatapathError, Destroyed, Device, Netlink, Overlay, PodRoute, Refused, RouteChanges, Sockets,
    Surroundings, netns, sysctl,
};
use quilla_model::{ObjectRef, Problem, Reason, Snapshot};
use quilla_plan::facts::{DEFAULT_VNI, NodePortAddresses};
use quilla_plan::{Desired, LocalEndpoint, NodeFacts, Routing};
use tokio::sync::watch;

use crate::apiserver::Servers;
use crate::cni::AttachedEndpoint;
use crate::masquerade;
use crate::overlay::{Encapsulation, Mode};

use refusal::{Ranges, Refusals};
use uplink::Uplinks;
use ways::Ways;

/// What the operator chose.
#[derive(Debug)]
pub struct NodeSettings {
    /// Name of the node.
    pub name: String,
    /// Devices that lead to the other nodes and the world; Pods leave the cluster by the first one. Never empty.
    pub uplinks: Vec<String>,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of the overlay.
    pub overlay_port: u16,
    /// The largest packet for other nodes, if that is less than what the uplinks leave.
    pub overlay_mtu: Option<u16>,
    /// How packets get to other nodes' Pods.
    pub routing: Routing,
    /// Under whose address Pods leave the cluster.
    pub masquerade: watch::Receiver<masquerade::Chosen>,
    /// Which of the node's addresses serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// Whether a Service with a Local policy and endpoints elsewhere only rejects (S21).
    pub reject_without_local: bool,
    /// Addresses of the apiserver, which the node must reach.
    pub servers: watch::Receiver<Servers>,
    /// Who writes outer headers.
    pub encapsulation: watch::Receiver<Encapsulation>,
    /// Who wants to know the Pods' MTU.
    pub mtu: watch::Sender<u32>,
}

impl NodeSettings {
    /// What holds where the operator chose nothing and nobody was asked yet.
    pub fn new(name: &str, uplinks: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            uplinks: uplinks.iter().map(|&uplink| uplink.to_owned()).collect(),
            vni: DEFAULT_VNI,
            overlay_port: OVERLAY_PORT,
            overlay_mtu: None,
            routing: Routing::default(),
            masquerade: watch::channel(masquerade::Chosen::default()).1,
            node_port_addresses: NodePortAddresses::Primary,
            reject_without_local: false,
            servers: watch::channel(Some(BTreeSet::new())).1,
            encapsulation: watch::channel(Encapsulation::new(Mode::Auto, false, false)).1,
            mtu: watch::channel(0).0,
        }
    }
}

/// The node.
#[derive(Debug)]
pub struct Node {
    settings: NodeSettings,
    hash_seed: u32,
    /// Opened on the reconciler's thread, in the namespace it runs in.
    host: Option<Host>,
    /// Those of the uplinks that are there.
    uplinks: Uplinks,
    /// Of every device, those that somebody else could send to.
    addresses: BTreeSet<IpAddr>,
    overlay: Option<(Overlay, Device)>,
    ways: Ways,
    /// The largest packet that gets to other nodes in one piece; 0 before it is known.
    mtu: u32,
    /// The MTU that the interfaces of all running Pods have by now.
    fitted: Option<u32>,
    routes: Option<Vec<PodRoute>>,
    /// What became of them.
    routed: RouteChanges,
    surroundings: Surroundings,
    refusals: Refusals,
    problems: Vec<Problem>,
}

/// The namespace that the node is.
#[derive(Debug)]
struct Host {
    netlink: Netlink,
    cookie: u64,
}

impl Host {
    /// That of the calling thread, the first time.
    fn opened(host: &mut Option<Self>) -> Result<&Self, DatapathError> {
        match host {
            Some(host) => Ok(host),
            None => Ok(host.insert(Self { netlink: Netlink::open()?, cookie: netns::cookie()? })),
        }
    }
}

impl Node {
    /// A node of which nothing is known yet. The seed of a previous run goes on, so that its choices do too.
    pub fn new(settings: NodeSettings, previous_seed: u32) -> Self {
        let hash_seed = if previous_seed == 0 { rand::random::<u32>().max(1) } else { previous_seed };
        Self {
            settings,
            hash_seed,
            host: None,
            uplinks: Uplinks::default(),
            addresses: BTreeSet::new(),
            overlay: None,
            ways: Ways::default(),
            mtu: 0,
            fitted: None,
            routes: None,
            routed: RouteChanges::default(),
            surroundings: Surroundings::default(),
            refusals: Refusals::default(),
            problems: Vec::new(),
        }
    }

    /// Names of the uplinks that are there.
    pub fn uplinks(&self) -> Vec<String> {
        self.uplinks.present().iter().map(|device| device.name.clone()).collect()
    }

    /// The MTUs of those uplinks by their numbers.
    pub fn uplink_mtus(&self) -> BTreeMap<u32, u32> {
        self.uplinks.present().iter().map(|device| (device.ifindex, device.mtu)).collect()
    }

    /// Name of the overlay device.
    pub fn overlay(&self) -> &str {
        Overlay::NAME
    }

    /// Numbers of the overlay device and of the uplinks; none while unknown.
    pub fn ifindexes(&self) -> Vec<u32> {
        let overlay = self.overlay.as_ref().map(|(_, device)| device);
        overlay.into_iter().chain(self.uplinks.present()).map(|device| device.ifindex).collect()
    }

    /// What is wrong with the node itself.
    pub fn problems(&self) -> Vec<Problem> {
        let refusals = self.refusals.problems(&self.settings.name);
        let narrow = mtu::problem(&self.settings.name, self.mtu);
        let node = || ObjectRef::cluster("Node", &self.settings.name);
        let taken = self.routed.taken.iter().map(|range| {
            let detail = format!("route to {range}, to which there is one of somebody else's");
            Problem::new(node(), Reason::Conflict, detail)
        });
        let refused = self.routed.refused.iter().map(|Refused { destination, reason, .. }| {
            let detail = format!("route to {destination}, which the kernel refused: {reason}");
            Problem::new(node(), Reason::Unsupported, detail)
        });
        let file = self.settings.masquerade.borrow().problem.clone();
        let file = file.map(|detail| Problem::new(node(), Reason::Malformed, detail));
        self.problems
            .iter()
            .cloned()
            .chain(narrow)
            .chain(refusals)
            .chain(taken)
            .chain(refused)
            .chain(file)
            .collect()
    }

    /// Whether a device, an address or a route of ours is not any more as it was seen last.
    pub fn changed(&self) -> Result<bool, DatapathError> {
        let (Some(Host { netlink, .. }), Some((_, overlay))) = (&self.host, &self.overlay) else {
            return Ok(false);
        };
        let same = netlink.device(Overlay::NAME)?.as_ref() == Some(overlay)
            && self.uplinks.look(netlink, &self.settings.uplinks)? == self.uplinks
            && address::usable(netlink.all_addresses()?) == self.addresses
            && match &self.routes {
                Some(routes) => netlink.has_routes(overlay.ifindex, routes, &self.routed)?,
                None => true,
            };
        Ok(!same)
    }

    /// Whether a device of that name is there and has that number.
    pub fn has_device(&mut self, name: &str, ifindex: u32) -> Result<bool, DatapathError> {
        let host = Host::opened(&mut self.host)?;
        Ok(host.netlink.device(name)?.is_some_and(|device| device.ifindex == ifindex))
    }

    /// Distrust everything: look at devices and routes again in the next round.
    pub fn forget(&mut self) {
        self.overlay = None;
        self.fitted = None;
        self.routes = None;
        self.refusals.forget();
    }

    /// Makes sure of the devices: the uplinks and all addresses are known, the overlay device is there.
    pub fn prepare(&mut self, snapshot: &Snapshot) -> Result<(), DatapathError> {
        let distrusted = self.overlay.is_none();
        let addresses = if distrusted { self.look()? } else { self.addresses.clone() };
        let netlink = &Host::opened(&mut self.host)?.netlink;
        let uplinks = self.uplinks.present();
        if let Some(mtu) = self.ways.mtu(netlink, uplinks, &self.settings, snapshot, &addresses)? {
            self.mtu = mtu;
        }
        let wanted = overlay::wanted(&self.settings, self.mtu, snapshot);
        if self.overlay.as_ref().is_some_and(|(present, _)| *present == wanted) {
            return Ok(());
        }
        if !distrusted {
            // What is wanted follows from what was seen last.
            self.overlay = None;
            return self.prepare(snapshot);
        }
        let device = netlink.ensure_overlay(&wanted)?;
        // A node to which this one sends plainly may answer in tunnels.
        sysctl::relax_reverse_path(Overlay::NAME)?;
        let mtu_changed =
            self.settings.mtu.send_if_modified(|mtu| std::mem::replace(mtu, wanted.mtu) != wanted.mtu);
        tracing::debug!(device = wanted.name, mtu = wanted.mtu, mtu_changed, gateways = ?wanted.gateways, "overlay device ready");
        let gateways = address::usable(wanted.gateways.iter().copied().collect());
        self.overlay = Some((wanted, device));
        let addresses = &addresses | &gateways;
        let lost = &self.addresses - &addresses;
        self.addresses = addresses;
        self.end_stranded(&lost);
        Ok(())
    }

    /// The node as it is now: its uplinks, which are opened, what is wrong with them, and its addresses.
    fn look(&mut self) -> Result<BTreeSet<IpAddr>, DatapathError> {
        let netlink = &Host::opened(&mut self.host)?.netlink;
        self.ways = Ways::default();
        self.uplinks = self.uplinks.look(netlink, &self.settings.uplinks)?;
        // Without it nothing can begin. What has begun goes on: it may well come back.
        if self.mtu == 0 {
            self.uplinks.require_first(&self.settings.uplinks)?;
        }
        open_ways(self.uplinks.present())?;
        self.problems = problems(&self.settings, &self.uplinks)?;
        self.surroundings = netlink.surroundings()?;
        Ok(address::usable(netlink.all_addresses()?))
    }

    /// Ends connections to the apiserver from addresses that the node has lost: nothing gets through them any more, and
    /// whoever watches by one would learn of nothing for minutes.
    fn end_stranded(&self, lost: &BTreeSet<IpAddr>) {
        let servers = self.settings.servers.borrow().clone().unwrap_or_default();
        if lost.is_empty() || servers.is_empty() {
            return;
        }
        match Sockets::open().map(|sockets| sockets.destroy_between(lost, &servers)) {
            Ok(Destroyed { ended, errors }) => tracing::info!(?lost, ended, ?errors, "addresses lost"),
            Err(error) => tracing::warn!(?lost, error = %error, "end connections from lost addresses"),
        }
    }

    /// What the planner must know.
    pub fn facts(&self, snapshot: &Snapshot, endpoints: Vec<LocalEndpoint>) -> NodeFacts {
        let overlay = self.overlay.as_ref();
        let named = snapshot.nodes.get(&self.settings.name).map_or(&[][..], |node| &node.addresses);
        let uplink = self.uplinks.present().first();
        let (host_ipv4, host_ipv6) = address::masquerade(named, &self.addresses, uplink);
        let cookie = self.host.as_ref().map_or(0, |host| host.cookie);
        let [low, high] = [cookie, cookie >> 32].map(|half| (half & 0xffff_ffff) as u32);
        NodeFacts {
            uplink_ifindex: uplink.map_or(0, |device| device.ifindex),
            overlay_ifindex: overlay.map_or(0, |(_, device)| device.ifindex),
            vni: self.settings.vni,
            overlay_port: self.settings.overlay_port,
            host_ipv4,
            host_ipv6,
            addresses: self.addresses.iter().copied().collect(),
            node_port_addresses: self.settings.node_port_addresses.clone(),
            reject_without_local: self.settings.reject_without_local,
            masquerade: self.settings.masquerade.borrow().masquerade.clone(),
            routing: self.settings.routing,
            networks: self.uplinks.present().iter().flat_map(|device| device.addresses.clone()).collect(),
            overlay_mtu: u16::try_from(self.mtu).unwrap_or(u16::MAX),
            encapsulation: self.settings.encapsulation.borrow().facts,
            netns_cookie: [low, high],
            hash_seed: self.hash_seed,
            endpoints,
            ..NodeFacts::new(&self.settings.name)
        }
    }

    /// Has the interfaces of running Pods follow the MTU that new ones get. Called when the programs know it already.
    pub fn fit<'a>(
        &mut self,
        endpoints: impl Iterator<Item = &'a AttachedEndpoint>,
    ) -> Result<(), DatapathError> {
        let (Some(host), Some((overlay, _))) = (&self.host, &self.overlay) else { return Ok(()) };
        if self.fitted != Some(overlay.mtu) {
            mtu::fit(&host.netlink, overlay.mtu, endpoints)?;
            self.fitted = Some(overlay.mtu);
        }
        Ok(())
    }

    /// Leads the host's own packets to other nodes' Pods, into the overlay or by the nodes' addresses.
    pub fn route(&mut self, snapshot: &Snapshot, desired: &Desired) -> Result<(), DatapathError> {
        let wanted = overlay::routes(&self.settings.name, snapshot, desired);
        let (Some(host), Some((_, overlay))) = (&self.host, &self.overlay) else { return Ok(()) };
        if self.routes.as_ref() != Some(&wanted) {
            let changes = host.netlink.sync_routes(overlay.ifindex, &wanted)?;
            tracing::debug!(written = changes.written, removed = changes.removed, "routes written");
            for refused in changes.refused.iter().filter(|refused| !self.routed.refused.contains(refused)) {
                tracing::warn!(destination = %refused.destination, reason = refused.reason, "route refused");
            }
            (self.routes, self.routed) = (Some(wanted), changes);
        }
        Ok(())
    }

    /// Leads what the host itself sends to Services past its sockets nowhere. Where the kernel cannot, that is a problem,
    /// and the rest of the node's work goes on.
    pub fn refuse(&mut self, snapshot: &Snapshot, desired: &Desired) {
        let Some(host) = &self.host else { return };
        let servers = self.settings.servers.borrow().clone();
        let ranges = Ranges::new(snapshot, desired, servers.as_ref(), &self.surroundings);
        self.refusals.set(&host.netlink, ranges);
    }

    /// Refuses nothing, for as long as the sockets are not led.
    pub fn refuse_nothing(&mut self) {
        if let Some(host) = &self.host {
            self.refusals.set(&host.netlink, Ranges::default());
        }
    }
}

/// Lets packets in and through. With several uplinks a request may come in by one that does not lead back to its
/// sender; its answer finds the way (E15). What another node sends plainly may come where this one sends in tunnels.
fn open_ways(uplinks: &[Device]) -> Result<(), DatapathError> {
    for uplink in uplinks {
        sysctl::enable_forwarding(&uplink.name)?;
        sysctl::relax_reverse_path(&uplink.name)?;
    }
    Ok(())
}

/// What an operator should put right about the node itself.
fn problems(settings: &NodeSettings, uplinks: &Uplinks) -> Result<Vec<Problem>, DatapathError> {
    let node = || ObjectRef::cluster("Node", &settings.name);
    let missing = uplinks.faults(&settings.uplinks);
    let missing = missing.into_iter().map(|detail| Problem::new(node(), Reason::Missing, detail));
    let shared = address::shared_ports(&sysctl::ephemeral_ports()?);
    let shared = shared.map(|detail| Problem::new(node(), Reason::Conflict, detail));
    Ok(missing.chain(shared).collect())
}
