//! What the maps of a previous run say should be done, for an agent that knows nothing newer.
//!
//! Called by the agent when no apiserver answers. Invariant: laid out over the layout recovered from the same tables,
//! the result is those tables again, but for endpoints and the node's row.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use quilla_abi::backend::Backend;
use quilla_abi::node::{Node, flag};
use quilla_abi::route::{Route, RouteKey, kind};
use quilla_abi::service::{self, Service, ServiceKey};
use quilla_model::{Family, ObjectName, ObjectRef, SharedMap, TrafficPolicy};

use super::{
    BackendKey, BackendSet, Desired, Frontend, FrontendKey, FrontendKind, Marker, Member, SetKey, Target,
    Tunnel,
};
use crate::family::AddressFamily;
use crate::routing::{Path, Why};
use crate::tables::{FamilyTables, Tables};

impl Desired {
    /// Services, backends, nodes and routes of `tables`; endpoints, the node's row and names from `plan`. Rows have no
    /// names: those of frontends and nodes that `plan` lacks stay unknown.
    pub fn recover(tables: &Tables, plan: &Self) -> Self {
        let tunnels = tunnels(&tables.nodes, &plan.tunnels);
        let mut recovered = Self {
            maglev_density: plan.maglev_density,
            health_checks: plan.health_checks.clone(),
            endpoints: plan.endpoints.clone(),
            config: plan.config,
            ..Self::default()
        };
        recovered.add_family::<[u8; 4]>(tables, plan, &tunnels);
        recovered.add_family::<[u8; 16]>(tables, plan, &tunnels);
        recovered.tunnels = tunnels.into_values().collect();
        recovered
    }

    fn add_family<A: AddressFamily>(
        &mut self,
        all: &Tables,
        plan: &Self,
        tunnels: &BTreeMap<u32, (String, Tunnel)>,
    ) {
        let tables = A::tables(all);
        self.backends.extend(tables.backend_ids.keys().map(|row| (BackendKey::of(row), 1)));
        let mut names = SetNames::default();
        let ranges = source_ranges(tables);
        for (key, row) in tables.services.sorted() {
            let key = frontend_key(key);
            if key.port == 0 {
                self.markers.insert(Marker { address: key.address, scope: key.scope }, ());
                continue;
            }
            let named = plan.frontends.get(&key);
            let set = names.name(&key, row, named);
            if !self.sets.contains_key(&set) {
                let slots = all.slots_of(row).unwrap_or_default();
                let source_ranges = ranges.get(&row.id).cloned().unwrap_or_default();
                let content = BackendSet { source_ranges, ..found(row, &slots, &tables.backends) };
                self.sets.insert(Arc::clone(&set), Arc::new(content));
            }
            let kind = named.map_or(FrontendKind::Unknown, |named| named.kind);
            self.frontends.insert(key, Frontend { set, kind, flags: row.flags & FRONTEND_FLAGS });
        }
        let route = |(key, row): (&RouteKey<A>, &Route)| Some((net(key)?, target(*row, tunnels)?));
        self.routes.extend(tables.routes.iter().filter_map(route));
    }
}

/// Flags that frontends of one set may have or not.
const FRONTEND_FLAGS: u32 = service::flag::SOURCE_RANGES | service::flag::NODE_ALLOWED;

/// The names of the sets found so far, by their id; one name for each.
#[derive(Default)]
struct SetNames {
    by_id: BTreeMap<u32, Arc<SetKey>>,
    taken: BTreeSet<Arc<SetKey>>,
}

impl SetNames {
    /// The name that the planned frontend gives the set, unless another set has it.
    fn name(&mut self, key: &FrontendKey, row: &Service, named: Option<&Frontend>) -> Arc<SetKey> {
        let id = row.id;
        if let Some(known) = self.by_id.get(&id) {
            return Arc::clone(known);
        }
        let planned = named.map(|named| Arc::clone(&named.set)).filter(|set| !self.taken.contains(set));
        let set = planned.unwrap_or_else(|| Arc::new(unknown(key, row)));
        self.taken.insert(Arc::clone(&set));
        self.by_id.insert(id, Arc::clone(&set));
        set
    }
}

fn unknown(key: &FrontendKey, row: &Service) -> SetKey {
    SetKey {
        owner: ObjectRef::new("Service", &ObjectName::new("", "unknown")),
        port_name: row.id.to_string().into(),
        protocol: key.protocol,
        family: Family::of(key.address),
        policy: TrafficPolicy::Cluster,
        maglev: row.flags & service::flag::MAGLEV != 0,
    }
}

/// The set as its slots have it.
fn found<A: AddressFamily>(
    row: &Service,
    slots: &[u32],
    backends: &SharedMap<u32, Backend<A>>,
) -> BackendSet {
    let slots = slots.iter().filter_map(|id| backends.get(id)).map(BackendKey::of);
    let mut counts: BTreeMap<BackendKey, u8> = BTreeMap::new();
    for backend in slots.clone() {
        let count = counts.entry(backend).or_default();
        *count = count.saturating_add(1);
    }
    let members: Vec<Member> =
        counts.into_iter().map(|(backend, weight)| Member { backend, weight }).collect();
    let index = |backend| members.binary_search_by_key(&backend, |member| member.backend).ok();
    let found = slots.filter_map(|backend| u32::try_from(index(backend)?).ok()).collect();
    BackendSet {
        found: Some(found),
        flags: row.flags & !FRONTEND_FLAGS,
        affinity_seconds: row.affinity_seconds,
        slow_start_seconds: row.slow_start_seconds,
        source_ranges: Vec::new(),
        members,
    }
}

/// Who may use the sets, by their id; sorted.
fn source_ranges<A: AddressFamily>(tables: &FamilyTables<A>) -> BTreeMap<u32, Vec<IpNet>> {
    let mut ranges: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
    for key in tables.source_ranges.keys() {
        let prefix = key.prefix_len.checked_sub(32).and_then(|length| u8::try_from(length).ok());
        if let Some(range) = prefix.and_then(|length| IpNet::new(key.addr.to_ip(), length).ok()) {
            ranges.entry(u32::from_be_bytes(key.id)).or_default().push(range);
        }
    }
    for ranges in ranges.values_mut() {
        ranges.sort_unstable();
    }
    ranges
}

impl BackendKey {
    /// The backend of a row.
    pub(crate) fn of<A: AddressFamily>(row: &Backend<A>) -> Self {
        Self { address: row.addr.to_ip(), port: row.port.get(), protocol: row.proto }
    }
}

fn frontend_key<A: AddressFamily>(row: &ServiceKey<A>) -> FrontendKey {
    FrontendKey { address: row.addr.to_ip(), port: row.port.get(), protocol: row.proto, scope: row.scope }
}

/// Tunnels by their slot, under the name of the planned node that has one of their addresses.
fn tunnels(
    rows: &BTreeMap<u32, Node>,
    planned: &BTreeMap<String, Tunnel>,
) -> BTreeMap<u32, (String, Tunnel)> {
    let ends =
        |tunnel: &Tunnel| [tunnel.ipv4.map(IpAddr::V4), tunnel.ipv6.map(IpAddr::V6)].into_iter().flatten();
    let names: BTreeMap<IpAddr, &String> =
        planned.iter().flat_map(|(name, tunnel)| ends(tunnel).map(move |end| (end, name))).collect();
    let mut taken = BTreeSet::new();
    let tunnel = |(&slot, row): (&u32, &Node)| {
        let tunnel = Tunnel {
            ipv4: (row.flags & flag::IPV4 != 0).then(|| Ipv4Addr::from(row.ipv4)),
            ipv6: (row.flags & flag::IPV6 != 0).then(|| Ipv6Addr::from(row.ipv6)),
            mac: row.vtep_mac,
            path_ipv4: path(row.flags & flag::NATIVE_V4 != 0),
            path_ipv6: path(row.flags & flag::NATIVE_V6 != 0),
        };
        let known =
            ends(&tunnel).find_map(|end| names.get(&end)).filter(|name| taken.insert((**name).clone()));
        let name = known.map_or_else(|| format!("unknown in slot {slot}"), |name| (*name).clone());
        (slot, (name, tunnel))
    };
    rows.iter().map(tunnel).collect()
}

fn path(native: bool) -> Path {
    if native { Path::Native(Why::Before) } else { Path::Overlay(Why::Before) }
}

fn net<A: AddressFamily>(key: &RouteKey<A>) -> Option<IpNet> {
    IpNet::new(key.addr.to_ip(), u8::try_from(key.prefix_len).ok()?).ok()
}

fn target(row: Route, tunnels: &BTreeMap<u32, (String, Tunnel)>) -> Option<Target> {
    Some(match row.kind {
        kind::LOCAL_PODS => Target::LocalPods,
        kind::REMOTE_PODS => {
            let owner = tunnels.get(&u32::from(row.node_slot)).map(|(name, _)| name.clone());
            Target::RemotePods(owner.unwrap_or_else(|| "unknown".to_owned()))
        }
        kind::HOST => Target::Host,
        kind::SERVICES => Target::Services,
        kind::NATIVE => Target::Native,
        kind::UNROUTABLE => Target::Unroutable,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use quilla_model::{Family, ObjectName, ObjectRef, TrafficPolicy};

    use crate::{
        BackendKey, BackendSet, Desired, Frontend, FrontendKey, FrontendKind, Layout, LocalEndpoint, Marker,
        Member, Path, SetKey, Target, Tunnel, Why, diff,
    };

    fn backend(address: &str) -> BackendKey {
        BackendKey { address: address.parse().unwrap(), port: 8080, protocol: 6 }
    }

    fn tunnel(host: u8) -> Tunnel {
        Tunnel {
            ipv4: Some([192, 0, 2, host].into()),
            ipv6: (host > 2).then(|| [0xfd, 0, 0, 0, 0, 0, 0, u16::from(host)].into()),
            mac: [host; 6],
            path_ipv4: Path::Overlay(Why::Before),
            path_ipv6: if host > 2 { Path::Native(Why::Before) } else { Path::Overlay(Why::Before) },
        }
    }

    fn endpoint(ifindex: u32) -> (u32, LocalEndpoint) {
        let endpoint = LocalEndpoint {
            pod: ObjectName::new("test", "pod"),
            ifindex,
            pod_mac: [2; 6],
            host_mac: [4; 6],
            ipv4: Some([10, 244, 1, 2].into()),
            ipv6: None,
            host_ports: Vec::new(),
        };
        (ifindex, endpoint)
    }

    fn desired() -> Desired {
        let backends = ["10.244.2.2", "10.244.2.3", "10.244.2.4", "fd00:244::2"].map(backend);
        let set = |name: &str, address: &str, backends: &[BackendKey], flags| {
            let key = FrontendKey { address: address.parse().unwrap(), port: 80, protocol: 6, scope: 1 };
            let set = Arc::new(SetKey {
                owner: ObjectRef::new("Service", &ObjectName::new("shop", name)),
                port_name: "http".into(),
                protocol: 6,
                family: Family::of(key.address),
                policy: TrafficPolicy::Cluster,
                maglev: false,
            });
            let members = backends.iter().map(|&backend| Member { backend, weight: 1 }).collect();
            let contents =
                BackendSet { members, affinity_seconds: flags * 100, flags, ..BackendSet::default() };
            let frontend = Frontend { set: Arc::clone(&set), kind: FrontendKind::ExternalIp, flags: 0 };
            ((key, frontend), (set, Arc::new(contents)))
        };
        let (frontends, sets) = [
            set("web", "10.96.0.1", &backends[..2], 0),
            set("idle", "10.96.0.2", &[], 1),
            set("six", "fd00:96::1", &backends[3..], 1),
        ]
        .into_iter()
        .unzip();
        let routes = [
            ("10.244.1.0/24", Target::LocalPods),
            ("10.244.2.0/24", Target::RemotePods("two".into())),
            ("10.244.3.0/24", Target::RemotePods("three".into())),
            ("10.244.4.0/24", Target::RemotePods("without a tunnel".into())),
            ("192.0.2.1/32", Target::Host),
            ("10.96.0.0/16", Target::Services),
            ("172.16.0.0/12", Target::Native),
            ("fe80::/10", Target::Unroutable),
        ];
        Desired {
            frontends,
            sets,
            markers: [(Marker { address: [10, 96, 0, 1].into(), scope: 0 }, ())].into(),
            backends: backends.map(|backend| (backend, 1)).into(),
            tunnels: BTreeMap::from([("two".into(), tunnel(2)), ("three".into(), tunnel(3))]),
            routes: routes.map(|(net, target)| (net.parse().unwrap(), target)).into(),
            endpoints: BTreeMap::from([endpoint(7)]),
            ..Desired::default()
        }
    }

    /// A plan older than the maps removes and changes nothing in them; it says only which endpoints there are.
    #[test]
    fn what_the_maps_say_is_what_is_laid_out_again() {
        let (tables, problems) = Layout::default().lay_out(&desired());
        assert_eq!(problems, []);
        let older = Desired { endpoints: BTreeMap::from([endpoint(9)]), ..Desired::default() };

        let recovered = Desired::recover(&tables, &older);
        let (again, problems) = Layout::recover(&tables).lay_out(&recovered);
        assert_eq!(problems, []);
        assert_eq!((&again.v4.services, &again.v6.services), (&tables.v4.services, &tables.v6.services));
        assert_eq!((&again.v4.routes, &again.v6.routes), (&tables.v4.routes, &tables.v6.routes));
        assert_eq!((&again.v4.backends, &again.v6.backends), (&tables.v4.backends, &tables.v6.backends));
        assert_eq!((&again.nodes, &again.node_slots), (&tables.nodes, &tables.node_slots));
        assert!(again.interfaces.contains_key(&9) && !again.interfaces.contains_key(&7));
        let touched: Vec<_> = diff(&tables, &again).iter().map(crate::Step::map).collect();
        assert_eq!(touched, ["interfaces", "endpoints_v4", "interfaces", "epochs"]);
    }

    #[test]
    fn names_come_from_the_plan_and_are_unknown_without_it() {
        let (tables, _) = Layout::default().lay_out(&desired());
        let named = Desired::recover(&tables, &desired());
        assert_eq!((&named.frontends, &named.tunnels), (&desired().frontends, &desired().tunnels));
        let nameless = Desired::recover(&tables, &Desired::default());
        assert!(nameless.sets.keys().all(|set| &*set.owner.name == "unknown"));
        assert_eq!(nameless.tunnels.len(), 2);
    }
}
