//! Endpoints that nobody is going to DEL: their device and their namespace have been gone for long.
//!
//! A runtime that lost its state, or a reboot that it did not see through, leaves them in the journal with their
//! addresses. A task of the agent gives them back. Invariant: while either the device or the namespace file is there,
//! the endpoint is the runtime's to end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quilla_cni_protocol::Attachment;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::cni::{AttachedEndpoint, Attacher, Releaser};
use crate::metrics::Metrics;
use crate::reconcile::View;

/// How long an endpoint must have been without its device.
const PATIENCE: Duration = Duration::from_mins(10);
/// Between two looks.
const INTERVAL: Duration = Duration::from_mins(1);
/// More endpoints than these are not released in one look: each takes a round of the reconciler.
const AT_ONCE: usize = 16;

/// Releases abandoned endpoints until `drain`.
pub async fn release<A: Attacher>(
    releaser: Releaser<A>,
    view: watch::Receiver<Arc<View>>,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
) {
    let mut absences = Absences::default();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while drain.run_until_cancelled(ticks.tick()).await.is_some() {
        let view = view.borrow().clone();
        for endpoint in absences.abandoned(&view.absent, Instant::now(), is_gone) {
            let (pod, device) = (&endpoint.pod_name, &endpoint.host_ifname);
            match releaser.release(endpoint).await {
                Ok(()) => {
                    metrics.abandoned_released();
                    tracing::warn!(pod, device, "endpoint without device and namespace released");
                }
                Err(error) => tracing::warn!(pod, device, error = %error, "release abandoned endpoint"),
            }
        }
    }
}

/// Not: cannot be looked at.
fn is_gone(netns: &Path) -> bool {
    matches!(netns.try_exists(), Ok(false))
}

/// Since when endpoints have been without their device.
#[derive(Debug, Default)]
struct Absences {
    since: BTreeMap<Attachment, Instant>,
}

impl Absences {
    /// Of those that are absent now, some that have been for long enough and whose namespace is gone too.
    fn abandoned<'a>(
        &mut self,
        absent: &'a [AttachedEndpoint],
        now: Instant,
        gone: impl Fn(&Path) -> bool,
    ) -> Vec<&'a AttachedEndpoint> {
        let known = std::mem::take(&mut self.since);
        let since = |endpoint: &AttachedEndpoint| {
            let attachment = endpoint.attachment();
            let since = known.get(&attachment).copied().unwrap_or(now);
            (attachment, since)
        };
        self.since = absent.iter().map(since).collect();
        let long = |endpoint: &AttachedEndpoint| now - self.since[&endpoint.attachment()] >= PATIENCE;
        absent.iter().filter(|endpoint| long(endpoint) && gone(&endpoint.netns)).take(AT_ONCE).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use super::{AT_ONCE, Absences, PATIENCE, is_gone};
    use crate::cni::{AttachedEndpoint, Origin};

    fn endpoint(id: usize) -> AttachedEndpoint {
        AttachedEndpoint {
            container_id: format!("c{id}"),
            ifname: "eth0".into(),
            network: "n".into(),
            netns: format!("/nowhere/{id}").into(),
            pod_namespace: "test".into(),
            pod_name: format!("pod-{id}"),
            pod_uid: None,
            host_ifname: format!("qll{id}"),
            host_ifindex: 7,
            netns_cookie: 1,
            host_mac: [4; 6],
            pod_mac: [2; 6],
            ipv4: None,
            ipv6: None,
            host_ports: Vec::new(),
            origin: Origin::Own,
        }
    }

    /// CNI-30: addresses come back from Pods that nobody ends, but never early.
    #[test]
    fn an_endpoint_is_abandoned_when_device_and_namespace_have_been_gone_for_long() {
        let (start, mut absences) = (Instant::now(), Absences::default());
        let both = [endpoint(1), endpoint(2)];
        assert!(absences.abandoned(&both, start, is_gone).is_empty(), "it may still come");
        let almost = start + PATIENCE / 2;
        assert!(absences.abandoned(&both[..1], almost, is_gone).is_empty());
        let later = start + PATIENCE;
        assert!(absences.abandoned(&both, later, |_| false).is_empty(), "its namespace is there");
        assert_eq!(absences.abandoned(&both, later, is_gone), [&both[0]]);
        assert!(
            absences.abandoned(&both[1..], later + PATIENCE / 2, is_gone).is_empty(),
            "it was there in between, so its time began anew"
        );
        assert_eq!(absences.abandoned(&both[1..], later + PATIENCE, is_gone), [&both[1]]);
    }

    #[test]
    fn many_are_released_little_by_little() {
        let (start, mut absences) = (Instant::now(), Absences::default());
        let many: Vec<_> = (0..3 * AT_ONCE).map(endpoint).collect();
        absences.abandoned(&many, start, is_gone);
        assert_eq!(absences.abandoned(&many, start + PATIENCE, is_gone).len(), AT_ONCE);
    }

    #[test]
    fn what_is_there_is_not_gone() {
        assert!(!is_gone(Path::new("/proc/self/ns/net")) && is_gone(Path::new("/nowhere")));
    }
}
