//! Whether everything arrived: counters of drops and errors in every namespace of a path, before and after.
//!
//! A figure beside which one of them moved is void: what is not delivered costs nothing, and makes a path look fast.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use quilla_tests::netns::run_inside;

/// Counters of the protocols that stay where they are when all is well.
const QUIET: [(&str, &[&str]); 4] = [
    ("Ip", &["InHdrErrors", "InAddrErrors", "InDiscards", "OutDiscards", "OutNoRoutes"]),
    ("Tcp", &["RetransSegs", "InErrs", "InCsumErrors", "AttemptFails"]),
    ("Udp", &["NoPorts", "InErrors", "RcvbufErrors", "SndbufErrors", "InCsumErrors"]),
    (
        "TcpExt",
        &[
            "ListenDrops",
            "TCPDSACKRecv",
            "ListenOverflows",
            "TCPBacklogDrop",
            "TCPRcvQDrop",
            "TCPTimeouts",
            "TCPAbortOnTimeout",
        ],
    ),
];

/// Segments sent again, most of them because none was acknowledged for a while.
const RETRANSMITTED: &str = "TcpRetransSegs";
/// Segments of which the receiver said that it had them already (RFC 2883): nothing was lost.
const NEEDLESS: &str = "TcpExtTCPDSACKRecv";

/// Columns of `/proc/net/dev` after the name: errors and drops, received and sent.
const DEVICE: [(usize, &str); 4] = [(2, "rx errors"), (3, "rx drops"), (10, "tx errors"), (11, "tx drops")];

/// Counters by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Of several namespaces; counters are named after them.
    pub(super) fn read<'a>(namespaces: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        let mut all = BTreeMap::new();
        for path in namespaces {
            let files = || {
                ["dev", "snmp", "netstat"]
                    .map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")))
            };
            let [devices, snmp, netstat] = run_inside(path, files)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let mut counters = parse_devices(&devices.context("read /proc/net/dev")?);
            for text in [snmp, netstat] {
                counters.extend(parse_protocols(&text.context("read protocol counters")?));
            }
            all.extend(counters.into_iter().map(|(counter, value)| (format!("{name} {counter}"), value)));
        }
        Ok(Self(all))
    }

    /// Packets that the kernel dropped before any protocol, on any processor.
    pub(super) fn backlog() -> Result<Self> {
        let text = fs::read_to_string("/proc/net/softnet_stat").context("read /proc/net/softnet_stat")?;
        let dropped = text.lines().filter_map(|line| line.split_whitespace().nth(1));
        let dropped = dropped.filter_map(|number| u64::from_str_radix(number, 16).ok()).sum();
        Ok(Self([("backlog drops".to_owned(), dropped)].into()))
    }

    /// What has moved since, by how much.
    pub(super) fn moved(&self, later: &Self) -> Vec<String> {
        let by = |name: &str| {
            let [then, now] = [self, later].map(|counters| counters.0.get(name).copied().unwrap_or(0));
            now.saturating_sub(then)
        };
        let lost = |name: &str| match name.strip_suffix(RETRANSMITTED) {
            Some(namespace) => by(name).saturating_sub(by(&format!("{namespace}{NEEDLESS}"))),
            None if name.ends_with(NEEDLESS) => 0,
            None => by(name),
        };
        let moved = later.0.keys().map(|name| (name, lost(name))).filter(|(_, by)| *by > 0);
        moved.map(|(name, by)| format!("{name} +{by}")).collect()
    }
}

fn parse_devices(text: &str) -> Vec<(String, u64)> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .flat_map(|(device, numbers)| {
            let numbers: Vec<&str> = numbers.split_whitespace().collect();
            DEVICE.map(|(column, name)| {
                let value = numbers.get(column).and_then(|number| number.parse().ok());
                (format!("{} {name}", device.trim()), value.unwrap_or(0))
            })
        })
        .collect()
}

/// Pairs of lines, of which the first has names and the second their values.
fn parse_protocols(text: &str) -> Vec<(String, u64)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for pair in lines.chunks_exact(2) {
        let Some((protocol, names)) = pair[0].split_once(": ") else { continue };
        let Some((_, wanted)) = QUIET.iter().find(|(name, _)| *name == protocol) else { continue };
        let values = pair[1].split(' ').skip(1);
        let counters = names.split(' ').zip(values).filter(|(name, _)| wanted.contains(name));
        found.extend(counters.map(|(name, value)| (format!("{protocol}{name}"), value.parse().unwrap_or(0))));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Counters, parse_devices, parse_protocols};

    #[test]
    fn protocols_are_read_in_pairs_of_lines() {
        let text = "Ip: Forwarding InDiscards\nIp: 1 7\nTcp: MaxConn RetransSegs InCsumErrors\nTcp: -1 3 0\n";
        let expected = [("IpInDiscards", 7), ("TcpRetransSegs", 3), ("TcpInCsumErrors", 0)];
        assert_eq!(parse_protocols(text), expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn devices_have_errors_and_drops_in_both_directions() {
        let text = "head\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        let values: Vec<u64> = parse_devices(text).into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, [3, 4, 7, 8]);
    }

    #[test]
    fn what_was_sent_twice_and_arrived_twice_is_not_lost() {
        let of = |sent: u64, twice: u64| {
            Counters(
                [("n TcpRetransSegs".to_owned(), sent), ("n TcpExtTCPDSACKRecv".to_owned(), twice)].into(),
            )
        };
        assert_eq!(of(1, 1).moved(&of(3, 3)), Vec::<String>::new());
        assert_eq!(of(1, 1).moved(&of(4, 3)), ["n TcpRetransSegs +1"]);
    }

    #[test]
    fn only_what_moved_is_told() {
        let of = |value| Counters([("a".to_owned(), 1), ("b".to_owned(), value)].into());
        assert_eq!(of(2).moved(&of(5)), ["b +3"]);
    }
}
