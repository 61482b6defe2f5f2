//! What an ADD asks for beyond an interface with addresses: the capabilities of CNI-33, and what other plugins made
//! already. Sent by the plugin with `Reserve`, remembered by the agent for as long as the attachment lives.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Lease, MacAddress};

/// The wishes of one ADD; the default wishes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Addresses of the node's pools, at most one per family; a family without one gets any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// Ethernet address of the Pod's side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Ports of the node that are to lead to the Pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// How fast the Pod may be.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    /// MTU of the interface, whatever the agent's is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// By what programs are to be attached; else the agent decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programs: Option<Mechanism>,
    /// What another plugin brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Given>,
}

/// By what programs are attached to the host side of a Pod's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mechanism {
    /// Filters of the clsact queueing discipline.
    Clsact,
    /// tcx links, which leave the place of that discipline to other plugins.
    Tcx,
}

impl Mechanism {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::Clsact, Self::Tcx];

    /// Parses the name; `None` for another one.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mechanism| mechanism.as_str() == text)
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Clsact => "clsact",
            Self::Tcx => "tcx",
        }
    }
}

/// Limits in both directions, as seen by the Pod (`bandwidth`), in the conventions' words. A rate of 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// What the Pod receives, in bits per second.
    pub ingress_rate: u64,
    /// How much of that may come at once, in bits.
    pub ingress_burst: u64,
    /// What the Pod sends, in bits per second.
    pub egress_rate: u64,
    /// How much of that may go at once, in bits.
    pub egress_burst: u64,
}

impl Bandwidth {
    /// The slowest rate that still lets one full packet through in tolerable time, in bits per second.
    pub const SLOWEST: u64 = 8_000;

    /// Whether there is no limit at all.
    pub const fn is_unlimited(&self) -> bool {
        self.ingress_rate == 0 && self.egress_rate == 0
    }

    /// Refuses, in words, what would stop the Pod's traffic altogether.
    pub fn validate(&self) -> Result<(), String> {
        for (name, rate, burst) in [
            ("ingressRate", self.ingress_rate, self.ingress_burst),
            ("egressRate", self.egress_rate, self.egress_burst),
        ] {
            if rate != 0 && rate < Self::SLOWEST {
                return Err(format!("bandwidth: {name} {rate} is below {} bits per second", Self::SLOWEST));
            }
            if rate == 0 && burst != 0 {
                return Err(format!("bandwidth: a burst without {name}"));
            }
        }
        Ok(())
    }
}

/// What another plugin brings, so that the agent need not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "given", rename_all = "snake_case")]
pub enum Given {
    /// Addresses of a delegated IPAM plugin (CNI-17), at most one per family.
    Addresses {
        /// Each with the next hop the Pod shall use.
        leases: Vec<Lease>,
    },
    /// The whole interface, made by an earlier plugin of the chain (CNI-11, CNI-13).
    Interface {
        /// The host side of its veth pair.
        host_ifname: String,
        /// Ethernet address of the host side.
        host_mac: MacAddress,
        /// Ethernet address of the Pod's side.
        pod_mac: MacAddress,
        /// At most one per family.
        addresses: Vec<IpAddr>,
    },
}

/// A port of the node that leads to a Pod (`portMappings`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Port on the node, not 0.
    pub host_port: u16,
    /// Port of the Pod, not 0.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Transport,
    /// Only on this address of the node; `None` means every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// Whether a packet could be meant for both: the same port and protocol, and an address in common.
    pub fn conflicts(&self, other: &Self) -> bool {
        let shared = match (self.host_ip, other.host_ip) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => true,
        };
        shared && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            Some(address) => write!(f, "{address}")?,
            None => write!(f, "*")?,
        }
        write!(f, ":{}/{}", self.host_port, self.protocol)
    }
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// Parses the name in any case, as runtimes write it; `None` for another protocol.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| protocol.as_str().eq_ignore_ascii_case(text))
    }

    /// The name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::{PortMapping, Transport};

    fn mapping(protocol: Transport, host_ip: &str) -> PortMapping {
        PortMapping { host_port: 80, container_port: 8080, protocol, host_ip: host_ip.parse().ok() }
    }

    /// CNI-33: only the same port, protocol and an address in common conflict.
    #[test]
    fn conflicts() {
        let any = mapping(Transport::Tcp, "");
        let one = mapping(Transport::Tcp, "192.0.2.1");
        assert!(any.conflicts(&any) && any.conflicts(&one) && one.conflicts(&any) && one.conflicts(&one));
        assert!(!one.conflicts(&mapping(Transport::Tcp, "192.0.2.2")));
        assert!(!one.conflicts(&mapping(Transport::Udp, "192.0.2.1")));
        assert!(!any.conflicts(&PortMapping { host_port: 81, ..any }));
        // The port of the Pod is its own affair.
        assert!(any.conflicts(&PortMapping { container_port: 1, ..any }));
    }

    #[test]
    fn names() {
        assert_eq!(Transport::parse("TCP"), Some(Transport::Tcp));
        assert_eq!(Transport::parse("icmp"), None);
        assert_eq!(mapping(Transport::Udp, "::1").to_string(), "[::1]:80/udp");
        assert_eq!(mapping(Transport::Sctp, "").to_string(), "*:80/sctp");
    }
}
