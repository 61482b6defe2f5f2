//! Address families, and reading addresses as leniently as Kubernetes does. Called by the watch and the planner.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Parses an address; IPv4 octets may have leading zeros, which are decimal (S2), as in objects stored long ago.
/// An IPv4-mapped IPv6 address is the IPv4 address.
pub fn parse_lenient(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical()).or_else(|| parse_padded(text))
}

/// Parses a prefix as leniently. Host bits are cut off.
pub fn parse_lenient_net(text: &str) -> Option<IpNet> {
    let padded = || {
        let (address, length) = text.split_once('/')?;
        IpNet::new(parse_padded(address)?, length.parse().ok()?).ok()
    };
    text.parse().ok().or_else(padded).map(|net: IpNet| net.trunc())
}

fn parse_padded(text: &str) -> Option<IpAddr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// Where clouds give secrets to whoever asks from a node. Those of IPv4 are link-local.
const METADATA: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Why an address can stand neither for an endpoint nor for a Service, or `None` if it can.
pub fn unusable(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Some("unspecified address")
    } else if address.is_loopback() {
        Some("loopback address")
    } else if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("multicast or broadcast address")
    } else if link_local {
        Some("link-local address")
    } else if matches!(address, IpAddr::V6(v6) if METADATA.contains(&v6)) {
        Some("metadata address")
    } else if matches!(address, IpAddr::V4(v4) if matches!(v4.octets()[0], 0 | 240..)) {
        Some("reserved address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_lenient, parse_lenient_net, unusable};

    #[test]
    fn s2_leading_zeros_are_decimal_and_the_rest_is_refused() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.001.08", Some("10.0.1.8")),
            ("fd00::1", Some("fd00::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("10.0.0", None),
            ("10.0.0.0.1", None),
            ("10.0.0.256", None),
            ("10.0.0.+1", None),
            ("10.0..1", None),
            (" 10.0.0.1", None),
            ("", None),
            ("None", None),
        ] {
            assert_eq!(parse_lenient(text), expected.map(|e| e.parse().unwrap()), "{text:?}");
        }
    }

    #[test]
    fn s2_prefixes_are_read_as_leniently() {
        for (text, expected) in [
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("010.001.002.003/24", Some("10.1.2.0/24")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::1/64", Some("fd00::/64")),
            ("10.0.0.0", None),
            ("10.0.0.0/33", None),
            ("10.0.0/8", None),
            ("/8", None),
            ("", None),
        ] {
            assert_eq!(parse_lenient_net(text), expected.map(|e| e.parse().unwrap()), "{text:?}");
        }
    }

    #[test]
    fn endpoints_are_unicast_and_routed() {
        for bad in [
            "0.0.0.0",
            "0.1.2.3",
            "240.0.0.1",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "169.254.1.1",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "fd00:ec2::254",
            "fd20:ce::254",
        ] {
            assert!(unusable(bad.parse().unwrap()).is_some(), "{bad}");
        }
        for good in ["10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"] {
            assert_eq!(unusable(good.parse().unwrap()), None, "{good}");
        }
    }
}
