//! Which source ports a translation may try.

use quilla_abi::config::Config;

/// How many ports are tried after the original one.
pub const PROBES: u32 = 32;
/// How many a packet from the middle of a connection tries to find the one that the connection has.
pub const STRAY_PROBES: u32 = 4;

/// The ports that masquerading may use, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    count: u32,
}

impl Ports {
    /// The configured range; `None` when it is empty or would contain port 0.
    #[inline(always)]
    pub fn of(config: &Config) -> Option<Self> {
        let (first, last) = (config.snat_port_min, config.snat_port_max);
        if first == 0 || first > last {
            return None;
        }
        Some(Self { first, count: u32::from(last - first) + 1 })
    }

    /// Whether the port may be kept.
    #[inline(always)]
    pub const fn contains(self, port: u16) -> bool {
        port >= self.first && (port as u32) < self.first as u32 + self.count
    }

    /// The `attempt`-th port to try, beginning where the hash says.
    #[inline(always)]
    pub const fn candidate(self, hash: u32, attempt: u32) -> u16 {
        let start = ((hash as u64 * self.count as u64) >> 32) as u32;
        let mut position = start.wrapping_add(attempt);
        if position >= self.count {
            position = position.wrapping_sub(self.count);
            // The range may be smaller than the number of attempts.
            if position >= self.count {
                position = 0;
            }
        }
        self.first.wrapping_add(position as u16)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// E16: no translation ever leaves its range.
        #[test]
        fn candidates_stay_in_range(first in 1_u16.., last in 1_u16.., hash: u32, attempt in 0..PROBES) {
            let config = Config { snat_port_min: first, snat_port_max: last, ..Config::default() };
            match Ports::of(&config) {
                None => prop_assert!(first > last),
                Some(ports) => {
                    let port = ports.candidate(hash, attempt);
                    prop_assert!((first..=last).contains(&port));
                    prop_assert!(ports.contains(port));
                    prop_assert!(!ports.contains(first - 1));
                }
            }
        }
    }

    #[test]
    fn a_range_with_port_zero_is_none() {
        assert_eq!(Ports::of(&Config { snat_port_max: 9, ..Config::default() }), None);
    }

    #[test]
    fn attempts_try_different_ports() {
        let config = Config { snat_port_min: 61_000, snat_port_max: 65_535, ..Config::default() };
        let ports = Ports::of(&config).expect("a range");
        let tried: std::collections::BTreeSet<u16> =
            (0..PROBES).map(|n| ports.candidate(u32::MAX, n)).collect();
        assert_eq!(tried.len(), PROBES as usize);
    }
}
