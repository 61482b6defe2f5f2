//! How fast a Pod may send and receive (`bandwidth` of CNI-33): what the conventions allow to ask for, and how it is
//! enforced. Called by ADD after the interface is configured.

use quilla_cni_protocol::CniError;
use serde::Deserialize;

use crate::netlink::{Netlink, policer};
use crate::netns::Netns;

const ETHERNET_HEADER: u32 = 14;

/// The slowest rate that still lets one full packet through in tolerable time, in bits per second.
const SLOWEST: u64 = 8_000;

/// Limits in both directions, as seen by the Pod. A rate of 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rates {
    /// What the Pod receives, in bits per second.
    #[serde(default)]
    pub(crate) ingress_rate: u64,
    /// How much of that may come at once, in bits.
    #[serde(default)]
    pub(crate) ingress_burst: u64,
    /// What the Pod sends, in bits per second.
    #[serde(default)]
    pub(crate) egress_rate: u64,
    /// How much of that may go at once, in bits.
    #[serde(default)]
    pub(crate) egress_burst: u64,
}

impl Rates {
    /// Refuses what would stop the Pod's traffic altogether.
    pub(crate) fn validate(&self) -> Result<(), String> {
        for (name, rate, burst) in [
            ("ingressRate", self.ingress_rate, self.ingress_burst),
            ("egressRate", self.egress_rate, self.egress_burst),
        ] {
            if rate != 0 && rate < SLOWEST {
                return Err(format!("bandwidth: {name} {rate} is below {SLOWEST} bits per second"));
            }
            if rate == 0 && burst != 0 {
                return Err(format!("bandwidth: a burst without {name}"));
            }
        }
        Ok(())
    }
}

/// Enforces the limits on the Pod's side of its interface.
///
/// What it sends waits in a token bucket filter there: the sender feels it, and nothing is lost. What it receives comes
/// by `bpf_redirect_peer`, past every queue, so too much of it is dropped at the interface.
pub(crate) fn enforce(netns: &Netns, ifname: &str, mtu: u32, rates: &Rates) -> Result<(), CniError> {
    if *rates == Rates::default() {
        return Ok(());
    }
    netns.run(|| {
        let mut netlink = Netlink::open()?;
        if rates.egress_rate != 0 {
            let link = netlink.link(ifname)?;
            let burst = burst_bytes(rates.egress_rate, rates.egress_burst, mtu);
            netlink.shape(link.index, rates.egress_rate / 8, burst)?;
        }
        if rates.ingress_rate != 0 {
            let burst = burst_bytes(rates.ingress_rate, rates.ingress_burst, mtu);
            policer::limit(ifname, rates.ingress_rate / 8, burst)?;
        }
        Ok(())
    })
}

/// Undoes what outlives the interface.
pub(crate) fn lift(netns: &Netns, ifname: &str, rates: &Rates) -> Result<(), CniError> {
    if rates.ingress_rate == 0 {
        return Ok(());
    }
    netns.run(|| Ok(policer::lift(ifname)?))
}

/// A burst in bytes: what was asked, or a tenth of a second; never less than two frames, which would stop everything.
fn burst_bytes(rate: u64, burst: u64, mtu: u32) -> u32 {
    let asked = if burst == 0 { rate / 10 } else { burst } / 8;
    u32::try_from(asked).unwrap_or(u32::MAX).max(2 * (mtu + ETHERNET_HEADER))
}

#[cfg(test)]
mod tests {
    use super::burst_bytes;

    /// CNI-33: bursts are bits in the configuration and bytes in the kernel.
    #[test]
    fn bursts() {
        assert_eq!(burst_bytes(8_000_000, 800_000, 1450), 100_000);
        assert_eq!(burst_bytes(8_000_000, 0, 1450), 100_000);
        // Two frames at least, and no more than the kernel can say.
        assert_eq!(burst_bytes(8_000_000, 8, 1450), 2 * 1464);
        assert_eq!(burst_bytes(8_000_000, u64::MAX, 1450), u32::MAX);
    }
}
