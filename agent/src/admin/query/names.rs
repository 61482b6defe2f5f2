//! What an address is called in the cluster. Used by the queries that show addresses.

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use quilla_abi::service::scope;
use quilla_model::{EndpointSlice, ObjectName, Snapshot};
use quilla_plan::{BackendKey, Desired, Frontend, FrontendKey, Target, route};

use super::filter::Filter;
use crate::reconcile::View;

pub(super) struct Names<'a> {
    node: &'a str,
    desired: &'a Desired,
    /// Attached to this node.
    own: HashMap<IpAddr, String>,
    /// Behind Services, wherever they run: namespace and name.
    others: HashMap<IpAddr, (&'a str, &'a str)>,
    nodes: HashMap<IpAddr, &'a str>,
    snapshot: &'a Snapshot,
    /// Which Services have an endpoint, and under which port; made when it is first asked for.
    users: OnceCell<HashMap<BackendKey, Users<'a>>>,
}

/// Services and names of their ports; these may be old ones.
type Users<'a> = Vec<(&'a ObjectName, &'a str)>;

impl<'a> Names<'a> {
    pub(super) fn new(node: &'a str, view: &'a View) -> Self {
        let mut own = HashMap::new();
        for endpoint in &view.endpoints {
            let name = format!("{}/{}", endpoint.pod_namespace, endpoint.pod_name);
            own.extend(endpoint.ipv4.map(|address| (IpAddr::V4(address), name.clone())));
            own.extend(endpoint.ipv6.map(|address| (IpAddr::V6(address), name)));
        }
        let mut nodes = HashMap::new();
        for (name, tunnel) in &view.desired.tunnels {
            nodes.extend(tunnel.ipv4.map(|address| (IpAddr::V4(address), name.as_str())));
            nodes.extend(tunnel.ipv6.map(|address| (IpAddr::V6(address), name.as_str())));
        }
        let snapshot = &view.snapshot;
        // Under the gateway's address hosts speak to other nodes' Pods, and agents to each other.
        for name in snapshot.nodes.keys() {
            let (ipv4, ipv6) = route::gateways(snapshot, name);
            nodes.extend(ipv4.map(|address| (IpAddr::V4(address), name.as_str())));
            nodes.extend(ipv6.map(|address| (IpAddr::V6(address), name.as_str())));
        }
        Self {
            node,
            desired: &view.desired,
            own,
            others: others(snapshot),
            nodes,
            snapshot,
            users: OnceCell::new(),
        }
    }

    /// A Pod, or a node. What shares its node's address goes by the name of the node.
    pub(super) fn host(&self, address: IpAddr) -> Option<String> {
        if let Some(pod) = self.own.get(&address) {
            return Some(format!("pod {pod}"));
        }
        if let Some(node) = self.node(address) {
            return Some(format!("node {node}"));
        }
        self.others.get(&address).map(|(namespace, name)| format!("pod {namespace}/{name}"))
    }

    fn node(&self, address: IpAddr) -> Option<&str> {
        let own = self.desired.routes.get(&IpNet::from(address)) == Some(&Target::Host);
        if own { Some(self.node) } else { self.nodes.get(&address).copied() }
    }

    /// Whether the address is a Pod's of that name: with its namespace, or without.
    pub(super) fn is_pod(&self, address: IpAddr, name: &str) -> bool {
        if let Some(own) = self.own.get(&address) {
            return is_named(own, name);
        }
        let other = self.others.get(&address).filter(|_| self.node(address).is_none());
        other.is_some_and(|(namespace, pod)| is_named(&format!("{namespace}/{pod}"), name))
    }

    /// Whether any Pod has that name.
    pub(super) fn knows_pod(&self, name: &str) -> bool {
        let full = |(namespace, pod): &(&str, &str)| format!("{namespace}/{pod}");
        self.own.values().any(|own| is_named(own, name))
            || self.others.values().any(|other| is_named(&full(other), name))
    }

    /// The Service and the port that has a frontend there, in whichever scope.
    pub(super) fn service(&self, end: SocketAddr, protocol: u8) -> Option<String> {
        let key = |scope| FrontendKey { address: end.ip(), port: end.port(), protocol, scope };
        let found = self.frontend(&key(scope::INTERNAL)).or_else(|| self.frontend(&key(scope::EXTERNAL)));
        found.map(full_name)
    }

    /// What has this address; two may have one address in different scopes.
    pub(super) fn frontend(&self, key: &FrontendKey) -> Option<&'a Frontend> {
        self.desired.frontends.get(key)
    }

    /// Everything that serves an address.
    pub(super) fn frontends(&self) -> impl Iterator<Item = (SocketAddr, &'a Frontend)> {
        self.desired.frontends.iter().map(|(key, found)| (SocketAddr::new(key.address, key.port), found))
    }

    /// The Services that list an endpoint, chosen or not, each with its port if that still has the name.
    pub(super) fn users(&self, endpoint: &BackendKey) -> BTreeSet<String> {
        let users = self.users.get_or_init(|| users(self.snapshot)).get(endpoint).into_iter().flatten();
        let name = |(service, port): &(&ObjectName, &str)| {
            let found = self.snapshot.services.get(service)?;
            let known = !port.is_empty() && found.ports.iter().any(|served| *served.name == **port);
            let name = format!("{}/{}", service.namespace, service.name);
            Some(if known { format!("{name}:{port}") } else { name })
        };
        users.filter_map(name).collect()
    }

    /// What Services are called whose frontends are asked for: with their ports, and without.
    pub(super) fn wanted(&self, filter: &Filter) -> BTreeSet<String> {
        let wanted = self.frontends().filter(|(at, found)| filter.takes_service(Some(found), *at));
        wanted.flat_map(|(_, found)| [full_name(found), owner(found)]).collect()
    }
}

fn users(snapshot: &Snapshot) -> HashMap<BackendKey, Users<'_>> {
    let mut found: HashMap<_, Users<'_>> = HashMap::new();
    for slice in slices(snapshot) {
        for port in &slice.ports {
            for endpoint in &slice.endpoints {
                let address = endpoint.address;
                let key = BackendKey { address, port: port.port, protocol: port.protocol.number() };
                found.entry(key).or_default().push((&slice.service, &port.name));
            }
        }
    }
    found
}

fn others(snapshot: &Snapshot) -> HashMap<IpAddr, (&str, &str)> {
    let named = slices(snapshot).flat_map(|slice| {
        let namespace = &*slice.name.namespace;
        slice.endpoints.iter().filter_map(move |one| Some((one.address, (namespace, one.pod.as_deref()?))))
    });
    named.collect()
}

fn slices(snapshot: &Snapshot) -> impl Iterator<Item = &EndpointSlice> {
    snapshot.slices.values().flat_map(|slices| slices.values().map(Arc::as_ref))
}

/// What a frontend belongs to: `NAMESPACE/NAME` of a Service; of anything else, with its kind.
pub(super) fn owner(frontend: &Frontend) -> String {
    let owner = &frontend.set.owner;
    match owner.kind {
        "Service" => format!("{}/{}", owner.namespace, owner.name),
        // What was found in the kernel has no name yet.
        _ if owner.name.is_empty() => String::new(),
        _ => owner.to_string(),
    }
}

/// The same with the name of the port, if it has one.
pub(super) fn full_name(frontend: &Frontend) -> String {
    let (name, port) = (owner(frontend), &frontend.set.port_name);
    if port.is_empty() { name } else { format!("{name}:{port}") }
}

/// Whether `name` means the object: with its namespace, without, or with a port behind it.
pub(super) fn is_named(full: &str, name: &str) -> bool {
    let object = full.split(':').next().unwrap_or(full);
    let bare = |text: &str| text.rsplit('/').next().map(str::to_owned);
    [full, object].contains(&name)
        || bare(full).is_some_and(|bare| bare == name)
        || bare(object).is_some_and(|bare| bare == name)
}

#[cfg(test)]
mod tests {
    use super::is_named;

    #[test]
    fn a_name_is_whole_or_without_its_namespace_or_port() {
        for name in ["shop/web:http", "shop/web", "web:http", "web"] {
            assert!(is_named("shop/web:http", name), "{name}");
        }
        for name in ["shop", "eb", "other/web", "web:https", "http", ""] {
            assert!(!is_named("shop/web:http", name), "{name}");
        }
    }
}
