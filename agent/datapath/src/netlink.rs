//! Netlink, blocking: devices, their addresses, routes, rules, and sockets.
//!
//! A [`Netlink`] belongs to the network namespace of the thread that opened it, whichever thread uses it later. It has
//! a small runtime of its own, so it must not be used from within an asynchronous task.

mod device;
mod filter;
mod mtu;
mod overlay;
mod route;
mod rule;
mod sockets;
mod surroundings;
mod watch;

use std::io;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{Stream, TryStreamExt};
use netlink_packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};
use tokio::runtime::{Builder, Runtime};

pub use device::Device;
pub(crate) use filter::{Filter, Side};
pub use filter::{FilterChanges, Touched};
pub use mtu::Pair;
pub use overlay::Overlay;
pub use route::{PROTOCOL, PodRoute, Refused, RouteChanges};
pub use rule::RuleChanges;
pub use sockets::{ConnectedSocket, Destroyed, Sockets};
pub use surroundings::Surroundings;
pub use watch::DeviceChanges;

use crate::error::{DatapathError, Result};

/// A netlink socket.
pub struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Netlink {
    /// Opens one in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let runtime = runtime()?;
        let (connection, handle) = {
            let _inside = runtime.enter();
            let (connection, handle, _messages) = rtnetlink::new_connection()
                .map_err(|source| DatapathError::kernel("open", "a netlink socket", source))?;
            (connection, handle)
        };
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// Sends a request that is answered by success or failure.
    fn request(
        &self,
        operation: &'static str,
        object: &str,
        request: impl Future<Output = Result<(), rtnetlink::Error>>,
    ) -> Result<()> {
        self.runtime.block_on(request).map_err(|source| DatapathError::netlink(operation, object, source))
    }

    /// Sends a request that is answered by a list.
    fn list<T>(
        &self,
        operation: &'static str,
        object: &str,
        answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
    ) -> Result<Vec<T>> {
        self.runtime
            .block_on(answers.try_collect())
            .map_err(|source| DatapathError::netlink(operation, object, source))
    }
}

/// A runtime for one socket, driven by whoever waits for an answer.
fn runtime() -> Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(|source| DatapathError::kernel("start", "a netlink runtime", source))
}

/// What the kernel tells without being asked.
type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Listens to groups in the calling thread's namespace.
fn listen(groups: &[MulticastGroup], to: &'static str) -> Result<(Runtime, Messages)> {
    let runtime = runtime()?;
    let (connection, messages) = {
        let _inside = runtime.enter();
        let (connection, _handle, messages) = rtnetlink::new_multicast_connection(groups)
            .map_err(|source| DatapathError::kernel("listen for", to, source))?;
        (connection, messages)
    };
    runtime.spawn(connection);
    Ok((runtime, messages))
}

/// Whether the kernel's answer was `errno`.
fn is(error: &DatapathError, errno: i32) -> bool {
    answer(error).is_some_and(|answer| answer.raw_os_error() == Some(errno))
}

/// The kernel's answer to a request, if that is what the error is.
fn answer(error: &DatapathError) -> Option<io::Error> {
    let DatapathError::Netlink { source, .. } = error else { return None };
    match source.as_ref() {
        rtnetlink::Error::NetlinkError(answer) => Some(answer.clone().into()),
        _ => None,
    }
}
