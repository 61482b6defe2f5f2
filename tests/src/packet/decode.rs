//! The decoder: a frame as a list of named fields, as far as the bytes go.
//!
//! Every field is text, because its readers are the difference and the assertions of tests; what does not parse ends
//! up as a `note`, never as a panic.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{fold, ones_complement_sum, pseudo_header_sum, transport_checksum};
use super::number;
use super::transport::tcp;

const VXLAN_PORTS: [u16; 2] = [4789, 8472];

/// A field's name, `layer.field`, and its value.
pub type Field = (String, String);

/// A frame's fields in the order of its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    fields: Vec<Field>,
}

impl Decoded {
    /// The value of the first field of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    /// All fields.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fields.iter().try_for_each(|(name, value)| writeln!(f, "{name:24} {value}"))
    }
}

/// Decodes an Ethernet frame.
pub fn decode(frame: &[u8]) -> Decoded {
    let mut reader = Reader { prefix: String::new(), fields: Vec::new() };
    reader.ethernet(frame);
    Decoded { fields: reader.fields }
}

struct Reader {
    prefix: String,
    fields: Vec<Field>,
}

impl Reader {
    fn put(&mut self, name: &str, value: impl fmt::Display) {
        self.fields.push((format!("{}{name}", self.prefix), format!("{value}")));
    }

    fn note(&mut self, text: &str, bytes: &[u8]) {
        self.put("note", text);
        self.bytes("bytes", bytes);
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        let mut text = format!("{} bytes ", bytes.len());
        bytes.iter().try_for_each(|byte| write!(text, "{byte:02x}")).expect("write to a string");
        self.put(name, text);
    }

    /// Decodes what `read` reads under a longer prefix.
    fn nested(&mut self, prefix: &str, read: impl FnOnce(&mut Self)) {
        let outer = self.prefix.clone();
        self.prefix.push_str(prefix);
        read(self);
        self.prefix = outer;
    }

    fn ethernet(&mut self, frame: &[u8]) {
        let Some((header, mut rest)) = frame.split_first_chunk::<14>() else {
            return self.note("truncated ethernet header", frame);
        };
        self.put("eth.dst", mac(&header[..6]));
        self.put("eth.src", mac(&header[6..12]));
        let mut ethertype = be16(header, 12);
        while let (number::ETHERTYPE_VLAN | 0x88a8, Some((tag, inner))) =
            (ethertype, rest.split_first_chunk::<4>())
        {
            self.put("vlan.id", be16(tag, 0) & 0xfff);
            (ethertype, rest) = (be16(tag, 2), inner);
        }
        self.put("eth.type", format!("{ethertype:#06x}"));
        match ethertype {
            number::ETHERTYPE_IPV4 => self.ipv4(rest),
            number::ETHERTYPE_IPV6 => self.ipv6(rest),
            number::ETHERTYPE_ARP => self.arp(rest),
            _ => self.bytes("payload", rest),
        }
    }

    fn arp(&mut self, packet: &[u8]) {
        let Some((arp, padding)) = packet.split_first_chunk::<28>() else {
            return self.note("truncated arp", packet);
        };
        let operation = match be16(arp, 6) {
            1 => "request".to_owned(),
            2 => "reply".to_owned(),
            other => other.to_string(),
        };
        self.put("arp.operation", operation);
        self.put("arp.sender_mac", mac(&arp[8..14]));
        self.put("arp.sender", ipv4(arp, 14));
        self.put("arp.target_mac", mac(&arp[18..24]));
        self.put("arp.target", ipv4(arp, 24));
        self.put("eth.padding", padding.len());
    }

    fn ipv4(&mut self, packet: &[u8]) {
        let Some(header) = packet.first_chunk::<20>() else {
            return self.note("truncated ipv4 header", packet);
        };
        let (ihl, total, fragment) =
            (usize::from(header[0] & 15), usize::from(be16(header, 2)), be16(header, 6));
        let addresses = (IpAddr::V4(ipv4(header, 12)), IpAddr::V4(ipv4(header, 16)));
        let (offset, more) = ((fragment & 0x1fff) * 8, fragment >> 13 & 1 == 1);
        self.put("ipv4.version", header[0] >> 4);
        self.put("ipv4.ihl", ihl);
        self.put("ipv4.tos", format!("{:#04x}", header[1]));
        self.put("ipv4.length", total);
        self.put("ipv4.id", format!("{:#06x}", be16(header, 4)));
        self.put("ipv4.df", fragment >> 14 & 1);
        self.put("ipv4.mf", u8::from(more));
        self.put("ipv4.offset", offset);
        self.put("ipv4.ttl", header[8]);
        self.put("ipv4.protocol", header[9]);
        let Some(whole) = packet.get(..ihl * 4).filter(|_| ihl >= 5) else {
            return self.note("ihl lies", &packet[20..]);
        };
        let good = fold(ones_complement_sum(whole)) == 0;
        self.put("ipv4.checksum", checksum(be16(header, 10), good));
        self.put("ipv4.src", addresses.0);
        self.put("ipv4.dst", addresses.1);
        if ihl > 5 {
            self.bytes("ipv4.options", &whole[20..]);
        }
        let end = self.end(packet.len(), total, ihl * 4);
        let complete = offset == 0 && !more && total <= packet.len();
        self.transport(header[9], addresses, &packet[ihl * 4..end], offset == 0, complete);
        self.padding(packet.len() - end);
    }

    fn ipv6(&mut self, packet: &[u8]) {
        let Some(header) = packet.first_chunk::<40>() else {
            return self.note("truncated ipv6 header", packet);
        };
        let addresses = (IpAddr::V6(ipv6(header, 8)), IpAddr::V6(ipv6(header, 24)));
        let total = 40 + usize::from(be16(header, 4));
        self.put("ipv6.version", header[0] >> 4);
        self.put("ipv6.class", format!("{:#04x}", be16(header, 0) >> 4 & 0xff));
        self.put("ipv6.length", total - 40);
        self.put("ipv6.next", header[6]);
        self.put("ipv6.hops", header[7]);
        self.put("ipv6.src", addresses.0);
        self.put("ipv6.dst", addresses.1);
        let end = self.end(packet.len(), total, 40);
        self.after_ipv6(header[6], addresses, &packet[40..end], total <= packet.len());
        self.padding(packet.len() - end);
    }

    /// Follows the extension headers to the transport header.
    fn after_ipv6(&mut self, mut next: u8, addresses: (IpAddr, IpAddr), mut rest: &[u8], mut complete: bool) {
        let mut first = true;
        while matches!(next, 0 | 43 | 44 | 51 | 60) {
            let Some((header, _)) = rest.split_first_chunk::<8>() else {
                return self.note("truncated extension header", rest);
            };
            let length = match next {
                44 => 8,
                51 => (usize::from(header[1]) + 2) * 4,
                _ => (usize::from(header[1]) + 1) * 8,
            };
            if next == 44 {
                let offset = be16(header, 2);
                self.put("fragment.offset", offset & !7);
                self.put("fragment.more", offset & 1);
                self.put("fragment.id", u32::from_be_bytes([header[4], header[5], header[6], header[7]]));
                first &= offset & !7 == 0;
                complete &= offset & !6 == 0;
            }
            let Some(whole) = rest.get(..length) else {
                return self.note("extension header lies", rest);
            };
            self.bytes(&format!("extension.{next}"), whole);
            (next, rest) = (header[0], &rest[length..]);
        }
        self.transport(next, addresses, rest, first, complete);
    }

    /// Where the packet ends: where it says, or where the frame does.
    fn end(&mut self, available: usize, claimed: usize, header: usize) -> usize {
        if claimed > available || claimed < header {
            self.put("note", format!("length lies: {claimed} of {available}"));
            return available;
        }
        claimed
    }

    fn padding(&mut self, bytes: usize) {
        if bytes > 0 {
            self.put("eth.padding", bytes);
        }
    }

    fn transport(
        &mut self,
        protocol: u8,
        addresses: (IpAddr, IpAddr),
        segment: &[u8],
        first: bool,
        complete: bool,
    ) {
        let sum = |at: usize| Checksum::judge(protocol, addresses, segment, at, complete);
        match (protocol, segment.len()) {
            (number::TCP, 20..) if first => self.tcp(segment, &sum(16)),
            (number::UDP, 8..) if first => self.udp(segment, &sum(6)),
            (number::ICMP | number::ICMPV6, 8..) if first => self.icmp(protocol, segment, &sum(2)),
            (number::TCP, 8..) if first => {
                self.put("tcp.sport", be16(segment, 0));
                self.put("tcp.dport", be16(segment, 2));
                self.bytes("tcp.rest", &segment[4..]);
            }
            (number::TCP | number::UDP | number::ICMP | number::ICMPV6, _) if first => {
                self.note("truncated transport header", segment);
            }
            _ => self.bytes("payload", segment),
        }
    }

    fn tcp(&mut self, segment: &[u8], sum: &Checksum) {
        self.put("tcp.sport", be16(segment, 0));
        self.put("tcp.dport", be16(segment, 2));
        self.put("tcp.seq", be32(segment, 4));
        self.put("tcp.ack", be32(segment, 8));
        let offset = usize::from(segment[12] >> 4);
        self.put("tcp.offset", offset);
        let set = tcp::NAMES.iter().filter(|(bit, _)| segment[13] & bit != 0).map(|(_, name)| *name);
        self.put("tcp.flags", set.collect::<Vec<_>>().join(" "));
        self.put("tcp.window", be16(segment, 14));
        self.put("tcp.checksum", sum);
        match segment.get(20..offset * 4) {
            Some([]) => self.bytes("payload", &segment[20..]),
            Some(options) => {
                self.bytes("tcp.options", options);
                self.bytes("payload", &segment[offset * 4..]);
            }
            None => self.note("data offset lies", &segment[20..]),
        }
    }

    fn udp(&mut self, segment: &[u8], sum: &Checksum) {
        let (source, destination) = (be16(segment, 0), be16(segment, 2));
        self.put("udp.sport", source);
        self.put("udp.dport", destination);
        self.put("udp.length", be16(segment, 4));
        self.put("udp.checksum", sum);
        match segment[8..].split_first_chunk::<8>() {
            Some((vxlan, inner)) if VXLAN_PORTS.contains(&destination) => {
                self.put("vxlan.vni", be32(vxlan, 4) >> 8);
                self.nested("inner.", |reader| reader.ethernet(inner));
            }
            _ => self.bytes("payload", &segment[8..]),
        }
    }

    fn icmp(&mut self, protocol: u8, segment: &[u8], sum: &Checksum) {
        let (kind, v4) = (segment[0], protocol == number::ICMP);
        self.put("icmp.type", kind);
        self.put("icmp.code", segment[1]);
        self.put("icmp.checksum", sum);
        let embeds = if v4 { matches!(kind, 3 | 11 | 12) } else { (1..=4).contains(&kind) };
        match kind {
            _ if embeds => {
                self.put("icmp.mtu", be32(segment, 4));
                self.nested("embedded.", |reader| {
                    if v4 { reader.ipv4(&segment[8..]) } else { reader.ipv6(&segment[8..]) }
                });
            }
            0 | 8 | 128 | 129 => {
                self.put("icmp.id", be16(segment, 4));
                self.put("icmp.sequence", be16(segment, 6));
                self.bytes("payload", &segment[8..]);
            }
            _ => self.bytes("payload", &segment[4..]),
        }
    }
}

/// A transport checksum and what it is.
struct Checksum {
    value: u16,
    verdict: &'static str,
}

impl Checksum {
    fn judge(protocol: u8, addresses: (IpAddr, IpAddr), segment: &[u8], at: usize, complete: bool) -> Self {
        let value = segment.get(at..at + 2).map_or(0, |bytes| be16(bytes, 0));
        let (source, destination) = addresses;
        let good = match protocol {
            number::ICMP => fold(ones_complement_sum(segment)) == 0,
            _ => transport_checksum(source, destination, protocol, segment) == 0,
        };
        let verdict = if protocol == number::UDP && value == 0 {
            "none"
        } else if !complete {
            "unverifiable"
        } else if good {
            "good"
        } else if value == pseudo_header_sum(source, destination, protocol, segment.len()) {
            "partial"
        } else {
            "wrong"
        };
        Self { value, verdict }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x} {}", self.value, self.verdict)
    }
}

fn checksum(value: u16, good: bool) -> String {
    format!("{value:#06x} {}", if good { "good" } else { "wrong" })
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

fn ipv4(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(be32(bytes, at))
}

fn ipv6(bytes: &[u8], at: usize) -> Ipv6Addr {
    let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("sixteen bytes");
    Ipv6Addr::from(octets)
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
