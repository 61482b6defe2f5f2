//! Filters and queueing disciplines of devices: what is there, and being told when others take it away.
//!
//! Used by `link::clsact`, and by the agent to put its programs back. Invariant: what this process attaches is no change.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use futures::StreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_ECHO, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use quilla_abi::program;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::error::{DatapathError, Result};
use crate::netlink::{Messages, Netlink, is, listen};

/// The programs that may be in a filter.
const OURS: [&str; 6] = [
    program::FROM_POD,
    program::TO_POD,
    program::FROM_UPLINK,
    program::TO_UPLINK,
    program::FROM_OVERLAY,
    program::TO_OVERLAY,
];

/// A filter of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Packets begin in chain 0.
    pub(crate) chain: u32,
    /// Those with the small numbers run first.
    pub(crate) priority: u16,
    pub(crate) handle: u32,
    /// The program that it runs, as whoever attached it named it.
    pub(crate) program: Option<String>,
}

/// Which filters of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Ingress,
    Egress,
}

impl Netlink {
    /// The kind of queueing discipline at the place of `clsact`: that, or `ingress`, of which there can be only one.
    pub(crate) fn discipline(&self, ifindex: u32) -> Result<Option<String>> {
        let mut wanted = TcMessage::with_index(ifindex.cast_signed());
        wanted.header.parent = TcHandle::CLSACT;
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetQueueDiscipline(wanted));
        // Without an echo the kernel tells only those who listen to changes.
        request.header.flags = NLM_F_REQUEST | NLM_F_ECHO | NLM_F_ACK;
        let answer = async {
            let mut answers = self.handle.clone().request(request)?;
            match answers.next().await.map(|answer| answer.payload) {
                Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewQueueDiscipline(found))) => {
                    Ok(kind(&found).map(str::to_owned))
                }
                Some(NetlinkPayload::Error(error)) => Err(rtnetlink::Error::NetlinkError(error)),
                _ => Err(rtnetlink::Error::RequestFailed),
            }
        };
        let object = ifindex.to_string();
        let found = self.runtime.block_on(answer).map_err(|source| {
            DatapathError::netlink("look up the queueing discipline of device", &object, source)
        });
        match found {
            Err(error) if is(&error, libc::ENOENT) => Ok(None),
            other => other,
        }
    }

    /// The filters on one side of a device.
    pub(crate) fn filters(&self, ifindex: u32, side: Side) -> Result<Vec<Filter>> {
        let get = self.handle.traffic_filter(ifindex.cast_signed()).get();
        let get = match side {
            Side::Ingress => get.ingress(),
            Side::Egress => get.egress(),
        };
        let found = self.list("list filters of device", &ifindex.to_string(), get.execute())?;
        Ok(found.iter().map(filter).collect())
    }
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

fn filter(message: &TcMessage) -> Filter {
    let options = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let program = options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    });
    let chain = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Chain(chain) => Some(*chain),
        _ => None,
    });
    let TcHeader { info, handle: TcHandle { major, minor }, .. } = message.header;
    let handle = u32::from(major) << 16 | u32::from(minor);
    // The upper half is the priority, the lower one the protocol.
    let chain = chain.unwrap_or_default();
    Filter { chain, priority: u16::try_from(info >> 16).unwrap_or(u16::MAX), handle, program }
}

/// Devices at which others may have taken filters away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Too much happened to be told: it may be any device.
    any: bool,
    devices: BTreeSet<u32>,
}

impl Touched {
    /// Any device: nobody listened.
    pub fn any() -> Self {
        Self { any: true, devices: BTreeSet::new() }
    }

    /// Whether this device may be one of them.
    pub fn contains(&self, ifindex: u32) -> bool {
        self.any || self.devices.contains(&ifindex)
    }

    /// Adds these to them.
    pub fn extend(&mut self, others: &Self) {
        self.any |= others.any;
        self.devices.extend(&others.devices);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        !self.any && self.devices.is_empty()
    }

    fn take(&mut self, message: &NetlinkPayload<RouteNetlinkMessage>) {
        use RouteNetlinkMessage::{DelQueueDiscipline, DelTrafficChain, DelTrafficFilter, NewTrafficFilter};
        let device = |message: &TcMessage| u32::try_from(message.header.index).ok();
        match message {
            NetlinkPayload::Overrun(_) => self.any = true,
            NetlinkPayload::InnerMessage(
                DelQueueDiscipline(gone) | DelTrafficFilter(gone) | DelTrafficChain(gone),
            ) => self.devices.extend(device(gone)),
            // One of another in our place.
            NetlinkPayload::InnerMessage(NewTrafficFilter(new)) if !is_ours(new) => {
                self.devices.extend(device(new));
            }
            _ => {}
        }
    }
}

fn is_ours(message: &TcMessage) -> bool {
    filter(message).program.is_some_and(|name| OURS.contains(&name.as_str()))
}

/// Changes of filters and queueing disciplines in one network namespace.
pub struct FilterChanges {
    runtime: Runtime,
    messages: Messages,
}

impl std::fmt::Debug for FilterChanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilterChanges").finish_non_exhaustive()
    }
}

impl FilterChanges {
    /// Listens in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let (runtime, messages) = listen(&[MulticastGroup::Tc], "changes of filters")?;
        Ok(Self { runtime, messages })
    }

    /// Waits for a change, or for `limit` to pass. Changes that came together are told together. After an error nothing
    /// more is told: listen anew.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<Touched>> {
        let Self { runtime, messages } = self;
        let mut touched = Touched::default();
        let next = async {
            while let Some((message, _)) = messages.next().await {
                touched.take(&message.payload);
                if !touched.is_empty() {
                    return Ok(());
                }
            }
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        };
        let Ok(told) = runtime.block_on(async { timeout(limit, next).await }) else { return Ok(None) };
        told.map_err(|source| DatapathError::kernel("listen for", "changes of filters", source))?;
        while let Ok((message, _)) = messages.try_recv() {
            touched.take(&message.payload);
        }
        Ok(Some(touched))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use netlink_packet_core::NetlinkPayload;
    use rtnetlink::packet_route::RouteNetlinkMessage;
    use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};

    use futures::channel::mpsc::unbounded;

    use super::{FilterChanges, Touched};
    use crate::netlink::runtime;

    fn told<const N: usize>(messages: [NetlinkPayload<RouteNetlinkMessage>; N]) -> Touched {
        let mut touched = Touched::default();
        for message in messages {
            touched.take(&message);
        }
        touched
    }

    /// E19: what goes is told, whoever took it; of what comes, only what others attach.
    #[test]
    fn what_goes_and_what_others_attach_is_told() {
        use RouteNetlinkMessage::{
            DelQueueDiscipline, DelTrafficFilter, NewQueueDiscipline, NewTrafficFilter,
        };
        let of = TcMessage::with_index;
        let running = |index, program: &str| {
            let name = TcOption::Bpf(TcFilterBpfOption::ProgName(program.to_owned()));
            TcMessage::from_parts(of(index).header, vec![TcAttribute::Options(vec![name])])
        };
        let touched = told(
            [
                DelQueueDiscipline(of(1)),
                DelTrafficFilter(running(2, "from_pod")),
                NewTrafficFilter(running(3, "from_pod")),
                NewTrafficFilter(running(4, "stranger")),
                NewTrafficFilter(of(5)),
                NewQueueDiscipline(of(6)),
            ]
            .map(NetlinkPayload::InnerMessage),
        );
        assert_eq!(
            [1, 2, 3, 4, 5, 6].map(|index| touched.contains(index)),
            [true, true, false, true, true, false]
        );
        assert!(told([NetlinkPayload::Overrun(Vec::new())]).contains(7), "it may be any");
    }

    /// E19: who listens hears of it when the socket is gone.
    #[test]
    fn e19_a_closed_socket_is_an_error() {
        let (sender, messages) = unbounded();
        let mut changes = FilterChanges { runtime: runtime().expect("a runtime"), messages };
        assert_eq!(changes.wait(Duration::ZERO).expect("open"), None);
        drop(sender);
        assert!(changes.wait(Duration::from_mins(1)).is_err());
    }
}
