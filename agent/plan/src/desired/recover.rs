//! What the maps of a previous run say should be done, for an agent that knows nothing newer.
//!
//! Called by the agent when no apiserver answers. Invariant: laid out over the layout recovered from the same tables,
//! the result is those tables again, but for endpoints and the node's row.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use quilla_abi::backend::Backend;
use quilla_abi::node::{Node, flag};
use quilla_abi::route::{Route, RouteKey, kind};
use quilla_abi::service::ServiceKey;
use quilla_model::ObjectName;

use super::{BackendKey, Desired, Frontend, FrontendKey, Target, Tunnel};
use crate::family::AddressFamily;
use crate::tables::{FamilyTables, LaidService, Tables};

impl Desired {
    /// Services, backends, nodes and routes of `tables`; endpoints, the node's row and names from `plan`. Rows have no
    /// names: those of frontends and nodes that `plan` lacks stay unknown.
    pub fn recover(tables: &Tables, plan: &Self) -> Self {
        let tunnels = tunnels(&tables.nodes, &plan.tunnels);
        let mut recovered = Self {
            frontends: BTreeMap::new(),
            backends: Vec::new(),
            routes: BTreeMap::new(),
            endpoints: plan.endpoints.clone(),
            config: plan.config,
            tunnels: BTreeMap::new(),
        };
        recovered.add_family(&tables.v4, plan, &tunnels);
        recovered.add_family(&tables.v6, plan, &tunnels);
        recovered.backends.sort_unstable();
        recovered.backends.dedup();
        recovered.tunnels = tunnels.into_values().collect();
        recovered
    }

    fn add_family<A: AddressFamily>(
        &mut self,
        tables: &FamilyTables<A>,
        plan: &Self,
        tunnels: &BTreeMap<u32, (String, Tunnel)>,
    ) {
        self.backends.extend(tables.backend_ids.keys().map(backend));
        for (row, laid) in &tables.services {
            let key = frontend_key(row);
            self.frontends.insert(key, frontend(laid, &tables.backends, plan.frontends.get(&key)));
        }
        let route = |(key, row): (&RouteKey<A>, &Route)| Some((net(key)?, target(*row, tunnels)?));
        self.routes.extend(tables.routes.iter().filter_map(route));
    }
}

fn backend<A: AddressFamily>(row: &Backend<A>) -> BackendKey {
    BackendKey { address: row.addr.to_ip(), port: row.port.get(), protocol: row.proto }
}

fn frontend_key<A: AddressFamily>(row: &ServiceKey<A>) -> FrontendKey {
    FrontendKey { address: row.addr.to_ip(), port: row.port.get(), protocol: row.proto, scope: row.scope }
}

fn frontend<A: AddressFamily>(
    laid: &LaidService,
    backends: &BTreeMap<u32, Backend<A>>,
    named: Option<&Frontend>,
) -> Frontend {
    let unknown = || (ObjectName::new("", "unknown"), String::new());
    let (service, port_name) =
        named.map_or_else(unknown, |named| (named.service.clone(), named.port_name.clone()));
    Frontend {
        service,
        port_name,
        backends: laid.slots.iter().filter_map(|id| backends.get(id)).map(backend).collect(),
        affinity_seconds: laid.row.affinity_seconds,
        flags: laid.row.flags,
    }
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
        };
        let known =
            ends(&tunnel).find_map(|end| names.get(&end)).filter(|name| taken.insert((**name).clone()));
        let name = known.map_or_else(|| format!("unknown in slot {slot}"), |name| (*name).clone());
        (slot, (name, tunnel))
    };
    rows.iter().map(tunnel).collect()
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

    use quilla_model::ObjectName;

    use crate::{BackendKey, Desired, Frontend, FrontendKey, Layout, LocalEndpoint, Target, Tunnel, diff};

    fn backend(address: &str) -> BackendKey {
        BackendKey { address: address.parse().unwrap(), port: 8080, protocol: 6 }
    }

    fn tunnel(host: u8) -> Tunnel {
        Tunnel {
            ipv4: Some([192, 0, 2, host].into()),
            ipv6: (host > 2).then(|| [0xfd, 0, 0, 0, 0, 0, 0, u16::from(host)].into()),
            mac: [host; 6],
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
        let frontend = |name: &str, address: &str, backends: &[BackendKey], flags| {
            let key = FrontendKey { address: address.parse().unwrap(), port: 80, protocol: 6, scope: 1 };
            let frontend = Frontend {
                service: ObjectName::new("shop", name),
                port_name: "http".into(),
                backends: backends.to_vec(),
                affinity_seconds: flags * 100,
                flags,
            };
            (key, frontend)
        };
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
            frontends: BTreeMap::from([
                frontend("web", "10.96.0.1", &backends[..2], 0),
                frontend("idle", "10.96.0.2", &[], 1),
                frontend("six", "fd00:96::1", &backends[3..], 1),
            ]),
            backends: backends.into(),
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
        assert!(nameless.frontends.values().all(|frontend| frontend.service.name == "unknown"));
        assert_eq!(nameless.tunnels.len(), 2);
    }
}
