//! The cluster's Pod CIDRs cut into one subnet a node. Owned by the node CIDR reconciler. No two nodes share an
//! address, and a freed subnet is handed out again as late as possible, for routes to it may linger.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::Error;

/// One cluster CIDR and who has which part of it.
#[derive(Debug)]
pub struct Subnets {
    cidr: IpNet,
    prefix: u8,
    /// Index of a subnet to its node.
    held: BTreeMap<u128, String>,
    next: u128,
}

impl Subnets {
    /// Cuts `cidr` into subnets of length `prefix`.
    pub fn new(cidr: IpNet, prefix: u8) -> Result<Self, Error> {
        if prefix < cidr.prefix_len() || prefix > cidr.max_prefix_len() {
            let why = format!("a mask of {prefix} does not divide {cidr}");
            return Err(Error::Option { option: "node-cidr-mask", why });
        }
        Ok(Self { cidr: cidr.trunc(), prefix, held: BTreeMap::new(), next: 0 })
    }

    pub fn is_ipv4(&self) -> bool {
        self.cidr.addr().is_ipv4()
    }

    /// Notes that `node` has `subnet`, whatever its size; false if another node has a part of it.
    pub fn adopt(&mut self, node: &str, subnet: &IpNet) -> bool {
        let (first, last) = (self.index(subnet.network()), self.index(subnet.broadcast()));
        let (first, last) = match (first, last) {
            (Some(first), Some(last)) => (first, last),
            // It holds the whole cluster CIDR, or nothing of it.
            _ if subnet.contains(&self.cidr) => (0, self.count() - 1),
            _ => return true,
        };
        if self.held.range(first..=last).any(|(_, holder)| holder != node) {
            return false;
        }
        // A subnet shorter than the mask holds every part it covers; more than the table can list is a mistake.
        for index in (first..=last).take(1 << 16) {
            self.held.insert(index, node.to_owned());
        }
        true
    }

    /// A free subnet, now `node`'s.
    pub fn assign(&mut self, node: &str) -> Option<IpNet> {
        let count = self.count();
        let free = (self.next..count).chain(0..self.next).find(|index| !self.held.contains_key(index))?;
        self.held.insert(free, node.to_owned());
        self.next = (free + 1) % count;
        self.subnet(free)
    }

    /// Frees what `node` has.
    pub fn release(&mut self, node: &str) {
        self.held.retain(|_, holder| holder != node);
    }

    fn count(&self) -> u128 {
        1u128.checked_shl((self.prefix - self.cidr.prefix_len()).into()).unwrap_or(u128::MAX)
    }

    fn host_bits(&self) -> u32 {
        (self.cidr.max_prefix_len() - self.prefix).into()
    }

    fn index(&self, address: IpAddr) -> Option<u128> {
        let offset = number(address) - number(self.cidr.contains(&address).then(|| self.cidr.network())?);
        Some(offset.checked_shr(self.host_bits()).unwrap_or(0))
    }

    fn subnet(&self, index: u128) -> Option<IpNet> {
        let base = number(self.cidr.network()) + index.checked_shl(self.host_bits()).unwrap_or(0);
        let address = match self.cidr {
            IpNet::V4(_) => IpAddr::V4(u32::try_from(base).ok()?.into()),
            IpNet::V6(_) => IpAddr::V6(base.into()),
        };
        IpNet::new(address, self.prefix).ok()
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::Subnets;

    fn net(text: &str) -> IpNet {
        text.parse().expect("cidr")
    }

    #[test]
    fn subnets_are_handed_out_in_turn_and_reused_last() {
        let mut subnets = Subnets::new(net("10.244.0.0/22"), 24).expect("divides");
        let names = ["a", "b", "c", "d"];
        let found = names.map(|node| subnets.assign(node).expect("free").to_string());
        assert_eq!(found, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
        assert_eq!(subnets.assign("e"), None);
        subnets.release("b");
        assert_eq!(subnets.assign("e"), Some(net("10.244.1.0/24")));
        let mut six = Subnets::new(net("fd00:244::/48"), 64).expect("divides");
        assert_eq!(six.assign("a"), Some(net("fd00:244::/64")));
        assert_eq!(six.assign("b"), Some(net("fd00:244:0:1::/64")));
    }

    #[test]
    fn what_a_node_has_is_honoured_whatever_its_size() {
        let mut subnets = Subnets::new(net("10.244.0.0/22"), 24).expect("divides");
        assert!(subnets.adopt("big", &net("10.244.0.0/23")));
        assert!(subnets.adopt("small", &net("10.244.2.128/25")));
        assert!(subnets.adopt("elsewhere", &net("192.0.2.0/24")));
        assert!(!subnets.adopt("late", &net("10.244.1.0/24")));
        assert_eq!(subnets.assign("new"), Some(net("10.244.3.0/24")));
        assert_eq!(subnets.assign("newer"), None);
    }

    #[test]
    fn a_mask_must_divide_the_cidr() {
        for prefix in [21, 33] {
            Subnets::new(net("10.244.0.0/22"), prefix).expect_err("does not divide");
        }
        Subnets::new(net("::/0"), 128).expect("divides").assign("a").expect("free");
    }

    proptest! {
        #[test]
        fn no_two_nodes_overlap(steps in prop::collection::vec((0u8..12, 0u8..3, 0u32..1024), 0..80)) {
            let mut subnets = Subnets::new(net("10.0.0.0/22"), 26).expect("divides");
            let mut model: Vec<(String, IpNet)> = Vec::new();
            for (node, action, offset) in steps {
                let name = format!("n{node}");
                let asked = IpNet::new((0x0a00_0000 + offset).to_be_bytes().into(), 27).expect("length").trunc();
                let has_some = model.iter().any(|(holder, _)| *holder == name);
                match action {
                    0 => { subnets.release(&name); model.retain(|(holder, _)| *holder != name); }
                    1 if !has_some => if let Some(subnet) = subnets.assign(&name) { model.push((name, subnet)) },
                    2 if !has_some && subnets.adopt(&name, &asked) => model.push((name, asked)),
                    _ => {}
                }
                for (index, (_, one)) in model.iter().enumerate() {
                    prop_assert!(model[..index].iter().all(|(_, other)| !one.contains(other) && !other.contains(one)));
                }
            }
        }
    }
}
