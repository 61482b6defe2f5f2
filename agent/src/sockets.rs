//! Ends the node's own sockets that talk to a backend which no longer exists (S45, S48, E18).
//!
//! Such a socket was led to its backend by the socket programs, so its packets never meet the Service again: nothing
//! but an error makes its owner connect anew. Told by the reconciler which backends ended, after the maps forgot them.
//! Invariant: a socket that was not led there by a Service is nobody's business.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quilla_abi::Be16;
use quilla_abi::backend::Backend;
use quilla_abi::socket::SocketKey;
use quilla_datapath::{ConnectedSocket, Datapath, DatapathError, Destroyed, Maps, Sockets};
use quilla_plan::{BackendKey, FamilyStep, Step};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// After which the sockets of a backend that ended are looked for again.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// Protocols whose sockets are led to backends.
const PROTOCOLS: [u8; 2] = [6, 17];

/// Whether the kernel can end sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Support {
    /// Not tried yet.
    #[default]
    Unknown,
    /// It can.
    Yes,
    /// It was built without `CONFIG_INET_DIAG_DESTROY`, or refuses.
    No,
}

/// Where the reconciler says which backends ended.
pub type Ended = mpsc::UnboundedSender<Vec<BackendKey>>;

/// The backends that a list of steps takes out of the maps.
pub fn ended(steps: &[Step]) -> Vec<BackendKey> {
    let mut gone = Vec::new();
    for step in steps {
        match step {
            Step::V4(FamilyStep::RemoveBackendIds(rows)) => {
                gone.extend(rows.iter().map(|row| key(row.addr.into(), row.port, row.proto)));
            }
            Step::V6(FamilyStep::RemoveBackendIds(rows)) => {
                gone.extend(rows.iter().map(|row| key(row.addr.into(), row.port, row.proto)));
            }
            _ => {}
        }
    }
    gone
}

fn key(address: IpAddr, port: Be16, protocol: u8) -> BackendKey {
    BackendKey { address, port: port.get(), protocol }
}

/// Ends sockets until `drain`; says first whether it can at all.
pub async fn end(
    mut ended: mpsc::UnboundedReceiver<Vec<BackendKey>>,
    datapath: Arc<Datapath>,
    support: watch::Sender<Support>,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
) {
    let able = tokio::task::spawn_blocking(|| Sockets::open()?.can_destroy()).await;
    let able = match able {
        Ok(Ok(able)) => able,
        Ok(Err(error)) => {
            tracing::warn!(error = %error, "try to end a socket");
            false
        }
        Err(error) => {
            tracing::error!(error = %error, "try to end a socket");
            false
        }
    };
    if !able {
        tracing::warn!("the kernel cannot end sockets: those of the node may keep a deleted backend");
    }
    support.send_replace(if able { Support::Yes } else { Support::No });
    let mut seen = Vec::new();
    while let Some(Some((new, last))) = drain.run_until_cancelled(next(&mut ended, &mut seen)).await {
        if able {
            let gone: Vec<_> = new.iter().copied().chain(last).collect();
            seen = new;
            let (datapath, metrics) = (Arc::clone(&datapath), Arc::clone(&metrics));
            let work = tokio::task::spawn_blocking(move || end_now(&datapath, &gone, &metrics));
            match work.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = %error, "end sockets of deleted backends"),
                Err(error) => tracing::error!(error = %error, "end sockets of deleted backends"),
            }
        }
    }
    drain.cancelled().await;
}

/// The backends that ended since, and those that are due for a second look: a socket that was just being led to its
/// backend may have been in no list yet. `None` when there will be no more.
async fn next(
    ended: &mut mpsc::UnboundedReceiver<Vec<BackendKey>>,
    seen: &mut Vec<BackendKey>,
) -> Option<(Vec<BackendKey>, Vec<BackendKey>)> {
    let news = ended.recv();
    let mut new = if seen.is_empty() {
        news.await?
    } else {
        match tokio::time::timeout(SECOND_LOOK, news).await {
            Ok(news) => news?,
            Err(_) => Vec::new(),
        }
    };
    // What came meanwhile costs no listing of its own.
    while let Ok(more) = ended.try_recv() {
        new.extend(more);
    }
    Some((new, std::mem::take(seen)))
}

fn end_now(datapath: &Datapath, gone: &[BackendKey], metrics: &Metrics) -> Result<(), DatapathError> {
    let mut peers = BTreeMap::<u8, BTreeSet<SocketAddr>>::new();
    for backend in gone.iter().filter(|backend| !exists(datapath.maps(), backend)) {
        peers.entry(backend.protocol).or_default().insert(SocketAddr::new(backend.address, backend.port));
    }
    for (protocol, peers) in peers.into_iter().filter(|(protocol, _)| PROTOCOLS.contains(protocol)) {
        let was_led = |socket: &ConnectedSocket| was_led(datapath.maps(), socket);
        let Destroyed { ended, errors } = Sockets::open()?.destroy(protocol, &peers, was_led);
        metrics.sockets_destroyed(ended);
        if ended > 0 {
            tracing::info!(ended, protocol, "sockets of deleted backends ended");
        }
        if let Some(first) = errors.first() {
            tracing::warn!(error = %first, failed = errors.len(), protocol, "end sockets of deleted backends");
        }
    }
    Ok(())
}

/// Whether a backend is there again. One that cannot be looked up is left alone.
fn exists(maps: &Maps, backend: &BackendKey) -> bool {
    let (port, proto, pad) = (Be16::new(backend.port), backend.protocol, 0);
    let found = match backend.address {
        IpAddr::V4(v4) => maps.backend_ids_v4.get(&Backend { addr: v4.octets(), port, proto, pad }),
        IpAddr::V6(v6) => maps.backend_ids_v6.get(&Backend { addr: v6.octets(), port, proto, pad }),
    };
    found.map_or(true, |id| id.is_some())
}

/// Whether a Service led the socket to its peer. One that cannot be looked up is left alone.
fn was_led(maps: &Maps, socket: &ConnectedSocket) -> bool {
    let ConnectedSocket { cookie, protocol, peer, .. } = socket;
    let (cookie, proto, port) = (*cookie, *protocol, Be16::new(peer.port()));
    let found = match peer.ip() {
        IpAddr::V4(v4) => {
            let key = SocketKey { cookie, addr: v4.octets(), port, proto, pad: 0 };
            maps.sockets_v4.get(&key).map(|row| row.is_some())
        }
        IpAddr::V6(v6) => {
            let key = SocketKey { cookie, addr: v6.octets(), port, proto, pad: 0 };
            maps.sockets_v6.get(&key).map(|row| row.is_some())
        }
    };
    found.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use quilla_abi::Be16;
    use quilla_abi::backend::Backend;
    use quilla_plan::{BackendKey, FamilyStep, Step};

    use super::ended;

    #[test]
    fn s48_backends_that_leave_the_maps_have_ended() {
        let row = Backend { addr: [10, 0, 0, 1], port: Be16::new(53), proto: 17, ..Backend::default() };
        let steps = [
            Step::V4(FamilyStep::SetBackendIds(vec![(row, 1)])),
            Step::V4(FamilyStep::RemoveBackendIds(vec![row])),
        ];
        let gone = BackendKey { address: [10, 0, 0, 1].into(), port: 53, protocol: 17 };
        assert_eq!(ended(&steps), [gone]);
        assert_eq!(ended(&steps[..1]), []);
    }
}
