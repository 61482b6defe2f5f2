//! A blocking rtnetlink socket, and the few requests the plugin makes. A socket stays in the namespace it was opened
//! in; every request is acknowledged by the kernel before the call returns. Changes that belong together are sent
//! together: the kernel's network lock is waited for once, however many Pods come at the same time.

mod address;
mod batch;
mod link;
pub(crate) mod policer;
mod route;
mod shaper;

use std::fmt;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use quilla_cni_protocol::{CniError, ErrorCode};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

pub(crate) use self::batch::Batch;
pub(crate) use self::link::{Link, VethPair};

/// The kernel answers at once; only a lost answer takes longer.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Larger than any message of a dump (the kernel uses at most 32 KiB).
const RECEIVE_BYTES: usize = 64 * 1024;

/// Where a message may begin.
const ALIGNMENT: usize = 4;

/// An open socket.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A request the kernel refused or could not be asked.
#[derive(Debug)]
pub(crate) struct NetlinkError {
    operation: &'static str,
    object: String,
    source: io::Error,
}

impl NetlinkError {
    /// Whether the object exists already.
    pub(crate) fn is_exists(&self) -> bool {
        self.is(Errno::EXIST)
    }

    /// Whether the object does not exist.
    pub(crate) fn is_missing(&self) -> bool {
        self.is(Errno::NODEV) || self.is(Errno::NOENT)
    }

    fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno.raw_os_error())
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.operation, self.object, self.source)
    }
}

impl From<NetlinkError> for CniError {
    fn from(error: NetlinkError) -> Self {
        Self::new(ErrorCode::WIRING_FAILED, "wire interface", error.to_string())
    }
}

/// What to do when the object exists already.
#[derive(Debug, Clone, Copy)]
enum Existing {
    /// Refuse.
    Refuse,
    /// Overwrite.
    Replace,
}

impl Existing {
    const fn flags(self) -> u16 {
        match self {
            Self::Refuse => NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK,
            Self::Replace => NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK,
        }
    }
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let open = || {
            // Protocol 0 of this family is rtnetlink.
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
            set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
            bind(&socket, &SocketAddrNetlink::new(0, 0))?;
            Ok(socket)
        };
        let opened = |socket| Self { socket, sequence: 0, buffer: vec![0; RECEIVE_BYTES] };
        open().map(opened).map_err(|errno: Errno| NetlinkError {
            operation: "open",
            object: "netlink socket".to_owned(),
            source: errno.into(),
        })
    }

    /// A request that changes something.
    fn change(
        &mut self,
        operation: &'static str,
        object: impl fmt::Display,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.exchange(message, flags | NLM_F_ACK).map(drop).map_err(|source| NetlinkError {
            operation,
            object: object.to_string(),
            source,
        })
    }

    /// A request for everything of a kind.
    fn dump(
        &mut self,
        operation: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.exchange(message, NLM_F_DUMP).map_err(|source| NetlinkError {
            operation,
            object: "all".to_owned(),
            source,
        })
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut bytes = Vec::new();
        let sequence = self.enqueue(message, flags, &mut bytes);
        self.send(&bytes)?;
        self.collect(sequence)
    }

    /// Adds a request to those that will be sent together; returns its number.
    fn enqueue(&mut self, message: RouteNetlinkMessage, flags: u16, bytes: &mut Vec<u8>) -> u32 {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let start = bytes.len().next_multiple_of(ALIGNMENT);
        bytes.resize(start + request.buffer_len(), 0);
        request.serialize(&mut bytes[start..]);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        sendto(&self.socket, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    /// Reads until the kernel says that the request of that number is done.
    fn collect(&mut self, sequence: u32) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        let Self { socket, buffer, .. } = self;
        loop {
            let (received, _) = retry_on_intr(|| recv(&*socket, buffer.as_mut_slice(), RecvFlags::empty()))?;
            let mut rest = &buffer[..received];
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = (message.header.length as usize).next_multiple_of(ALIGNMENT).min(rest.len());
                if length == 0 {
                    return Err(io::Error::other("empty netlink message"));
                }
                rest = &rest[length..];
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answers),
                            Some(_) => Err(error.to_io()),
                        };
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Kinds and values of netlink attributes in a row, as far as they are whole.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let number = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(number(0)?), number(2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The uppermost bit says that there are others inside.
        Some((kind & !(1 << 15), value))
    })
}
