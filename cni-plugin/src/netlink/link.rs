//! Links: the veth pair and its state.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use quilla_cni_protocol::MacAddress;
use rustix::net::netdevice::name_to_index;

use super::{Batch, Existing, Netlink, NetlinkError};

/// A veth pair to create: one side here, the other directly in the Pod's namespace under its final name.
#[derive(Debug)]
pub(crate) struct VethPair<'a> {
    /// Name here.
    pub(crate) host_name: &'a str,
    /// Hardware address here.
    pub(crate) host_mac: MacAddress,
    /// Name there.
    pub(crate) pod_name: &'a str,
    /// Hardware address there.
    pub(crate) pod_mac: MacAddress,
    /// The other namespace.
    pub(crate) netns: BorrowedFd<'a>,
    /// MTU of both sides.
    pub(crate) mtu: u32,
}

/// A link that exists.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// Its index.
    pub(crate) index: u32,
    /// Its hardware address, when it is an Ethernet one.
    pub(crate) mac: Option<MacAddress>,
    /// Whether it is administratively up.
    pub(crate) up: bool,
    /// Longest packet that it takes.
    pub(crate) mtu: Option<u32>,
    /// Index of the other side of a veth pair, in that side's namespace.
    pub(crate) peer: Option<u32>,
}

impl Netlink {
    /// Creates the pair; both sides are down.
    pub(crate) fn create_veth(&mut self, pair: &VethPair<'_>) -> Result<(), NetlinkError> {
        let mut peer = side(pair.pod_name, pair.pod_mac, pair.mtu);
        peer.attributes.push(LinkAttribute::NetNsFd(pair.netns.as_raw_fd()));
        let mut message = side(pair.host_name, pair.host_mac, pair.mtu);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let object = format!("{} with peer {}", pair.host_name, pair.pod_name);
        self.change("create veth", object, RouteNetlinkMessage::NewLink(message), Existing::Refuse.flags())
    }

    /// Looks a link up by name.
    pub(crate) fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let failed = |source| NetlinkError { operation: "get link", object: name.to_owned(), source };
        let answers = self.exchange(RouteNetlinkMessage::GetLink(message), NLM_F_ACK).map_err(failed)?;
        answers
            .iter()
            .find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(Link::from(link)),
                _ => None,
            })
            .ok_or_else(|| failed(rustix::io::Errno::NODEV.into()))
    }

    /// The number of a link that must be there. Unlike every other question this one waits for no lock of the kernel.
    pub(crate) fn index(&self, name: &str) -> Result<u32, NetlinkError> {
        name_to_index(&self.socket, name).map_err(|errno| NetlinkError {
            operation: "get number of link",
            object: name.to_owned(),
            source: errno.into(),
        })
    }

    /// Deletes a link, and with it the other side of a pair; says whether there was one.
    pub(crate) fn delete_link(&mut self, name: &str) -> Result<bool, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.change("delete link", name, RouteNetlinkMessage::DelLink(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Batch {
    /// Brings a link up.
    pub(crate) fn set_up(&mut self, index: u32) {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.push("bring up link", index, RouteNetlinkMessage::SetLink(message), 0);
    }

    /// Keeps a link from making itself an IPv6 address. The same as `addr_gen_mode` 1, which a write to `/proc/sys` would
    /// try again and again for as long as the kernel's network lock is taken.
    pub(crate) fn without_link_local(&mut self, index: u32) {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![none]));
        self.push("keep link-local addresses off link", index, RouteNetlinkMessage::SetLink(message), 0);
    }
}

fn side(name: &str, mac: MacAddress, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.extend([
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(mtu),
    ]);
    message
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mac = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(MacAddress),
            _ => None,
        });
        let peer = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Link(index) => Some(*index),
            _ => None,
        });
        let mtu = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let up = message.header.flags.contains(LinkFlags::Up);
        Self { index: message.header.index, mac, up, mtu, peer }
    }
}
