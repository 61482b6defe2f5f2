//! Why a packet was not delivered: one numbered list for kernel, metrics and documentation.
//!
//! Numbers are part of the ABI: append only, never reuse.

/// Declares the reasons with their label (metrics, CLI) and an explanation for operators.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal;)+) => {
        /// Why a packet was not delivered.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason { $($(#[doc = $doc])+ $name = $number,)+ }

        impl DropReason {
            /// Every reason, in the order of numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable name in metrics and tools.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// What it means, for an operator.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }

            /// The reason with this number, if there is one.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// The frame is shorter than its headers say.
    Truncated = 1, "truncated";
    /// The IP header lies about its own length, its total length or its version.
    BadIpHeader = 2, "bad_ip_header";
    /// The transport header lies about its length.
    BadTransportHeader = 3, "bad_transport_header";
    /// An EtherType that a Pod may not send.
    UnknownEtherType = 4, "unknown_ethertype";
    /// More IPv6 extension headers than are followed, or one that may not be forwarded.
    ExtensionHeaders = 5, "extension_headers";
    /// A source-routed packet.
    SourceRoute = 6, "source_route";
    /// A fragment whose first fragment was not seen, or an overlapping or tiny one.
    Fragment = 7, "fragment";
    /// The source IP address is not the Pod's.
    SpoofedAddress = 10, "spoofed_address";
    /// The source Ethernet address is not the Pod's.
    SpoofedMac = 11, "spoofed_mac";
    /// Forged ARP or neighbour discovery, or a router advertisement from a Pod.
    ForgedNeighbour = 12, "forged_neighbour";
    /// A packet from a device that belongs to no Pod.
    UnknownInterface = 13, "unknown_interface";
    /// Multicast or broadcast from a Pod does not leave the node.
    Multicast = 14, "multicast";
    /// A Pod addressed the overlay port of a node.
    ForgedOverlay = 15, "forged_overlay";
    /// A Pod sent an ICMP error about a packet that was not for it.
    ForgedReport = 16, "forged_report";
    /// An overlay frame from an address that is no node's.
    UnknownTunnelSource = 20, "unknown_tunnel_source";
    /// The inner source of an overlay frame does not live on the node that sent it.
    WrongTunnelSource = 21, "wrong_tunnel_source";
    /// An overlay frame with a foreign network identifier.
    WrongVni = 22, "wrong_vni";
    /// An overlay frame whose outer headers contradict each other, carry what we do not speak, or are for another address than
    /// the tunnel's end.
    BadTunnelHeader = 23, "bad_tunnel_header";
    /// The Service has no usable endpoint.
    NoBackend = 30, "no_backend";
    /// An address that only Services may have and none has, or a packet to a Service that has no ports.
    NotAService = 31, "not_a_service";
    /// The endpoint of an established connection is gone.
    BackendGone = 32, "backend_gone";
    /// A packet in the middle of a translated connection that is no longer known.
    NoFlow = 33, "no_flow";
    /// The Service has endpoints, but none on this node, and its traffic policy is Local.
    NoLocalBackend = 34, "no_local_backend";
    /// The client is not among the source ranges of the load balancer.
    SourceRange = 35, "source_range";
    /// The address belongs to a Service, which does not have this port.
    NotAServicePort = 36, "not_a_service_port";
    /// No endpoint has the destination address.
    NoEndpoint = 40, "no_endpoint";
    /// The destination may never be reached from a Pod (link-local, loopback, reserved).
    Unroutable = 41, "unroutable";
    /// The host has no route to the destination.
    NoRoute = 42, "no_route";
    /// The destination's node is not known (any more).
    UnknownNode = 43, "unknown_node";
    /// TTL or hop limit ran out where no error could be sent.
    HopLimit = 44, "hop_limit";
    /// No free source port for a translation.
    PortsExhausted = 50, "ports_exhausted";
    /// The flow table refused the entry.
    FlowTableFull = 51, "flow_table_full";
    /// The packet is larger than the path and may not be fragmented.
    TooBig = 52, "too_big";
    /// A protocol that cannot be translated (masqueraded or load balanced).
    Untranslatable = 53, "untranslatable";
    /// The kernel refused an operation on the packet.
    Internal = 60, "internal";
    /// The node's configuration row is missing or of another version.
    NotConfigured = 61, "not_configured";
}

/// Rows of the `drops` map.
pub const COUNT: u32 = 256;

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn numbers_are_in_order_and_lead_back() {
        for pair in DropReason::ALL.windows(2) {
            assert!((pair[0] as u8) < pair[1] as u8, "{pair:?}");
        }
        for &reason in DropReason::ALL {
            assert_eq!(DropReason::from_number(reason as u8), Some(reason));
        }
        assert_eq!(DropReason::from_number(0), None, "0 means: not dropped");
    }
}
