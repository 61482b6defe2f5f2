//! What a run has met: every kind of Service, set, packet, connection and fate that the specification is about.
//!
//! The model and the comparison count here. [`KINDS`] lists what a full run must have met, and all that may be counted:
//! a generator that forgets a kind, and a kind that nobody lists, fail the run.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use quilla_model::{Endpoint, Family, LoadBalancing, Service, ServiceType, TrafficPolicy};

use crate::model::Hook;
use crate::service::Side;
use crate::wire::{Headers, ICMP, ICMPV6, Part, TCP, UDP};
use crate::world::{HERE, World};

/// A kind in words, the topic first; what is left is empty.
type Kind = [&'static str; 4];

const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const SIDES: &[&str] = &["inside", "outside"];
/// Of other nodes.
const LOCATIONS: &[&str] = &["neighbour", "unknown neighbour", "behind a router", "nowhere"];
const PROTOCOLS: &[&str] = &["TCP", "UDP", "echo", "other"];

/// Every combination of the words of each row.
const KINDS: &[(&str, &[&[&str]])] = &[
    (
        "Service",
        &[
            &["ClusterIP", "NodePort", "LoadBalancer"],
            &["internal Cluster", "internal Local"],
            &["external Cluster", "external Local"],
        ],
    ),
    ("families", &[&["IPv4", "IPv6", "IPv4 first", "IPv6 first", "endpoints of one only"]]),
    ("balancing", &[&["random", "Maglev", "least connections"], &["each anew", "with affinity"]]),
    (
        "endpoint",
        &[
            &["ready", "not ready", "draining", "terminating", "ready but terminating"],
            &["here", "elsewhere"],
        ],
    ),
    ("frontend", &[&["cluster IP"], &["inside"], FAMILIES]),
    ("frontend", &[&["node port", "load balancer", "external IP", "host port"], SIDES, FAMILIES]),
    (
        "set",
        &[
            &["Cluster"],
            SIDES,
            &["all ready", "useless hints", "same node", "same zone", "last resort", "nobody"],
        ],
    ),
    ("set", &[&["Local"], SIDES, &["all ready", "whatever the hints", "last resort", "nobody", "hidden"]]),
    ("shares", &[&["equal", "different"], &["drawn", "by table"]]),
    ("source ranges", &[&["let in", "refused"], SIDES, FAMILIES]),
    ("affinity", &[&["first", "kept", "too old", "endpoint left"], SIDES]),
    (
        "packet",
        &[&["from Pod", "to Pod", "from uplink", "to uplink by a Pod", "to uplink by the node"], FAMILIES],
    ),
    ("packet", &[&["from overlay", "from a strange node", "to overlay"], FAMILIES]),
    ("transport", &[PROTOCOLS, &["whole", "first piece", "later piece"], FAMILIES]),
    ("connection", &[&["begun", "continued", "answered"], PROTOCOLS]),
    ("connection", &[&["begun after silence"], &["UDP", "echo", "other"]]),
    ("connection", &[&["met in its middle", "begun after its end"], &["TCP"]]),
    ("connection", &[&["led elsewhere", "to itself", "under another port"], &["TCP", "UDP"]]),
    ("error", &[&["of a connection", "of nothing known"], FAMILIES]),
    ("answer", &[&["reset", "uncut reset", "reset of the client", "port unreachable", "too big"], FAMILIES]),
    ("tunnel", &[&["made", "opened"], FAMILIES, FAMILIES]),
    (
        "outer",
        &[
            &[
                "other identifier",
                "other flags",
                "reserved bits",
                "other port",
                "other address",
                "options",
                "piece",
                "header checksum",
                "UDP checksum",
                "short datagram",
                "long datagram",
                "cut",
                "runt",
            ],
            FAMILIES,
        ],
    ),
    ("congestion", &[&["handed on", "not understood"], FAMILIES]),
    ("plain", &[&["left", "came"], FAMILIES]),
    ("plain out", &[&["from Pod", "from uplink", "by the node itself", "an error"], FAMILIES]),
    ("plain out", &[&["to"], &["neighbour", "unknown neighbour", "behind a router"], FAMILIES]),
    ("plain out", &[&["addressed by us", "addressed by the kernel"], FAMILIES]),
    ("plain out", &[&["not so"], &["for want of a route"], FAMILIES]),
    ("plain out", &[&["not so"], &["to be cut"], &["IPv4"]]),
    ("plain in", &[&["believed"], LOCATIONS, FAMILIES]),
    ("plain in", &[&["by another uplink", "under an own address", "of the world"], &[""], FAMILIES]),
    ("plain in", &[&["from elsewhere"], &["another node", "a stranger"], FAMILIES]),
    ("plain in", &[&["without an address"], LOCATIONS, FAMILIES]),
    ("plain in", &[&["whole", "first piece", "later piece"], PROTOCOLS, FAMILIES]),
    ("plain in", &[&["an error"], &["echo"], FAMILIES]),
    ("plain in", &[&["to"], &["local Pod", "stack", "uplink", "dropped"], FAMILIES]),
    ("plain in", &[&["as we send", "otherwise than we send"], FAMILIES]),
    ("plain in", &[&["in a tunnel although we send otherwise"], FAMILIES]),
    ("routing", &[&["now in a tunnel", "now without a tunnel"], FAMILIES, PROTOCOLS]),
    ("too big", &[&["for another node", "for the world"], FAMILIES]),
    ("way", &[&["local Pod", "overlay", "native", "stack", "uplink", "host to overlay", "passed"]]),
    (
        "drop",
        &[&[
            "truncated",
            "bad_ip_header",
            "bad_transport_header",
            "unknown_ethertype",
            "extension_headers",
            "source_route",
            "fragment",
            "spoofed_address",
            "spoofed_mac",
            "forged_neighbour",
            "multicast",
            "forged_overlay",
            "forged_report",
            "unknown_tunnel_source",
            "bad_tunnel_header",
            "wrong_vni",
            "wrong_tunnel_source",
            "no_backend",
            "not_a_service",
            "backend_gone",
            "no_flow",
            "no_local_backend",
            "source_range",
            "not_a_service_port",
            "no_endpoint",
            "unroutable",
            "no_route",
            "unknown_node",
            "hop_limit",
            "untranslatable",
            "too_big",
        ]],
    ),
];

/// Packets after which everything must have been met; shorter runs look at one world.
pub(crate) const FULL: u64 = 400_000;

/// How often each kind was met, in how many packets.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    pub packets: u64,
    met: BTreeMap<Kind, u64>,
}

impl Coverage {
    /// Counts one more of a kind.
    pub(crate) fn meet(&mut self, kind: Kind) {
        *self.met.entry(kind).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.packets += other.packets;
        for (kind, count) in other.met {
            *self.met.entry(kind).or_default() += count;
        }
    }

    /// Counts what the Services of a world are.
    pub(crate) fn meet_cluster(&mut self, world: &World) {
        for service in world.snapshot.services.values() {
            let [kind, internal, external] = policies(service);
            self.meet(["Service", kind, internal, external]);
            let affinity = if service.affinity_seconds.is_some() { "with affinity" } else { "each anew" };
            self.meet(["balancing", balancing(service.load_balancing), affinity, ""]);
            self.meet(["families", families(world, service), "", ""]);
            for slice in world.snapshot.slices_of(&service.name) {
                for endpoint in &slice.endpoints {
                    let here = endpoint.node.as_deref() == Some(HERE);
                    self.meet(["endpoint", state(endpoint), if here { "here" } else { "elsewhere" }, ""]);
                }
            }
        }
    }

    /// Fails if a kind was met that is not listed, or, in a full run, one was never met.
    pub(crate) fn check(&self) -> Result<()> {
        let listed = listed();
        let unlisted: Vec<&Kind> = self.met.keys().filter(|kind| !listed.contains(kind)).collect();
        ensure!(unlisted.is_empty(), "not listed: {unlisted:?}");
        let missing: Vec<&Kind> = listed.iter().filter(|kind| !self.met.contains_key(*kind)).collect();
        ensure!(self.packets < FULL || missing.is_empty(), "never met: {missing:?}");
        Ok(())
    }
}

/// One line for each topic.
impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest: Vec<(&Kind, u64)> = self.met.iter().map(|(kind, count)| (kind, *count)).collect();
        rest.sort_by_key(|(kind, count)| (kind[0], *count));
        for topic in rest.chunk_by(|(one, _), (other, _)| one[0] == other[0]) {
            let ([name, words @ ..], least) = topic[0];
            let (kinds, times) = (topic.len(), topic.iter().map(|(_, count)| count).sum::<u64>());
            let words = words.join(" ");
            writeln!(
                f,
                "{name}: {kinds} kinds, {times} times; the rarest, {}, {least} times",
                words.trim_end()
            )?;
        }
        Ok(())
    }
}

fn listed() -> Vec<Kind> {
    let mut all = Vec::new();
    for (topic, choices) in KINDS {
        let mut kinds: Vec<Kind> = vec![[topic, "", "", ""]];
        for (place, words) in (1..).zip(*choices) {
            let with = |kind: Kind| {
                words.iter().map(move |word| {
                    let mut longer = kind;
                    longer[place] = word;
                    longer
                })
            };
            kinds = kinds.into_iter().flat_map(with).collect();
        }
        all.extend(kinds);
    }
    all
}

fn policies(service: &Service) -> [&'static str; 3] {
    let kind = match service.kind {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let internal = match service.internal_policy {
        TrafficPolicy::Cluster => "internal Cluster",
        TrafficPolicy::Local => "internal Local",
    };
    let external = match service.external_policy {
        TrafficPolicy::Cluster => "external Cluster",
        TrafficPolicy::Local => "external Local",
    };
    [kind, internal, external]
}

fn balancing(how: LoadBalancing) -> &'static str {
    match how {
        LoadBalancing::Random => "random",
        LoadBalancing::Maglev => "Maglev",
        LoadBalancing::LeastConnections => "least connections",
    }
}

fn families(world: &World, service: &Service) -> &'static str {
    let served = |family| {
        let of_family = |slice: &&quilla_model::EndpointSlice| slice.family == family;
        world.snapshot.slices_of(&service.name).filter(of_family).any(|slice| !slice.endpoints.is_empty())
    };
    match service.cluster_ips[..] {
        [IpAddr::V4(_)] => "IPv4",
        [IpAddr::V6(_)] => "IPv6",
        _ if served(Family::V4) != served(Family::V6) => "endpoints of one only",
        [IpAddr::V4(_), ..] => "IPv4 first",
        _ => "IPv6 first",
    }
}

fn state(endpoint: &Endpoint) -> &'static str {
    match (endpoint.ready, endpoint.serving, endpoint.terminating) {
        (true, _, false) => "ready",
        (true, _, true) => "ready but terminating",
        (false, _, false) => "not ready",
        (false, true, true) => "draining",
        (false, false, true) => "terminating",
    }
}

pub(crate) fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

pub(crate) fn side(side: Side) -> &'static str {
    match side {
        Side::Inside => "inside",
        Side::Outside => "outside",
    }
}

pub(crate) fn policy(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

pub(crate) fn hook(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod(_) => "from Pod",
        Hook::ToPod(_) => "to Pod",
        Hook::FromOverlay(Some(_)) => "from overlay",
        Hook::FromOverlay(None) => "from a strange node",
        Hook::ToOverlay => "to overlay",
        Hook::FromUplink => "from uplink",
        Hook::ToUplink(Some(_)) => "to uplink by a Pod",
        Hook::ToUplink(None) => "to uplink by the node",
    }
}

pub(crate) fn protocol(headers: &Headers) -> &'static str {
    let icmp = if headers.tuple.src.is_ipv4() { ICMP } else { ICMPV6 };
    match headers.tuple.proto {
        TCP => "TCP",
        UDP => "UDP",
        proto if proto == icmp => "echo",
        _ => "other",
    }
}

pub(crate) fn part(part: Part) -> &'static str {
    match part {
        Part::Whole => "whole",
        Part::First => "first piece",
        Part::Later => "later piece",
    }
}
