//! DEL: remove what is there, tell the agent, and leave a record when it cannot be told. Any number of DELs succeed;
//! namespace, link, reservation and agent may all be gone.

use quilla_cni_protocol::{
    Attachment, CniError, ErrorCode, NetworkConfig, ReleaseRecord, Request, failpoint,
};

use crate::agent::Agent;
use crate::ipam::Delegate;
use crate::log;
use crate::netlink::Netlink;

/// Detaches the Pod, over the given connection or a new one, and has the IPAM plugin free what it gave; the one is done
/// even where the other fails.
pub(crate) fn run(
    attachment: &Attachment,
    config: &NetworkConfig,
    ipam: Option<&Delegate<'_>>,
    agent: Option<Agent>,
) -> Result<(), CniError> {
    let detached = detach(attachment, config, agent);
    let freed = ipam.map_or(Ok(()), |ipam| ipam.del(attachment));
    detached.and(freed)
}

/// Deletes the pair and releases the addresses, over the given connection or a new one.
///
/// The link goes first: once its address is free, nothing answers to it any more. So a link that the kernel keeps keeps
/// its address too.
pub(crate) fn detach(
    attachment: &Attachment,
    config: &NetworkConfig,
    agent: Option<Agent>,
) -> Result<(), CniError> {
    // Deleting the host side deletes the Pod's, and the routes and neighbours of both.
    failpoint!(DelStarted);
    Netlink::open()?.delete_link(&attachment.host_ifname())?;
    failpoint!(DelLinkDeleted);
    let released = agent
        .map_or_else(|| Agent::connect(config), Ok)
        .and_then(|mut agent| agent.ask_done(Request::Release { attachment: attachment.clone() }));
    let Err(error) = released else {
        failpoint!(DelReleased);
        return Ok(());
    };
    log::notice(&format!("release of {attachment} recorded for the agent: {error}"));
    ReleaseRecord { attachment: attachment.clone() }.write(&config.data_dir).map_err(|record_error| {
        let details = format!("{record_error}; the agent could not be told either: {error}");
        CniError::new(ErrorCode::IO_FAILURE, "record release", details)
    })
}
