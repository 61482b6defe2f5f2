//! What of an answer is wanted: one list of conditions for all queries, so that each means the same everywhere.
//!
//! Used by the queries that list Services, backends, flows and counts. Invariant: what is not asked for restricts nothing.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use quilla_abi::DropReason;
use quilla_plan::Frontend;
use serde::Deserialize;

use super::names::{Names, full_name, is_named};
use super::protocol;
use crate::metrics::PATHS;

/// Which rows to list: those that meet every condition given. A query looks at those that its rows can meet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::admin) struct Filter {
    /// An end is this Pod: its name, with its namespace or without, or its address.
    pub(super) pod: Option<String>,
    /// An end is this Service: its name, with its namespace or without, with its port or without, or its address.
    pub(super) service: Option<String>,
    /// The Service is of this namespace.
    pub(super) namespace: Option<String>,
    /// The Service's clients: `internal` or `external`.
    pub(super) scope: Option<String>,
    /// The source, before or after translation: an address, a range, or a name.
    pub(super) from: Option<String>,
    /// The destination, likewise.
    pub(super) to: Option<String>,
    /// An end has this port.
    pub(super) port: Option<u16>,
    /// The protocol's name or number.
    pub(super) proto: Option<String>,
    /// The state's name.
    pub(super) state: Option<String>,
    /// What packets are counted under: the reason of a drop, or the path of what was delivered.
    pub(super) reason: Option<String>,
    /// What became of counted packets: `drop` or `forward`.
    pub(super) verdict: Option<String>,
}

/// A condition that nothing can meet, most likely a typing error.
#[derive(Debug, thiserror::Error)]
pub(in crate::admin) enum FilterError {
    /// An end of a flow.
    #[error(
        "{condition} {wanted:?}: neither an address, a range such as 10.0.0.0/8, nor a Pod that this node knows by name"
    )]
    End {
        /// Which condition.
        condition: &'static str,
        /// What was asked for.
        wanted: String,
    },
    /// A Service.
    #[error("no Service {wanted:?} has an address that this node serves")]
    Service {
        /// What was asked for.
        wanted: String,
    },
    /// A name under which packets are counted.
    #[error("nothing is counted under {wanted:?}, but under {}", counted().collect::<Vec<_>>().join(", "))]
    Reason {
        /// What was asked for.
        wanted: String,
    },
}

/// What packets are counted under.
fn counted() -> impl Iterator<Item = &'static str> {
    DropReason::ALL.iter().map(|reason| reason.label()).chain(PATHS.into_iter().map(|(_, name)| name))
}

impl Filter {
    /// Refuses ends that are no address and nobody's name, Services that there are not, and reasons that are none.
    pub(super) fn check(&self, names: &Names<'_>) -> Result<(), FilterError> {
        for (condition, wanted) in [("pod", &self.pod), ("from", &self.from), ("to", &self.to)] {
            let Some(wanted) = wanted else { continue };
            let address = wanted.parse::<IpAddr>().is_ok() || wanted.parse::<IpNet>().is_ok();
            if !address && !names.knows_pod(wanted) {
                return Err(FilterError::End { condition, wanted: wanted.clone() });
            }
        }
        if let Some(wanted) = self.reason.as_ref().filter(|wanted| counted().all(|name| name != *wanted)) {
            return Err(FilterError::Reason { wanted: wanted.clone() });
        }
        match &self.service {
            Some(wanted) if !names.frontends().any(|(at, found)| self.takes_service(Some(found), at)) => {
                Err(FilterError::Service { wanted: wanted.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Whether the Service at this address is wanted; `None` is one that nobody knows by name.
    pub(super) fn takes_service(&self, found: Option<&Frontend>, at: SocketAddr) -> bool {
        let namespace = |wanted: &str| found.is_some_and(|found| *found.set.owner.namespace == *wanted);
        let service = |wanted: &str| is_service(wanted, found.map(full_name).as_deref(), at);
        self.namespace.as_deref().is_none_or(namespace) && self.service.as_deref().is_none_or(service)
    }

    /// Whether this protocol is wanted.
    pub(super) fn takes_protocol(&self, number: u8) -> bool {
        let wanted =
            |wanted: &str| wanted.eq_ignore_ascii_case(&protocol(number)) || wanted.parse() == Ok(number);
        self.proto.as_deref().is_none_or(wanted)
    }

    /// Whether packets with this verdict, counted under this name, are wanted.
    pub(super) fn takes_count(&self, verdict: &str, name: &str) -> bool {
        self.verdict.as_deref().is_none_or(|wanted| wanted == verdict)
            && self.reason.as_deref().is_none_or(|wanted| wanted == name)
    }

    /// Whether this port is wanted.
    pub(super) fn takes_port(&self, port: u16) -> bool {
        self.port.is_none_or(|wanted| wanted == port)
    }
}

/// Whether a Service of this name at this address is what was asked for, by either.
pub(super) fn is_service(wanted: &str, name: Option<&str>, at: SocketAddr) -> bool {
    match (wanted.parse::<IpAddr>(), wanted.parse::<SocketAddr>()) {
        (Ok(address), _) => address == at.ip(),
        (_, Ok(end)) => end == at,
        _ => name.is_some_and(|name| is_named(name, wanted)),
    }
}

/// Whether an address is what was asked for: itself, in a range, or a Pod's of that name.
pub(super) fn is_end(wanted: &str, address: IpAddr, names: &Names<'_>) -> bool {
    if let Ok(wanted) = wanted.parse::<IpAddr>() {
        return wanted == address;
    }
    match wanted.parse::<IpNet>() {
        Ok(range) => range.contains(&address),
        Err(_) => names.is_pod(address, wanted),
    }
}
