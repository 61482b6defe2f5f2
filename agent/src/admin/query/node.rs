//! The node itself, and the ways to the others. Called for `status` and `nodes`.

use std::collections::BTreeMap;

use ipnet::IpNet;
use quilla_datapath::{Device, Netlink, Overlay, Result};
use quilla_plan::{Path, Target, Tunnel};
use serde_json::{Value, json};

use super::{Admin, endpoints, mac};
use crate::overlay::Encapsulation;
use crate::reconcile::View;
use crate::selftest::Readiness;
use crate::sockets::Support;

pub(super) const STATUS: &[&str] = &[
    "node",
    "ready",
    "reason",
    "problems",
    "policies_not_enforced",
    "kernel",
    "pod_programs",
    "uplink_programs",
    "ends_sockets",
    "uplinks",
    "uplink_mtus",
    "pod_mtu",
    "nodes",
    "routing_mode",
    "routing",
    "encapsulation",
    "encapsulation_reason",
    "frontends",
    "backends",
    "endpoints",
    "bandwidth",
];
pub(super) const NODES: &[&str] = &["node", "ipv4", "ipv6", "mac", "pods", "routing", "routing_reason"];

pub(super) fn status(admin: &Admin, view: &View) -> Result<Value> {
    let (ready, reason) = match &*admin.readiness.borrow() {
        Readiness::Ready => (true, None),
        Readiness::NotReady { reason } => (false, Some(reason.clone())),
    };
    let ends_sockets = match *admin.sockets.borrow() {
        Support::Unknown => None,
        support => Some(support == Support::Yes),
    };
    let kernel = admin.datapath.status();
    let uplinks = uplinks(view)?;
    let (names, mtus): (Vec<&str>, Vec<u32>) =
        uplinks.iter().map(|uplink| (uplink.name.as_str(), uplink.mtu)).unzip();
    let ways = Ways::new(view);
    let (encapsulation, why) = ways.encapsulation(&admin.encapsulation.borrow());
    Ok(json!([
        admin.node,
        ready,
        reason,
        view.all_problems().count(),
        view.unenforced_policies(),
        format!("{}.{}", kernel.release.0, kernel.release.1),
        kernel.pods.to_string(),
        kernel.uplinks().to_string(),
        ends_sockets,
        names,
        mtus,
        view.programmed.then(|| *admin.mtu.borrow()),
        view.desired.tunnels.len(),
        admin.routing.label(),
        ways.paths(),
        encapsulation,
        why,
        view.desired.frontends.len(),
        view.desired.backends.len(),
        view.endpoints.len(),
        endpoints::limited(&view.endpoints),
    ]))
}

/// The uplinks that are there, as they are now.
fn uplinks(view: &View) -> Result<Vec<Device>> {
    let netlink = Netlink::open()?;
    let devices = view.devices.iter().map(|ifindex| netlink.device_by_index(*ifindex));
    let devices: Vec<_> = devices.filter_map(Result::transpose).collect::<Result<_>>()?;
    Ok(devices.into_iter().filter(|device| device.name != Overlay::NAME).collect())
}

pub(super) fn nodes(view: &View) -> Vec<Value> {
    let ways = Ways::new(view);
    let row = |(name, tunnel): (&String, &Tunnel)| {
        let cidrs = ways.cidrs(name).iter().map(ToString::to_string).collect::<Vec<_>>();
        let [routing, reason] = ways.to(name, tunnel);
        json!([name, tunnel.ipv4, tunnel.ipv6, mac(tunnel.mac), cidrs, routing, reason])
    };
    view.desired.tunnels.iter().map(row).collect()
}

/// How packets get to other nodes, and for which Pods.
pub(super) struct Ways<'a> {
    tunnels: &'a BTreeMap<String, Tunnel>,
    cidrs: BTreeMap<&'a str, Vec<IpNet>>,
}

impl<'a> Ways<'a> {
    pub(super) fn new(view: &'a View) -> Self {
        let mut cidrs: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (cidr, target) in view.desired.routes.iter() {
            if let Target::RemotePods(node) = target {
                cidrs.entry(node).or_default().push(*cidr);
            }
        }
        for cidrs in cidrs.values_mut() {
            cidrs.sort_unstable();
        }
        Self { tunnels: &view.desired.tunnels, cidrs }
    }

    fn cidrs(&self, node: &str) -> &[IpNet] {
        self.cidrs.get(node).map_or(&[], Vec::as_slice)
    }

    /// The path and why, of the families in which the node has Pods; of both, while it has none.
    fn used(&self, node: &str, tunnel: &Tunnel) -> Vec<Path> {
        let cidrs = self.cidrs(node);
        let has = |v6: bool| cidrs.is_empty() || cidrs.iter().any(|cidr| cidr.addr().is_ipv6() == v6);
        let paths = [(false, tunnel.path_ipv4), (true, tunnel.path_ipv6)];
        paths.into_iter().filter(|(v6, _)| has(*v6)).map(|(_, path)| path).collect()
    }

    /// How packets get there and why: one word each if both families agree, else IPv4's and IPv6's.
    fn to(&self, node: &str, tunnel: &Tunnel) -> [String; 2] {
        let used = self.used(node, tunnel);
        let words = |word: fn(Path) -> &'static str| {
            let mut words: Vec<_> = used.iter().map(|path| word(*path)).collect();
            words.dedup();
            words.join("/")
        };
        [words(Path::label), words(Path::reason)]
    }

    /// How packets get to the other nodes: one word if it is the same for all, else how many of each.
    pub(super) fn paths(&self) -> Option<String> {
        let mut counts = BTreeMap::new();
        for (node, tunnel) in self.tunnels {
            let [routing, _] = self.to(node, tunnel);
            *counts.entry(routing).or_insert(0) += 1;
        }
        match counts.len() {
            0 => None,
            1 => counts.into_keys().next(),
            _ => {
                let counts = counts.iter().map(|(routing, count)| format!("{count} {routing}"));
                Some(counts.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// Who makes tunnels and why, or why there are none. What must be fragmented needs one on a plain way, too, and so does
    /// everything for a node to which the host has no way.
    pub(super) fn encapsulation(&self, known: &Encapsulation) -> (&'static str, String) {
        let plain =
            |(node, tunnel): (&String, &Tunnel)| self.used(node, tunnel).into_iter().all(Path::is_native);
        if self.tunnels.is_empty() {
            ("none", "not needed: there is no other node".to_owned())
        } else if self.tunnels.iter().all(plain) {
            (known.label(), format!("only for what cannot go plainly: {}", known.reason))
        } else {
            (known.label(), known.reason.clone())
        }
    }
}
