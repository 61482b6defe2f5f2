//! Attachments as journal, data path and kernel know them, and what only one of them knows. Called for `endpoints`.
//!
//! Invariant: where the three agree, every row is `attached`; anything else is under way, or a leak.

use std::collections::BTreeSet;
use std::net::IpAddr;

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
    let devices = netlink.device_names()?;
    let entries = admin.ledger.entries();
    let still_there = netlink.device_names()?;
    let known: BTreeSet<&str> = entries.iter().map(|entry| entry.endpoint().host_ifname.as_str()).collect();
    let attachments = entries.iter().map(|entry| attachment(entry, &devices, view));
    let leaked = devices.iter().filter(|name| is_host_side(name) && !known.contains(name.as_str()));
    let leaked = leaked.filter(|name| still_there.contains(name));
    let leaked = leaked.map(|name| leak(name, None, "leak: device without attachment"));
    let stray = admin.ledger.stray_addresses().into_iter();
    let stray = stray.map(|address| leak("", Some(address), "leak: address without attachment"));
    Ok(attachments.chain(leaked).chain(stray).collect())
}

fn attachment(entry: &Entry, devices: &[String], view: &View) -> Value {
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

fn state(entry: &Entry, endpoint: &AttachedEndpoint, devices: &[String], view: &View) -> &'static str {
    match entry {
        Entry::Reserved(_) => "reserved",
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

/// The names that `quilla_cni_protocol::host_ifname` makes.
fn is_host_side(name: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'v').contains(&byte);
    name.strip_prefix("quil").is_some_and(|rest| rest.len() == 11 && rest.bytes().all(digit))
}

#[cfg(test)]
mod tests {
    use quilla_cni_protocol::host_ifname;

    use super::is_host_side;

    #[test]
    fn host_sides_are_told_from_other_devices() {
        assert!((0..100).all(|id| is_host_side(&host_ifname(&format!("c{id}"), "eth0"))));
        assert!(!is_host_side("quilla_vxlan") && !is_host_side("eth0") && !is_host_side("quilla"));
    }
}
