//! How fast a Pod may send and receive (`bandwidth` of CNI-33), enforced on the Pod's side of its interface. Called by
//! ADD after the interface is configured, and by CHECK to compare. A rate that is not 0 is in force, or ADD fails.

use quilla_cni_protocol::{Bandwidth, CniError};

use crate::netlink::{Netlink, policer};
use crate::netns::Netns;

const ETHERNET_HEADER: u32 = 14;

/// Enforces the limits on the Pod's side of its interface.
///
/// What it sends waits in a token bucket filter there: the sender feels it, and nothing is lost. What it receives comes
/// by `bpf_redirect_peer`, past every queue, so too much of it is dropped at the interface.
pub(crate) fn enforce(netns: &Netns, ifname: &str, mtu: u32, rates: &Bandwidth) -> Result<(), CniError> {
    if rates.is_unlimited() {
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

/// What of the limits is not in force, in words.
pub(crate) fn differences(
    netns: &Netns,
    ifname: &str,
    bandwidth: &Bandwidth,
) -> Result<Vec<String>, CniError> {
    let mut differences = Vec::new();
    if bandwidth.is_unlimited() {
        return Ok(differences);
    }
    let found = netns.run(|| {
        let mut netlink = Netlink::open()?;
        match netlink.link(ifname) {
            Ok(link) => Ok(Some((netlink.shaped(link.index)?, policer::limited(ifname)?))),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    })?;
    // That there is no interface is said already.
    let Some((sent, received)) = found else { return Ok(differences) };
    for (what, wanted, found) in [
        ("egress: the tbf queue", bandwidth.egress_rate / 8, sent),
        ("ingress: the nftables rule", bandwidth.ingress_rate / 8, received),
    ] {
        match found {
            _ if wanted == 0 => {}
            None => differences.push(format!("bandwidth, {what} of {ifname} is missing")),
            Some(rate) if rate != wanted => differences
                .push(format!("bandwidth, {what} of {ifname} lets {} bits per second pass", rate * 8)),
            Some(_) => {}
        }
    }
    Ok(differences)
}

/// Undoes the limits: one outlives our interface, both an interface that another plugin made.
pub(crate) fn lift(netns: &Netns, ifname: &str, rates: &Bandwidth) -> Result<(), CniError> {
    if rates.is_unlimited() {
        return Ok(());
    }
    netns.run(|| {
        if rates.ingress_rate != 0 {
            policer::lift(ifname)?;
        }
        if rates.egress_rate != 0 {
            Netlink::open()?.unshape(ifname)?;
        }
        Ok(())
    })
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
