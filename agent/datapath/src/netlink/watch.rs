//! Being told when devices, their addresses or routes change, such as the uplink's MTU.
//!
//! Says only that something did: whoever waits reads the facts anew, so a message that got lost in a full socket costs
//! nothing once the next one comes.

use std::io;
use std::time::Duration;

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteProtocol;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::error::{DatapathError, Result};
use crate::netlink::{Messages, PROTOCOL, listen};

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Changes of the devices in one network namespace.
pub struct DeviceChanges {
    runtime: Runtime,
    messages: Messages,
}

impl std::fmt::Debug for DeviceChanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceChanges").finish_non_exhaustive()
    }
}

impl DeviceChanges {
    /// Listens in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let (runtime, messages) = listen(&GROUPS, "changes of devices")?;
        Ok(Self { runtime, messages })
    }

    /// Waits for a change, or for `limit` to pass; says whether anything changed. Changes that came together are one, and
    /// those of links with an ignored name are none. After an error nothing more is told: listen anew.
    pub fn wait(&mut self, limit: Duration, ignored: impl Fn(&str) -> bool) -> Result<bool> {
        let Self { runtime, messages } = self;
        let matters = |message: &NetlinkMessage<_>| {
            !link_name(message).is_some_and(&ignored) && !is_foreign_route(message)
        };
        let next = async {
            while let Some((message, _)) = messages.next().await {
                if matters(&message) {
                    return Ok(());
                }
            }
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        };
        let Ok(told) = runtime.block_on(async { timeout(limit, next).await }) else { return Ok(false) };
        told.map_err(|source| DatapathError::kernel("listen for", "changes of devices", source))?;
        while messages.try_recv().is_ok() {}
        Ok(true)
    }
}

/// Of a message about a route: neither one of ours nor a default route, by which ours may go.
fn is_foreign_route(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => {
            let ours = route.header.protocol == RouteProtocol::Other(PROTOCOL);
            !ours && route.header.destination_prefix_length != 0
        }
        _ => false,
    }
}

/// Of a message about a link.
fn link_name(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<&str> {
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)) =
        &message.payload
    else {
        return None;
    };
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::channel::mpsc::unbounded;

    use super::DeviceChanges;
    use crate::netlink::runtime;

    /// S52: who listens hears of it when the socket is gone.
    #[test]
    fn s52_a_closed_socket_is_an_error() {
        let (sender, messages) = unbounded();
        let mut changes = DeviceChanges { runtime: runtime().expect("a runtime"), messages };
        assert!(!changes.wait(Duration::ZERO, |_| false).expect("open"));
        drop(sender);
        assert!(changes.wait(Duration::from_mins(1), |_| false).is_err());
    }
}
