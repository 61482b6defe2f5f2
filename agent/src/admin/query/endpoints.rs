//! Attachments as journal, data path and kernel know them, and what only one of them knows. Called for `endpoints`.
//!
//! Invariant: where the three agree, every row is `attached`; anything else is under way, a leak, or unguarded.

use std::collections::BTreeSet;
use std::net::IpAddr;

use quilla_cni_protocol::{Bandwidth, is_host_ifname};
use quilla_datapath::netlink::Netlink;
use quilla_datapath::{DatapathError, Mechanism, Result};
use serde_json::{Value, json};

use super::{Admin, mac};
use crate::cni::{AttachedEndpoint, Entry};
use crate::reconcile::View;

/// What enforces the bandwidth of what Pods send and receive; see `docs/cni.md` for why it is these.
const SENT_BY: &str = "tbf queue";
const RECEIVED_BY: &str = "nftables drop";

pub(super) const COLUMNS: &[&str] = &[
    "namespace",
    "pod",
    "id",
    "ipv4",
    "ipv6",
    "device",
    "mac",
    "container",
    "network",
    "bandwidth",
    "programs",
    "state",
];

/// One row for each attachment, then one for each leak.
pub(super) fn rows(admin: &Admin, view: &View) -> Result<Vec<Value>> {
    // Before and after the journal: what comes or goes in between is no leak.
    let netlink = Netlink::open()?;
    let devices: BTreeSet<String> = netlink.device_names()?.into_values().collect();
    let entries = admin.ledger.entries();
    let still_there: BTreeSet<String> = netlink.device_names()?.into_values().collect();
    let known: BTreeSet<&str> = entries.iter().map(|entry| entry.endpoint().host_ifname.as_str()).collect();
    let attachments = entries.iter().map(|entry| {
        let programs = programs(admin, &entry.endpoint().host_ifname)?;
        Ok(attachment(entry, &devices, programs, view))
    });
    let leaked = devices.iter().filter(|name| is_host_ifname(name) && !known.contains(name.as_str()));
    let leaked = leaked.filter(|name| still_there.contains(*name));
    let leaked = leaked.map(|name| leak(name, None, "leak: device without attachment"));
    let stray = admin.ledger.stray_addresses().into_iter();
    let stray = stray.map(|address| leak("", Some(address), "leak: address without attachment"));
    attachments.chain(leaked.map(Ok)).chain(stray.map(Ok)).collect()
}

/// How our programs are attached to a Pod's device now; `None`: not both of them are, or the device is gone.
fn programs(admin: &Admin, device: &str) -> Result<Option<Mechanism>> {
    match admin.datapath.pod_mechanism(device) {
        Err(DatapathError::NoDevice { .. }) => Ok(None),
        result => result,
    }
}

fn attachment(entry: &Entry, devices: &BTreeSet<String>, programs: Option<Mechanism>, view: &View) -> Value {
    let endpoint = entry.endpoint();
    let id = view.tables.interfaces.get(&endpoint.host_ifindex).map(|interface| interface.id);
    json!([
        endpoint.pod_namespace,
        endpoint.pod_name,
        id,
        endpoint.ipv4,
        endpoint.ipv6,
        endpoint.host_ifname,
        mac(endpoint.pod_mac),
        endpoint.container_id,
        endpoint.network,
        limits(&endpoint.bandwidth),
        programs.map(|mechanism| mechanism.to_string()),
        state(entry, endpoint, devices, programs, view),
    ])
}

fn state(
    entry: &Entry,
    endpoint: &AttachedEndpoint,
    devices: &BTreeSet<String>,
    programs: Option<Mechanism>,
    view: &View,
) -> &'static str {
    match entry {
        Entry::Reserved(_) => "reserved",
        Entry::Releasing(_) => "releasing",
        Entry::Released(_) => "released, not yet in the journal",
        Entry::Attached(_) if !devices.contains(&endpoint.host_ifname) => "leak: no device",
        Entry::Attached(_) if !view.endpoints.contains(endpoint) => "not programmed",
        Entry::Attached(_) if view.absent.contains(endpoint) => "leak: another device",
        Entry::Attached(_) if programs.is_none() => "unguarded: no programs",
        Entry::Attached(_) => "attached",
    }
}

fn leak(device: &str, address: Option<IpAddr>, state: &str) -> Value {
    let (ipv4, ipv6) = (address.filter(IpAddr::is_ipv4), address.filter(IpAddr::is_ipv6));
    json!([null, null, null, ipv4, ipv6, device, null, null, null, [], null, state])
}

/// What the Pod may send and receive, each with what sees to it.
fn limits(bandwidth: &Bandwidth) -> Vec<String> {
    let limits =
        [(SENT_BY, "sends", bandwidth.egress_rate), (RECEIVED_BY, "receives", bandwidth.ingress_rate)];
    let limited = limits.into_iter().filter(|(_, _, rate)| *rate != 0);
    limited.map(|(by, verb, rate)| format!("{verb} {} ({by})", bits_per_second(rate))).collect()
}

/// How many Pods are limited, and how; `None` when there is none.
pub(super) fn limited(endpoints: &[AttachedEndpoint]) -> Option<String> {
    let count = endpoints.iter().filter(|endpoint| !endpoint.bandwidth.is_unlimited()).count();
    (count > 0).then(|| format!("{count} limited: sending by {SENT_BY}, receiving by {RECEIVED_BY}"))
}

/// In the largest unit that says it exactly.
fn bits_per_second(rate: u64) -> String {
    let units = [(1_000_000_000, "Gbit/s"), (1_000_000, "Mbit/s"), (1_000, "kbit/s")];
    let unit = units.into_iter().find(|(size, _)| rate.is_multiple_of(*size));
    unit.map_or_else(|| format!("{rate} bit/s"), |(size, name)| format!("{} {name}", rate / size))
}

#[cfg(test)]
mod tests {
    use quilla_cni_protocol::Bandwidth;
    use quilla_datapath::Mechanism;

    use super::{limits, state};
    use crate::cni::{AttachedEndpoint, Entry};
    use crate::reconcile::View;

    /// E19: a Pod without its programs is not simply attached, however well everything else agrees.
    #[test]
    fn e19_a_pod_without_programs_shows() {
        let endpoint = AttachedEndpoint::numbered(7);
        let devices = [endpoint.host_ifname.clone()].into();
        let view = View { endpoints: vec![endpoint.clone()], ..View::default() };
        let state =
            |programs| state(&Entry::Attached(endpoint.clone()), &endpoint, &devices, programs, &view);
        for mechanism in [Mechanism::Clsact, Mechanism::Tcx] {
            assert_eq!(state(Some(mechanism)), "attached");
        }
        assert_eq!(state(None), "unguarded: no programs");
    }

    /// CNI-33: each limit is told with what enforces it.
    #[test]
    fn cni_33_limits_and_how_they_are_enforced() {
        assert!(limits(&Bandwidth::default()).is_empty());
        let both = Bandwidth { egress_rate: 1_500_000, ingress_rate: 8_001, ..Bandwidth::default() };
        assert_eq!(limits(&both), ["sends 1500 kbit/s (tbf queue)", "receives 8001 bit/s (nftables drop)"]);
        let one = Bandwidth { ingress_rate: 2_000_000_000, ..Bandwidth::default() };
        assert_eq!(limits(&one), ["receives 2 Gbit/s (nftables drop)"]);
    }
}
