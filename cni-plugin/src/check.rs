//! CHECK: does reality still match what ADD reported? Compares the Pod's namespace, the host and the agent; things
//! added by other plugins of the chain are theirs.

use quilla_cni_protocol::{AddResult, CniError, ErrorCode, NetworkConfig, Request, Reservation, Response};

use crate::agent::{Agent, unexpected};
use crate::invocation::Target;
use crate::ipam::Delegate;
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::{host, pod};

/// Fails with every difference found.
pub(crate) fn run(
    target: &Target,
    config: &NetworkConfig,
    ipam: Option<&Delegate<'_>>,
) -> Result<(), CniError> {
    let Some(document) = &config.prev_result else {
        let details = "CHECK needs prevResult";
        return Err(CniError::new(ErrorCode::INVALID_CONFIG, "invalid network config", details));
    };
    let previous = AddResult::decode(document)?;
    let netns = Netns::open(&target.netns)?;
    let request = Request::Check { attachment: target.attachment.clone() };
    let reservation = match Agent::connect(config)?.ask(request)? {
        Response::Attached(reservation) => reservation,
        other => return Err(unexpected(&other)),
    };
    let ifname = &target.attachment.ifname;
    let mut differences = unreported(&previous, ifname, &reservation);
    differences.extend(mac_difference(&previous, &netns, ifname)?);
    differences.extend(effective_differences(&netns, ifname, &reservation)?);
    conclude(&differences)?;
    ipam.map_or(Ok(()), |ipam| ipam.forward("CHECK"))
}

/// Fails when the kernel does not show the whole reservation.
pub(crate) fn require_effective(
    netns: &Netns,
    ifname: &str,
    reservation: &Reservation,
) -> Result<(), CniError> {
    conclude(&effective_differences(netns, ifname, reservation)?)
}

fn effective_differences(
    netns: &Netns,
    ifname: &str,
    reservation: &Reservation,
) -> Result<Vec<String>, CniError> {
    let mut differences = pod::differences(netns, ifname, reservation)?;
    differences.extend(host::differences(&mut Netlink::open()?, reservation)?);
    Ok(differences)
}

/// What the agent knows and `prevResult` does not say: it is another attachment's result.
fn unreported(previous: &AddResult, ifname: &str, reservation: &Reservation) -> Vec<String> {
    let mut differences = Vec::new();
    for name in [ifname, &reservation.host_ifname] {
        if !previous.interfaces.iter().any(|interface| interface.name == name) {
            differences.push(format!("prevResult lacks interface {name}"));
        }
    }
    for lease in &reservation.leases {
        if !previous.ips.iter().any(|ip| ip.address.addr() == lease.address) {
            differences.push(format!("prevResult lacks address {}", lease.address));
        }
    }
    differences
}

/// A later plugin of the chain may set another hardware address, and says so in `prevResult`.
fn mac_difference(previous: &AddResult, netns: &Netns, ifname: &str) -> Result<Option<String>, CniError> {
    let reported = previous
        .interfaces
        .iter()
        .find(|interface| interface.name == ifname && interface.sandbox.is_some())
        .and_then(|interface| interface.mac);
    let Some(reported) = reported else { return Ok(None) };
    let Some(actual) = pod::mac(netns, ifname)? else { return Ok(None) };
    Ok((actual != reported).then(|| format!("interface {ifname} has mac {actual}, not {reported}")))
}

fn conclude(differences: &[String]) -> Result<(), CniError> {
    if differences.is_empty() {
        return Ok(());
    }
    Err(CniError::new(ErrorCode::CHECK_FAILED, "attachment differs from its result", differences.join("; ")))
}
