//! Changes that are asked for together. Filled by the other modules, each of which knows its kind of message.

use std::fmt::Display;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::RouteNetlinkMessage;

use super::{Netlink, NetlinkError};

/// Changes in the order in which the kernel makes them. One that it refuses does not stop those behind it.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    operation: &'static str,
    object: String,
    message: RouteNetlinkMessage,
    flags: u16,
}

impl Batch {
    pub(super) fn push(
        &mut self,
        operation: &'static str,
        object: impl Display,
        message: RouteNetlinkMessage,
        flags: u16,
    ) {
        self.changes.push(Change {
            operation,
            object: object.to_string(),
            message,
            flags: flags | NLM_F_ACK,
        });
    }
}

impl Netlink {
    /// Makes all changes; the first one that was refused is the error.
    pub(crate) fn apply(&mut self, batch: Batch) -> Result<(), NetlinkError> {
        let mut bytes = Vec::new();
        let mut asked = Vec::new();
        for Change { operation, object, message, flags } in batch.changes {
            asked.push((self.enqueue(message, flags, &mut bytes), operation, object));
        }
        let sent = self.send(&bytes);
        sent.map_err(|source| NetlinkError { operation: "send", object: "changes".to_owned(), source })?;
        let mut outcome = Ok(());
        for (sequence, operation, object) in asked {
            let done = self.collect(sequence).map(drop);
            let done = done.map_err(|source| NetlinkError { operation, object, source });
            // All answers are read, or they would be taken for those of later requests.
            outcome = outcome.and(done);
        }
        outcome
    }
}
