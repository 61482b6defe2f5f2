//! What the kernel should do, before anything has an id: the planner's result and the layout's input.

mod recover;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use quilla_abi::Mac;
use quilla_abi::config::Config;
use quilla_model::{Family, ObjectName, ObjectRef, SharedMap, TrafficPolicy};

use crate::facts::LocalEndpoint;
use crate::routing::Path;
use crate::{maglev, weight};

/// The logical state of the node's data plane. Invariants: the set of every frontend is in `sets`, every member of a set
/// is in `backends`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Who answers on which address and port.
    pub frontends: SharedMap<FrontendKey, Frontend>,
    /// What stands behind frontends; those of one port with the same backends share one.
    pub sets: SharedMap<Arc<SetKey>, Arc<BackendSet>>,
    /// Addresses that have frontends, whatever their ports (S22).
    pub markers: SharedMap<Marker, ()>,
    /// Every backend that flows may stay with, selected or draining, and how many plans have it: none if it just went
    /// ([`crate::Grace`]).
    pub backends: SharedMap<BackendKey, u32>,
    /// How many slots a Maglev table has for each member at least; the same on every node.
    pub maglev_density: u32,
    /// What the health check servers of load balancers answer (S40).
    pub health_checks: BTreeMap<ObjectName, HealthCheck>,
    /// The other nodes' tunnel ends, by node name.
    pub tunnels: BTreeMap<String, Tunnel>,
    /// What each range of addresses is to this node.
    pub routes: SharedMap<IpNet, Target>,
    /// Attached Pods by the ifindex of their host side.
    pub endpoints: BTreeMap<u32, LocalEndpoint>,
    /// The node's row.
    pub config: Config,
}

impl Desired {
    /// Adds a frontend of the agent's own with one backend: its self-test, which no Service has.
    pub fn add_own(&mut self, key: FrontendKey, backend: BackendKey) {
        let set = Arc::new(SetKey {
            owner: ObjectRef::cluster("Agent", "self-test"),
            port_name: key.port.to_string().into(),
            protocol: key.protocol,
            family: Family::of(key.address),
            policy: TrafficPolicy::Cluster,
            maglev: false,
        });
        let members = vec![Member { backend, weight: 1 }];
        self.sets.insert(Arc::clone(&set), Arc::new(BackendSet { members, ..BackendSet::default() }));
        self.frontends.insert(key, Frontend { set, kind: FrontendKind::ClusterIp, flags: 0 });
        *self.backends.or_default(backend) += 1;
    }
}

/// An address and port that clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendKey {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`quilla_abi::service::scope`]
    pub scope: u8,
}

impl FrontendKey {
    fn order(&self) -> ((bool, u128), u32) {
        let [low, high] = self.port.to_le_bytes();
        (rank(self.address), u32::from_be_bytes([high, low, self.protocol, self.scope]))
    }
}

/// What a client finds behind a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Its backends.
    pub set: Arc<SetKey>,
    /// What kind of address it has.
    pub kind: FrontendKind,
    /// Those bits of [`quilla_abi::service::flag`] that are this frontend's own; the others are its set's.
    pub flags: u32,
}

/// Kinds of addresses of a Service, in the order in which they are entitled to an address that two objects claim: nobody
/// loses a ClusterIP to somebody else's external address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `clusterIP`
    ClusterIp,
    /// `nodePort` on an address of the node
    NodePort,
    /// An address of a load balancer
    LoadBalancer,
    /// `externalIPs`
    ExternalIp,
    /// `hostPort` of a Pod of this node
    HostPort,
    /// Found in the kernel; nobody knows of what object.
    Unknown,
}

/// An address that has frontends in a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Marker {
    /// Address.
    pub address: IpAddr,
    /// [`quilla_abi::service::scope`]
    pub scope: u8,
}

/// What tells one set of backends from another for as long as their objects exist, whatever their members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetKey {
    /// The Service, or the Pod of a `hostPort`.
    pub owner: ObjectRef,
    /// The name of its port; empty if that has none. The number of the Pod's port for a `hostPort`.
    pub port_name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// The family of the clients and of the members.
    pub family: Family,
    /// Which endpoints it is made of.
    pub policy: TrafficPolicy,
    /// Whether its slots are a Maglev table.
    pub maglev: bool,
}

impl SetKey {
    /// First what differs most often: there are as many keys as ports of Services, and texts take long to compare.
    fn order(&self) -> impl Ord + Hash {
        let Self { owner, port_name, protocol, family, policy, maglev } = self;
        (&*owner.name, &**port_name, *protocol, *family, *policy, *maglev, &*owner.namespace, owner.kind)
    }
}

/// Backends that new connections are spread over. A set without members rejects, or drops by its flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendSet {
    /// Sorted, without duplicates; weights have no common divisor, and none is 0.
    pub members: Vec<Member>,
    /// What each slot of a table found in the kernel holds, as an index into `members`; `None` for a table that is made
    /// from them.
    pub found: Option<Arc<[u32]>>,
    /// Those bits of [`quilla_abi::service::flag`] that all its frontends have.
    pub flags: u32,
    /// `ClientIP` affinity timeout; 0 = none.
    pub affinity_seconds: u32,
    /// For how long a new backend gets fewer connections; 0 = the same at once.
    pub slow_start_seconds: u32,
    /// Clients that may use those of its frontends that have the flag `SOURCE_RANGES`; sorted.
    pub source_ranges: Vec<IpNet>,
}

/// A backend of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    /// The backend.
    pub backend: BackendKey,
    /// How many connections it gets in proportion to the others.
    pub weight: u8,
}

impl BackendSet {
    /// The contents of the set's slots, as indices into its members. `maglev` is the key's, `density` is
    /// [`Desired::maglev_density`].
    pub fn slots(&self, maglev: bool, density: u32) -> Vec<u32> {
        match &self.found {
            Some(found) => found.to_vec(),
            None if maglev => maglev::table(&self.members, density),
            None => weight::slots(&self.members),
        }
    }
}

/// What the health check server of a Service answers with (S40).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `healthCheckNodePort`
    pub port: u16,
    /// How many ready endpoints of the Service run here, by their addresses.
    pub local_endpoints: usize,
}

/// An endpoint's address and port. Two Services with the same endpoint share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendKey {
    /// Address.
    pub address: IpAddr,
    /// Target port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

impl BackendKey {
    fn order(&self) -> ((bool, u128), u32) {
        (rank(self.address), u32::from(self.port) << 8 | u32::from(self.protocol))
    }
}

/// Keys are compared by their `order()`, and those without texts are numbers: there are hundreds of thousands.
macro_rules! ordered {
    ($($key:ty),+) => {$(
        impl Ord for $key {
            fn cmp(&self, other: &Self) -> Ordering {
                self.order().cmp(&other.order())
            }
        }

        impl PartialOrd for $key {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Hash for $key {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.order().hash(state);
            }
        }
    )+};
}
ordered!(FrontendKey, SetKey, BackendKey);

/// An address as a number: in the order of addresses.
pub(crate) fn rank(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(address) => (false, u128::from(address.to_bits())),
        IpAddr::V6(address) => (true, address.to_bits()),
    }
}

/// How to reach another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its IPv4 underlay address.
    pub ipv4: Option<std::net::Ipv4Addr>,
    /// Its IPv6 underlay address.
    pub ipv6: Option<std::net::Ipv6Addr>,
    /// Ethernet address of its overlay device.
    pub mac: Mac,
    /// How IPv4 packets get to its Pods.
    pub path_ipv4: Path,
    /// The same for IPv6.
    pub path_ipv6: Path,
}

/// What a range of addresses is to this node; see [`quilla_abi::route::kind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This node's Pods.
    LocalPods,
    /// The Pods of the named node.
    RemotePods(String),
    /// The node itself.
    Host,
    /// Service addresses.
    Services,
    /// Outside, reached with the Pod's own address.
    Native,
    /// Never delivered.
    Unroutable,
}
