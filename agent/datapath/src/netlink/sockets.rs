//! Connected sockets of one network namespace: listing them, and ending those whose peer is gone.
//!
//! `sock_diag` of the kernel; the agent uses it for the node's own sockets that talk to a backend that has ended (S48,
//! E18). Ended is an error for the application at once, where it would otherwise wait for an answer that never comes.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::error::{DatapathError, Result};

/// A socket that has a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectedSocket {
    /// Low and high half of its cookie: what `bpf_get_socket_cookie` gives to a program.
    pub cookie: [u32; 2],
    /// IP protocol number: TCP or UDP.
    pub protocol: u8,
    /// Its own end.
    pub local: SocketAddr,
    /// Its peer. An IPv4 address in an IPv6 socket is shown as what it is.
    pub peer: SocketAddr,
    family: u8,
    id: SocketId,
}

/// What became of the sockets that were to end.
#[derive(Debug, Default)]
pub struct Destroyed {
    /// How many ended.
    pub ended: usize,
    /// Why others could not be listed or did not end.
    pub errors: Vec<DatapathError>,
}

/// The sockets of the namespace in which it was opened.
#[derive(Debug)]
pub struct Sockets(Socket);

impl Sockets {
    /// Opens in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let failed = |source| DatapathError::kernel("open", "a socket for socket diagnosis", source);
        let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        Ok(Self(socket))
    }

    /// Whether the kernel can end sockets of others (`CONFIG_INET_DIAG_DESTROY`): tried on a socket of our own.
    pub fn can_destroy(&self) -> Result<bool> {
        let failed = |source| DatapathError::kernel("make", "a socket to end", source);
        let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        // Any peer will do: nothing is sent.
        let peer = own.local_addr().map_err(failed)?;
        own.connect(peer).map_err(failed)?;
        let Destroyed { ended, errors } =
            self.destroy(IPPROTO_UDP, &[peer].into(), |socket| socket.local == peer);
        let refused = |error: &DatapathError| {
            matches!(error, DatapathError::Kernel { source, .. }
            if source.raw_os_error() == Some(libc::EOPNOTSUPP))
        };
        if ended > 0 || errors.iter().any(refused) {
            return Ok(ended > 0);
        }
        errors.into_iter().next().map_or(Ok(false), Err)
    }

    /// Ends those of a protocol that are connected to one of the peers and that `chosen` says. What fails keeps none of
    /// the others from its end.
    pub fn destroy(
        &self,
        protocol: u8,
        peers: &BTreeSet<SocketAddr>,
        mut chosen: impl FnMut(&ConnectedSocket) -> bool,
    ) -> Destroyed {
        let lists = families(peers).map(|family| (family, filter(family, peers)));
        self.end_all(protocol, lists, |socket| peers.contains(&socket.peer) && chosen(socket))
    }

    /// Ends TCP connections from one of the addresses to one of the peers.
    pub fn destroy_between(&self, locals: &BTreeSet<IpAddr>, peers: &BTreeSet<IpAddr>) -> Destroyed {
        let lists = [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())];
        self.end_all(IPPROTO_TCP, lists.into_iter(), |socket| {
            locals.contains(&socket.local.ip()) && peers.contains(&socket.peer.ip())
        })
    }

    fn end_all(
        &self,
        protocol: u8,
        lists: impl Iterator<Item = (u8, SocketId)>,
        mut chosen: impl FnMut(&ConnectedSocket) -> bool,
    ) -> Destroyed {
        let mut outcome = Destroyed::default();
        for (family, filter) in lists {
            let mut doomed = Vec::new();
            let listed = self.visit(protocol, request(family, protocol, filter), |socket| {
                if chosen(&socket) {
                    doomed.push(socket);
                }
            });
            outcome.errors.extend(listed.err());
            for socket in doomed {
                match self.end(socket) {
                    Ok(ended) => outcome.ended += usize::from(ended),
                    Err(error) => outcome.errors.push(error),
                }
            }
        }
        outcome
    }

    fn visit(
        &self,
        protocol: u8,
        request: SockDiagMessage,
        mut visitor: impl FnMut(ConnectedSocket),
    ) -> Result<()> {
        self.send(NLM_F_REQUEST | NLM_F_DUMP, request)?;
        self.receive(|message| match message {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                if let Some(socket) = connected(protocol, &response) {
                    visitor(socket);
                }
                None
            }
            // A listing that failed ends like one that did not.
            NetlinkPayload::Done(done) if done.code < 0 => {
                Some(Err(io::Error::from_raw_os_error(-done.code)))
            }
            NetlinkPayload::Done(_) => Some(Ok(())),
            NetlinkPayload::Error(error) => Some(Err(error.to_io())),
            _ => None,
        })
    }

    /// One that is gone by itself meanwhile is not ended.
    fn end(&self, socket: ConnectedSocket) -> Result<bool> {
        let doomed = SockDiagDestroy::new(request(socket.family, socket.protocol, socket.id));
        self.send(NLM_F_REQUEST | NLM_F_ACK, doomed)?;
        let answer = self.receive(|message| match message {
            NetlinkPayload::Error(error) if error.code.is_none() => Some(Ok(())),
            NetlinkPayload::Error(error) => Some(Err(error.to_io())),
            _ => None,
        });
        match answer {
            Ok(()) => Ok(true),
            Err(DatapathError::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn send<M: NetlinkSerializable + Into<NetlinkPayload<M>>>(&self, flags: u16, message: M) -> Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut packet = NetlinkMessage::new(header, message.into());
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        let sent = self.0.send(&bytes, 0);
        sent.map(drop).map_err(|source| DatapathError::kernel("ask for", "sockets", source))
    }

    /// Reads messages until one of them is the end.
    fn receive(
        &self,
        mut handle: impl FnMut(NetlinkPayload<SockDiagMessage>) -> Option<io::Result<()>>,
    ) -> Result<()> {
        let failed = |source| DatapathError::kernel("list or end", "sockets", source);
        loop {
            let (datagram, _) = self.0.recv_from_full().map_err(failed)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                    .map_err(|error| failed(io::Error::other(error)))?;
                // Messages are padded to four bytes.
                let length = (message.header.length as usize).next_multiple_of(4).max(4);
                rest = rest.get(length..).unwrap_or_default();
                if let Some(end) = handle(message.payload) {
                    return end.map_err(failed);
                }
            }
        }
    }
}

/// Families whose sockets can have one of the peers: those of IPv6 talk to either.
fn families(peers: &BTreeSet<SocketAddr>) -> impl Iterator<Item = u8> {
    let v4 = peers.iter().any(SocketAddr::is_ipv4).then_some(AF_INET);
    v4.into_iter().chain((!peers.is_empty()).then_some(AF_INET6))
}

/// What the kernel lists: everything, but if all peers have one port, only sockets to that port.
fn filter(family: u8, peers: &BTreeSet<SocketAddr>) -> SocketId {
    let mut id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let ports: BTreeSet<_> = peers.iter().map(SocketAddr::port).collect();
    if let (Some(port), 1) = (ports.first(), ports.len()) {
        id.destination_port = *port;
    }
    id
}

/// Sockets of every state that has a peer who may still be waited for.
fn request(family: u8, protocol: u8, socket_id: SocketId) -> SockDiagMessage {
    let states = if protocol == IPPROTO_TCP {
        StateFlags::all() - (StateFlags::LISTEN | StateFlags::CLOSE | StateFlags::TIME_WAIT)
    } else {
        StateFlags::ESTABLISHED
    };
    let extensions = ExtensionFlags::empty();
    SockDiagMessage::InetRequest(InetRequest { family, protocol, extensions, states, socket_id })
}

fn connected(protocol: u8, response: &InetResponse) -> Option<ConnectedSocket> {
    let id = &response.header.socket_id;
    let end = |address: IpAddr, port| SocketAddr::new(address.to_canonical(), port);
    let (halves, _) = id.cookie.as_chunks::<4>();
    let socket = ConnectedSocket {
        cookie: [halves[0], halves[1]].map(u32::from_ne_bytes),
        protocol,
        local: end(id.source_address, id.source_port),
        peer: end(id.destination_address, id.destination_port),
        family: response.header.family,
        id: id.clone(),
    };
    (socket.peer.port() != 0).then_some(socket)
}
