//! GC: detach what the agent records for this network and the runtime no longer knows. Other networks are never
//! touched; a missing list is an error, only an empty one means all.

use std::collections::BTreeSet;

use quilla_cni_protocol::{Attachment, CniError, ErrorCode, NetworkConfig, Request, Response, failpoint};

use crate::agent::{Agent, unexpected};
use crate::del;
use crate::ipam::Delegate;

/// Detaches everything stale, and reports what failed at the end.
pub(crate) fn run(config: &NetworkConfig, ipam: Option<&Delegate<'_>>) -> Result<(), CniError> {
    let Some(valid) = &config.valid_attachments else {
        let details = "GC needs cni.dev/valid-attachments";
        return Err(CniError::new(ErrorCode::INVALID_CONFIG, "invalid network config", details));
    };
    let valid: BTreeSet<Attachment> = valid.iter().cloned().map(Attachment::from).collect();
    let request = Request::List { network: config.name.clone() };
    let recorded = match Agent::connect(config)?.ask(request)? {
        Response::Endpoints { endpoints } => endpoints,
        other => return Err(unexpected(&other)),
    };
    failpoint!(GcListed);
    let mut failures: Vec<String> = recorded
        .into_iter()
        .map(|endpoint| endpoint.attachment)
        .filter(|attachment| !valid.contains(attachment))
        .filter_map(|attachment| {
            let error = collect(&attachment, config, ipam).err()?;
            Some(format!("{attachment}: {error}"))
        })
        .collect();
    // What it holds for attachments that the agent never heard of.
    failures.extend(ipam.and_then(|ipam| ipam.forward("GC").err()).map(|error| error.to_string()));
    if failures.is_empty() {
        return Ok(());
    }
    Err(CniError::new(ErrorCode::WIRING_FAILED, "detach stale attachments", failures.join("; ")))
}

/// A DEL that waits for whoever works on the attachment: unlike a runtime's own, it may not be the newest word on it.
fn collect(
    attachment: &Attachment,
    config: &NetworkConfig,
    ipam: Option<&Delegate<'_>>,
) -> Result<(), CniError> {
    let mut agent = Agent::connect(config)?;
    agent.ask_done(Request::Lock { attachment: attachment.clone() })?;
    del::run(attachment, config, ipam, Some(agent))
}
