//! The devices of a path: their offloads, which a metric may switch off, and what a report says of all of them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use quilla_tests::command::Run;
use quilla_tests::netns::inside;
use serde_json::Value;

/// What is told of each device, by ethtool's names.
const FEATURES: [(&str, &str); 5] = [
    ("tcp-segmentation-offload", "TSO"),
    ("generic-segmentation-offload", "GSO"),
    ("generic-receive-offload", "GRO"),
    ("tx-checksumming", "TX sum"),
    ("tx-udp_tnl-segmentation", "tunnel TSO"),
];

/// Lets a device segment, or leaves it to the stack before it.
pub(super) fn segment(namespace: &Path, device: &str, on: bool) -> Result<()> {
    let state = if on { "on" } else { "off" };
    let mut command = inside(namespace, "ethtool");
    command.args(["-K", device, "tso", state, "gso", state]).text().map(drop)
}

/// A line for each kind of device, with all devices that are so.
pub(super) fn list<'a>(namespaces: impl IntoIterator<Item = &'a Path>) -> Result<String> {
    let mut alike: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for namespace in namespaces {
        let name = namespace.file_name().unwrap_or_default().to_string_lossy();
        let links = inside(namespace, "ip").args(["-details", "-json", "link"]).text()?;
        let links: Vec<Value> = serde_json::from_str(&links).context("parse the list of devices")?;
        for link in links.iter().filter(|link| link["ifname"] != "lo") {
            let device = link["ifname"].as_str().unwrap_or_default();
            alike.entry(traits(namespace, device, link)?).or_default().push(format!("{name}/{device}"));
        }
    }
    let lines = alike.iter().map(|(traits, names)| format!("- {traits}: {}", names.join(" ")));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn traits(namespace: &Path, device: &str, link: &Value) -> Result<String> {
    let features = inside(namespace, "ethtool").args(["-k", device]).text()?;
    let kind = link["linkinfo"]["info_kind"].as_str().unwrap_or_default();
    let states = FEATURES.map(|(name, title)| format!("{title} {}", state(&features, name)));
    Ok(format!("{kind}, MTU {}, {}", link["mtu"], states.join(", ")))
}

fn state(features: &str, name: &str) -> String {
    let mut lines = features.lines().filter_map(|line| line.trim().split_once(": "));
    let found = lines.find(|(feature, _)| *feature == name);
    found.and_then(|(_, state)| state.split(' ').next()).unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::state;

    #[test]
    fn states_are_without_their_notes() {
        let text =
            "Features for eth0:\ngeneric-receive-offload: off\n\ttx-udp_tnl-segmentation: on [fixed]\n";
        assert_eq!(state(text, "tx-udp_tnl-segmentation"), "on");
        assert_eq!(state(text, "generic-receive-offload"), "off");
        assert_eq!(state(text, "rx-gro-hw"), "unknown");
    }
}
