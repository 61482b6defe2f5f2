//! CNI specification types and the messages between plugin and agent.
//!
//! Used by the plugin (`quilla-cni`) and by the agent's CNI server, so that a socket path, a record on disk or a
//! message has one definition. Pure data: nothing here touches the kernel, and only `record` touches files.
#![forbid(unsafe_code)]

mod attachment;
mod config;
mod error;
pub mod failpoint;
mod mac;
mod message;
mod record;
mod result;
mod version;
mod wanted;

pub use attachment::{
    Attachment, host_ifname, is_host_ifname, validate_container_id, validate_ifname, validate_network_name,
};
pub use config::{NetworkConfig, ValidAttachment};
pub use error::{CniError, ErrorCode};
pub use mac::{MacAddress, MacParseError};
pub use message::{
    EndpointSummary, Lease, MAX_MESSAGE_BYTES, MessageError, PROTOCOL_VERSION, PodRef, Request,
    RequestEnvelope, Reservation, Response, decode, encode,
};
pub use record::{RecordError, ReleaseRecord};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use version::SpecVersion;
pub use wanted::{Bandwidth, Given, Mechanism, PortMapping, Transport, Wanted};

/// Where the agent listens unless the network configuration says otherwise (`agentSocket`).
pub const DEFAULT_SOCKET: &str = "/run/quilla/cni.sock";

/// Where DEL leaves its records while the agent is away unless the network configuration says otherwise (`dataDir`).
pub const DEFAULT_DATA_DIR: &str = "/var/lib/quilla/cni";
