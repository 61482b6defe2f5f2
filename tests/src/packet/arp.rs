//! ARP for IPv4 over Ethernet.

use std::net::Ipv4Addr;

use super::number::ETHERTYPE_ARP;

/// An ARP packet.
#[derive(Clone, Debug)]
pub struct Arp {
    operation: u16,
    sender_mac: [u8; 6],
    sender: Ipv4Addr,
    target_mac: [u8; 6],
    target: Ipv4Addr,
}

impl Arp {
    /// Who has `target`? Sent to all.
    pub fn request(sender_mac: [u8; 6], sender: &str, target: &str) -> Self {
        Self { operation: 1, sender_mac, sender: parse(sender), target_mac: [0; 6], target: parse(target) }
    }

    /// `sender` is at `sender_mac`.
    pub fn reply(sender_mac: [u8; 6], sender: &str, target_mac: [u8; 6], target: &str) -> Self {
        Self { operation: 2, sender_mac, sender: parse(sender), target_mac, target: parse(target) }
    }

    /// The frame, padded to the least Ethernet allows.
    pub fn build(&self) -> Vec<u8> {
        let destination = if self.operation == 1 { [0xff; 6] } else { self.target_mac };
        let mut frame = [destination, self.sender_mac].concat();
        frame.extend(ETHERTYPE_ARP.to_be_bytes());
        frame.extend([0, 1, 8, 0, 6, 4]);
        frame.extend(self.operation.to_be_bytes());
        frame.extend(self.sender_mac);
        frame.extend(self.sender.octets());
        frame.extend(self.target_mac);
        frame.extend(self.target.octets());
        frame.resize(60, 0);
        frame
    }
}

fn parse(address: &str) -> Ipv4Addr {
    address.parse().unwrap_or_else(|error| panic!("address {address}: {error}"))
}
