//! Endpoints that nobody is going to DEL: their device and their namespace have been gone for long.
//!
//! A runtime that lost its state, or a reboot that it did not see through, leaves them in the journal with their
//! addresses. A task of the agent gives them back; sooner, when the apiserver knows no such Pod on this node. Invariant: while either the device or the namespace file is there,
//! the endpoint is the runtime's to end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quilla_cni_protocol::Attachment;
use quilla_model::ObjectName;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::cni::{AttachedEndpoint, Attacher, Releaser};
use crate::metrics::Metrics;
use crate::reconcile::View;
use crate::snapshot::Published;

/// How long an endpoint of a Pod that may still be there must have been without its device.
const PATIENCE: Duration = Duration::from_mins(10);
/// Between two looks.
const INTERVAL: Duration = Duration::from_mins(1);
/// More endpoints than these are not released in one look: each takes a round of the reconciler.
const AT_ONCE: usize = 16;

/// Releases abandoned endpoints until `drain`.
pub async fn release<A: Attacher>(
    releaser: Releaser<A>,
    view: watch::Receiver<Arc<View>>,
    published: watch::Receiver<Option<Published>>,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
) {
    let mut absences = Absences::default();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while drain.run_until_cancelled(ticks.tick()).await.is_some() {
        let view = view.borrow().clone();
        let cluster = published.borrow().clone();
        let patience = |endpoint: &AttachedEndpoint| patience(endpoint, cluster.as_ref());
        for endpoint in absences.abandoned(&view.absent, Instant::now(), patience, is_gone) {
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

/// An apiserver that has not answered in this run says nothing, nor does it of a Pod that the runtime did not name.
fn patience(endpoint: &AttachedEndpoint, cluster: Option<&Published>) -> Duration {
    let name = ObjectName::new(&endpoint.pod_namespace, &endpoint.pod_name);
    let Some(cluster) = cluster.filter(|_| !endpoint.pod_name.is_empty()) else { return PATIENCE };
    let pod = cluster.snapshot.pods.get(&name);
    let same = |uid: &String| endpoint.pod_uid.as_ref().is_none_or(|own| own == uid);
    if pod.is_some_and(|pod| same(&pod.uid)) { PATIENCE } else { Duration::ZERO }
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
        patience: impl Fn(&AttachedEndpoint) -> Duration,
        gone: impl Fn(&Path) -> bool,
    ) -> Vec<&'a AttachedEndpoint> {
        let known = std::mem::take(&mut self.since);
        let since = |endpoint: &AttachedEndpoint| {
            let attachment = endpoint.attachment();
            let since = known.get(&attachment).copied().unwrap_or(now);
            (attachment, since)
        };
        self.since = absent.iter().map(since).collect();
        let long =
            |endpoint: &AttachedEndpoint| now - self.since[&endpoint.attachment()] >= patience(endpoint);
        absent.iter().filter(|endpoint| long(endpoint) && gone(&endpoint.netns)).take(AT_ONCE).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use quilla_model::{ObjectName, Pod, Snapshot};

    use super::{AT_ONCE, Absences, PATIENCE, Published, is_gone, patience};
    use crate::cni::AttachedEndpoint;

    /// CNI-30: addresses come back from Pods that nobody ends, but never early.
    #[test]
    fn an_endpoint_is_abandoned_when_device_and_namespace_have_been_gone_for_long() {
        let (start, mut absences) = (Instant::now(), Absences::default());
        let both = [AttachedEndpoint::numbered(1), AttachedEndpoint::numbered(2)];
        assert!(absences.abandoned(&both, start, |_| PATIENCE, is_gone).is_empty(), "it may still come");
        let almost = start + PATIENCE / 2;
        assert!(absences.abandoned(&both[..1], almost, |_| PATIENCE, is_gone).is_empty());
        let later = start + PATIENCE;
        assert!(
            absences.abandoned(&both, later, |_| PATIENCE, |_| false).is_empty(),
            "its namespace is there"
        );
        assert_eq!(absences.abandoned(&both, later, |_| PATIENCE, is_gone), [&both[0]]);
        assert!(
            absences.abandoned(&both[1..], later + PATIENCE / 2, |_| PATIENCE, is_gone).is_empty(),
            "it was there in between, so its time began anew"
        );
        assert_eq!(absences.abandoned(&both[1..], later + PATIENCE, |_| PATIENCE, is_gone), [&both[1]]);
    }

    #[test]
    fn many_are_released_little_by_little() {
        let (start, mut absences) = (Instant::now(), Absences::default());
        let many: Vec<_> = (1..).take(3 * AT_ONCE).map(AttachedEndpoint::numbered).collect();
        absences.abandoned(&many, start, |_| PATIENCE, is_gone);
        assert_eq!(absences.abandoned(&many, start + PATIENCE, |_| PATIENCE, is_gone).len(), AT_ONCE);
    }

    /// CNI-30: a Pod that the apiserver does not know on this node, or knows as another one, need not be waited for.
    #[test]
    fn the_apiserver_says_which_pods_are_gone() {
        let one = AttachedEndpoint { pod_uid: Some("1".into()), ..AttachedEndpoint::numbered(1) };
        let name = ObjectName::new("test", "pod-1");
        let knows = |uid: &str| {
            let mut snapshot = Snapshot::default();
            let pod = Pod {
                name: name.clone(),
                uid: uid.into(),
                addresses: vec![],
                host_network: false,
                finished: false,
                wished_addresses: None,
            };
            snapshot.pods.insert(name.clone(), Arc::new(pod));
            Published { snapshot: Arc::new(snapshot), ..Published::default() }
        };
        let empty = Published::default();
        assert_eq!(patience(&one, None), PATIENCE, "nobody knows");
        assert_eq!(patience(&one, Some(&knows("1"))), PATIENCE, "it is there");
        assert_eq!(patience(&one, Some(&knows("2"))), Duration::ZERO, "another of that name is there");
        assert_eq!(patience(&one, Some(&empty)), Duration::ZERO, "it is not there");
        let nameless = AttachedEndpoint { pod_name: String::new(), ..one };
        assert_eq!(patience(&nameless, Some(&empty)), PATIENCE, "it is no Pod of a cluster");
    }

    #[test]
    fn what_is_there_is_not_gone() {
        assert!(!is_gone(Path::new("/proc/self/ns/net")) && is_gone(Path::new("/nowhere")));
    }
}
