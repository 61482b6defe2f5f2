//! Attachments as journal, data path and kernel know them, and what only one of them knows. Called for `endpoints`.
//!
//! Invariant: where the three agree, every row is `attached`; anything else is under way, or a leak.

use std::collections::BTreeSet;
use std::net::IpAddr;

use quilla_cni_protocol::is_host_ifname;
use quilla_datapath::Result;
use quilla_datapath::netlink::Netlink;
use serde_json::{Value, json};

use super::{Admin, mac};
use crate::cni::{AttachedEndpoint, Entry};
use crate::reconcile::View;

pub(super) const COLUMNS: &[&str] =
    &["namespace", "pod", "id", "ipv4", "ipv6", "device", "mac", "container", "network", "state"];

/// One row for each attachment, then one for each leak.
pub(super) fn rows(admin: &Admin, view: &View) -> Result<Vec<Value>> {
    // Before and after the journal: what comes or goes in between is no leak.
    let netlink = Netlink::open()?;
    let devices: BTreeSet<String> = netlink.device_names()?.into_values().collect();
    let entries = admin.ledger.entries();
    let still_there: BTreeSet<String> = netlink.device_names()?.into_values().collect();
    let known: BTreeSet<&str> = entries.iter().map(|entry| entry.endpoint().host_ifname.as_str()).collect();
    let attachments = entries.iter().map(|entry| attachment(entry, &devices, view));
    let leaked = devices.iter().filter(|name| is_host_ifname(name) && !known.contains(name.as_str()));
    let leaked = leaked.filter(|name| still_there.contains(*name));
    let leaked = leaked.map(|name| leak(name, None, "leak: device without attachment"));
    let stray = admin.ledger.stray_addresses().into_iter();
    let stray = stray.map(|address| leak("", Some(address), "leak: address without attachment"));
    Ok(attachments.chain(leaked).chain(stray).collect())
}

fn attachment(entry: &Entry, devices: &BTreeSet<String>, view: &View) -> Value {
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
        state(entry, endpoint, devices, view),
    ])
}

fn state(
    entry: &Entry,
    endpoint: &AttachedEndpoint,
    devices: &BTreeSet<String>,
    view: &View,
) -> &'static str {
    match entry {
        Entry::Reserved(_) => "reserved",
        Entry::Released(_) => "released, not yet in the journal",
        Entry::Attached(_) if !devices.contains(&endpoint.host_ifname) => "leak: no device",
        Entry::Attached(_) if !view.endpoints.contains(endpoint) => "not programmed",
        Entry::Attached(_) if view.absent.contains(endpoint) => "leak: another device",
        Entry::Attached(_) => "attached",
    }
}

fn leak(device: &str, address: Option<IpAddr>, state: &str) -> Value {
    let (ipv4, ipv6) = (address.filter(IpAddr::is_ipv4), address.filter(IpAddr::is_ipv6));
    json!(["", "", null, ipv4, ipv6, device, "", "", "", state])
}
