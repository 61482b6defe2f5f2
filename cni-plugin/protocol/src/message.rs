//! The conversation between plugin and agent: one JSON document per line, request and response in turn, over a unix
//! stream socket. The connection is the plugin's lease: while it is open the agent lets nobody else work on the same
//! attachment, and a reservation whose connection closes before `Attach` is given back.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Attachment, Bandwidth, CniError, MacAddress, Wanted};

/// Version of this conversation. Fields may be added within a version; unknown ones are ignored.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest line either side accepts.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// A request with the version it is written in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestEnvelope {
    /// `PROTOCOL_VERSION` of the sender.
    pub version: u32,
    /// What is asked.
    pub request: Request,
}

impl From<Request> for RequestEnvelope {
    fn from(request: Request) -> Self {
        Self { version: PROTOCOL_VERSION, request }
    }
}

/// What the plugin asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    /// ADD, first half: addresses and names for an attachment.
    Reserve {
        /// Whose.
        attachment: Attachment,
        /// The network's name, the scope of GC.
        network: String,
        /// The namespace as the runtime named it.
        netns: PathBuf,
        /// The Pod, when the runtime named it.
        pod: Option<PodRef>,
        /// What it must get.
        #[serde(default)]
        wanted: Box<Wanted>,
    },
    /// ADD, second half: the interface exists; make it effective.
    Attach {
        /// Whose.
        attachment: Attachment,
        /// Index of the host side.
        host_ifindex: u32,
        /// `SO_NETNS_COOKIE` of the Pod's namespace.
        netns_cookie: u64,
    },
    /// DEL or roll-back: forget the attachment. Succeeds for an unknown one.
    Release {
        /// Whose.
        attachment: Attachment,
    },
    /// Lets nobody else work on the attachment until the connection closes, or is about another one.
    Lock {
        /// Whose.
        attachment: Attachment,
    },
    /// CHECK: is the attachment known and effective?
    Check {
        /// Whose.
        attachment: Attachment,
    },
    /// GC: what is recorded for a network?
    List {
        /// The network's name.
        network: String,
    },
    /// STATUS: could an ADD be served now?
    Status,
}

/// The Pod of an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, when the runtime says it.
    pub uid: Option<String>,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    /// To `Reserve`: nothing is attached yet.
    Reserved(Reservation),
    /// To `Reserve`: an earlier ADD of the same attachment finished. To `Check`: this is what is effective.
    Attached(Reservation),
    /// To `List`.
    Endpoints {
        /// Every attachment of the network that no ADD or DEL is at work on.
        endpoints: Vec<EndpointSummary>,
    },
    /// To `Attach`, `Release`, `Lock` and `Status`.
    Done,
    /// To any: refused.
    Error(CniError),
}

/// What an attachment was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Name of the host side.
    pub host_ifname: String,
    /// Hardware address of the host side.
    pub host_mac: MacAddress,
    /// Hardware address of the Pod's side.
    pub pod_mac: MacAddress,
    /// MTU of both sides.
    pub mtu: u32,
    /// One per address family; none of an interface that another plugin made.
    pub leases: Vec<Lease>,
    /// How fast the Pod may be.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
}

/// An address and its next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The Pod's address.
    pub address: IpAddr,
    /// The Pod's next hop, same family.
    pub gateway: IpAddr,
}

/// One recorded attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSummary {
    /// Which.
    pub attachment: Attachment,
    /// Its host side.
    pub host_ifname: String,
}

/// A message that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not what the conversation allows.
    #[error("decode agent message")]
    Decode(#[source] serde_json::Error),
    /// Cannot be written as JSON.
    #[error("encode agent message")]
    Encode(#[source] serde_json::Error),
}

/// One line, with its end.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, MessageError> {
    let mut line = serde_json::to_vec(message).map_err(MessageError::Encode)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads one line, with or without its end.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, MessageError> {
    serde_json::from_slice(line).map_err(MessageError::Decode)
}

#[cfg(test)]
mod tests {
    use super::{Request, RequestEnvelope, decode, encode};
    use crate::Attachment;

    #[test]
    fn one_line_per_message() {
        let attachment = Attachment { container_id: "c".into(), ifname: "eth0".into() };
        let envelope = RequestEnvelope::from(Request::Release { attachment });
        let line = encode(&envelope).expect("encodes");
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        assert_eq!(decode::<RequestEnvelope>(&line).expect("decodes"), envelope);
    }

    /// A newer plugin may say more than this agent knows.
    #[test]
    fn unknown_fields_are_ignored() {
        let line = br#"{"version":1,"hint":1,"request":{"verb":"status","later":true}}"#;
        assert_eq!(decode::<RequestEnvelope>(line).expect("decodes").request, Request::Status);
    }
}
