//! Whether packets for the Pods of another node go in a tunnel or plainly, decided for each node and family. Called by
//! [`crate::tunnel`].
//!
//! Only what this node sends: it takes both from every node, so that nodes need not agree.

use std::net::IpAddr;

use crate::facts::NodeFacts;

/// What the operator chose: `--routing` of the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// Everything in tunnels.
    #[default]
    Overlay,
    /// Everything plainly: whatever is between the nodes knows the way to Pods.
    Native,
    /// In tunnels only to nodes that are in none of the uplinks' networks.
    Auto,
}

impl Routing {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Overlay, Self::Native, Self::Auto];

    /// As the operator writes it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Native => "native",
            Self::Auto => "auto",
        }
    }
}

/// How packets of a family get to a node's Pods, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// In a tunnel.
    Overlay(Why),
    /// By plain routing, from node to node.
    Native(Why),
}

/// Why a path is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The operator chose it.
    Chosen,
    /// The node is in a network of an uplink.
    SameNetwork,
    /// It is not.
    OtherNetwork,
    /// One of both nodes has no address of the family.
    NoAddress,
    /// A previous run of the agent chose it.
    Before,
}

impl Path {
    /// Whether it is the plain one.
    pub fn is_native(self) -> bool {
        matches!(self, Self::Native(_))
    }

    /// `overlay` or `native`.
    pub fn label(self) -> &'static str {
        if self.is_native() { "native" } else { "overlay" }
    }

    /// Why, for an operator.
    pub fn reason(self) -> &'static str {
        let (Self::Overlay(why) | Self::Native(why)) = self;
        match why {
            Why::Chosen => "chosen",
            Why::SameNetwork => "same network",
            Why::OtherNetwork => "other network",
            Why::NoAddress => "no address",
            Why::Before => "as before",
        }
    }
}

/// The path from a node with the address `own` to one with the address `other`; `None`: it has none of the family.
pub(crate) fn path(facts: &NodeFacts, own: Option<IpAddr>, other: Option<IpAddr>) -> Path {
    if facts.routing == Routing::Overlay {
        return Path::Overlay(Why::Chosen);
    }
    let (Some(_), Some(other)) = (own, other) else { return Path::Overlay(Why::NoAddress) };
    let near = || facts.networks.iter().any(|network| network.contains(&other));
    match facts.routing {
        Routing::Auto if near() => Path::Native(Why::SameNetwork),
        Routing::Auto => Path::Overlay(Why::OtherNetwork),
        Routing::Native | Routing::Overlay => Path::Native(Why::Chosen),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{Path, Routing, Why, path};
    use crate::facts::NodeFacts;

    /// The overlay only where it is needed, for each family on its own.
    #[test]
    fn auto_asks_for_the_network() {
        let networks = ["192.0.2.10/24", "2001:db8::10/64", "198.51.100.7/32"];
        let facts = |routing| NodeFacts {
            routing,
            networks: networks.map(|network| network.parse().unwrap()).into(),
            ..NodeFacts::new("here")
        };
        let of = |routing, other: &str| {
            let other: IpAddr = other.parse().unwrap();
            path(&facts(routing), Some(other), Some(other))
        };
        for (routing, other, expected) in [
            (Routing::Auto, "192.0.2.11", Path::Native(Why::SameNetwork)),
            (Routing::Auto, "192.0.3.11", Path::Overlay(Why::OtherNetwork)),
            (Routing::Auto, "198.51.100.8", Path::Overlay(Why::OtherNetwork)),
            (Routing::Auto, "2001:db8::11", Path::Native(Why::SameNetwork)),
            (Routing::Auto, "2001:db8:0:1::11", Path::Overlay(Why::OtherNetwork)),
            (Routing::Native, "192.0.3.11", Path::Native(Why::Chosen)),
            (Routing::Overlay, "192.0.2.11", Path::Overlay(Why::Chosen)),
        ] {
            assert_eq!(of(routing, other), expected, "{routing:?} to {other}");
        }
        let address = Some("192.0.2.11".parse().unwrap());
        for routing in [Routing::Auto, Routing::Native] {
            for (own, other) in [(address, None), (None, address)] {
                assert_eq!(path(&facts(routing), own, other), Path::Overlay(Why::NoAddress), "{routing:?}");
            }
        }
    }
}
