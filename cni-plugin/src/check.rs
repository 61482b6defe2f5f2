//! CHECK: does reality still match what ADD reported? Compares the Pod's namespace, the host and the agent; things
//! added by other plugins of the chain are theirs.

use std::path::Path;

use quilla_cni_protocol::{AddResult, CniError, ErrorCode, NetworkConfig, Request, Reservation, Response};

use crate::agent::{Agent, unexpected};
use crate::invocation::Target;
use crate::ipam::Delegate;
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::{bandwidth, host, pod};

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
    let mut differences = unreported(&previous, &netns, ifname, &reservation);
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
    differences.extend(bandwidth::differences(netns, ifname, &reservation.bandwidth)?);
    differences.extend(host::differences(&mut Netlink::open()?, reservation)?);
    Ok(differences)
}

/// What the agent knows and `prevResult` does not say: it is another attachment's result.
fn unreported(previous: &AddResult, netns: &Netns, ifname: &str, reservation: &Reservation) -> Vec<String> {
    let mut differences = Vec::new();
    let is_listed = |name: &str, place: &dyn Fn(Option<&String>) -> bool| {
        previous.interfaces.iter().any(|it| it.name == name && place(it.sandbox.as_ref()))
    };
    if !is_listed(ifname, &|sandbox| sandbox.is_some_and(|path| netns.is_at(Path::new(path)))) {
        differences.push(format!("prevResult lacks interface {ifname} of the container"));
    }
    if !is_listed(&reservation.host_ifname, &|sandbox| sandbox.is_none()) {
        differences.push(format!("prevResult lacks interface {} of the host", reservation.host_ifname));
    }
    for lease in &reservation.leases {
        if !previous.ips.iter().any(|ip| ip.address.addr() == lease.address) {
            differences.push(format!("prevResult lacks address {}", lease.address));
        }
    }
    differences
}

/// What `prevResult` says of the Pod's hardware address must be so.
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
