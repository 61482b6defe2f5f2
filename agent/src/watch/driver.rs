//! Watches one kind for as long as the agent runs. Spawned once per kind by [`super::start`].
//!
//! Invariant: a relist reaches the snapshot in one piece, so that no object seems to be gone while it is being listed.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use quilla_model::{ObjectName, ObjectRef, Problem, Reason};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::pool::Shared;
use super::{Kind, Known, Update, Value};
use crate::metrics::Metrics;

/// How objects of a kind are read.
pub(super) trait Watch: Send + 'static {
    /// The object in the API.
    type Object: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static;
    /// Which kind it is.
    const KIND: Kind;

    /// What the object means to this node; `None` if it is none of ours.
    fn read(object: &Self::Object, notes: &mut Notes) -> Option<Value>;

    /// Lets a value use what others have already, so that it is kept once.
    fn share(_value: &mut Value, _shared: &mut Shared) {}

    /// When that happened which changed the object, if it says so (S53).
    fn trigger(_object: &Self::Object) -> Option<SystemTime> {
        None
    }
}

/// Collects what is wrong with one object.
#[derive(Debug)]
pub(super) struct Notes {
    object: ObjectRef,
    problems: Vec<Problem>,
}

impl Notes {
    pub(super) fn new(kind: Kind, name: &ObjectName) -> Self {
        Self { object: ObjectRef::new(kind.name(), name), problems: Vec::new() }
    }

    pub(super) fn add(&mut self, reason: Reason, detail: impl Into<String>) {
        self.problems.push(Problem::new(self.object.clone(), reason, detail));
    }

    /// The value, or a note that the text is malformed.
    pub(super) fn parsed<T>(&mut self, field: &str, text: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.add(Reason::Malformed, format!("{field} {text:?}"));
        }
        value
    }

    /// The value of an annotation, or a note of what is allowed and what counts instead.
    pub(super) fn annotation<T>(
        &mut self,
        key: &str,
        text: &str,
        value: Option<T>,
        allowed: &str,
    ) -> Option<T> {
        if value.is_none() {
            self.add(Reason::Malformed, format!("{key} {text:?}: {allowed}"));
        }
        value
    }
}

/// Where updates go.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    updates: mpsc::Sender<Update>,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
}

impl Sink {
    pub(super) fn new(
        updates: mpsc::Sender<Update>,
        metrics: Arc<Metrics>,
        drain: CancellationToken,
    ) -> Self {
        Self { updates, metrics, drain }
    }

    /// Counts a change; objects that are only being listed anew are none.
    fn count<W: Watch>(&self, event: &Event<W::Object>) {
        match event {
            Event::Apply(object) => self.metrics.changed(W::KIND, W::trigger(object)),
            Event::Delete(_) | Event::InitDone => self.metrics.changed(W::KIND, None),
            Event::Init | Event::InitApply(_) => {}
        }
    }
}

/// Watches until the agent drains. Errors are counted, logged and tried again with growing pauses.
pub(super) async fn run<W: Watch>(api: Api<W::Object>, config: watcher::Config, sink: Sink) {
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut listing = Listing::default();
    loop {
        let Some(Some(event)) = sink.drain.run_until_cancelled(events.next()).await else { return };
        let update = match event {
            Ok(event) => {
                sink.count::<W>(&event);
                listing.received::<W>(event)
            }
            Err(error) => {
                sink.metrics.watch_restarted(W::KIND);
                tracing::warn!(kind = W::KIND.name(), error = %error, "watch interrupted");
                listing.failed(W::KIND, &error)
            }
        };
        if let Some(update) = update
            && sink.updates.send(update).await.is_err()
        {
            return;
        }
    }
}

/// How far the listing of a kind has come.
#[derive(Debug, Default)]
struct Listing {
    relist: Vec<Known>,
    shared: Shared,
    /// A list has reached the snapshot.
    listed: bool,
}

impl Listing {
    fn known<W: Watch>(&mut self, object: &W::Object) -> Known {
        let mut known = known::<W>(object);
        known.value.iter_mut().for_each(|value| W::share(value, &mut self.shared));
        known
    }

    fn received<W: Watch>(&mut self, event: Event<W::Object>) -> Option<Update> {
        match event {
            Event::Init => self.relist.clear(),
            Event::InitApply(object) => {
                let known = self.known::<W>(&object);
                self.relist.push(known);
            }
            Event::InitDone => {
                self.listed = true;
                return Some(Update::Listed(W::KIND, std::mem::take(&mut self.relist)));
            }
            Event::Apply(object) => return Some(Update::Changed(W::KIND, self.known::<W>(&object))),
            Event::Delete(object) => return Some(Update::Deleted(W::KIND, name_of(&object))),
        }
        None
    }

    /// An apiserver may lack the one kind that is younger than the others: it is an empty list, so that nothing waits
    /// for it. Nor does anything wait for policies, which decide nothing here, and the right to see them is younger than the
    /// others. Of any other kind, or of one that was there before, such an answer is the error of something in between.
    fn failed(&mut self, kind: Kind, error: &watcher::Error) -> Option<Update> {
        let watcher::Error::InitialListFailed(kube::Error::Api(status)) = error else { return None };
        let known = match (kind, status.code) {
            (Kind::ServiceCidr | Kind::NetworkPolicy, 404) => Vec::new(),
            (Kind::NetworkPolicy, 403) => {
                vec![Known { name: ObjectName::new("", ""), value: None, problems: vec![unlisted()] }]
            }
            _ => return None,
        };
        (!std::mem::replace(&mut self.listed, true)).then_some(Update::Listed(kind, known))
    }
}

/// What an operator should know where the agent has not the right to see policies.
pub(super) fn unlisted() -> Problem {
    let detail =
        "NetworkPolicies may not be listed, see deploy/rbac.yaml: those that there are restrict no traffic";
    Problem::new(ObjectRef::cluster("Agent", "rights"), Reason::Missing, detail)
}

fn known<W: Watch>(object: &W::Object) -> Known {
    let name = name_of(object);
    let mut notes = Notes::new(W::KIND, &name);
    let value = W::read(object, &mut notes);
    Known { name, value, problems: notes.problems }
}

/// The name of an object, with an empty namespace for cluster-wide kinds.
pub(super) fn name_of<K: Resource>(object: &K) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
pub(super) mod tests {
    use kube::runtime::watcher::{Error, Event};

    use super::{Known, Listing, Watch, known, unlisted};
    use crate::watch::{Kind, Update, service_cidr, unenforced};

    /// Reads an object as the API would give it.
    pub(crate) fn read<W: Watch>(object: serde_json::Value) -> Known {
        known::<W>(&serde_json::from_value(object).expect("an object of the kind"))
    }

    fn refused(code: u16) -> Error {
        let status = serde_json::json!({"status": "Failure", "message": "no", "reason": "no", "code": code});
        let status = serde_json::from_value(status).expect("a status");
        Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    }

    /// One wrong answer of a proxy must not look like a cluster in which everything was deleted.
    #[test]
    fn a_404_is_an_empty_list_only_of_a_kind_that_may_be_lacking_and_was_never_listed() {
        for kind in Kind::ALL {
            let answer = Listing::default().failed(kind, &refused(404));
            let lacking = matches!(kind, Kind::ServiceCidr | Kind::NetworkPolicy);
            assert_eq!(answer, lacking.then(|| Update::Listed(kind, vec![])), "{kind:?}");
            assert_eq!(Listing::default().failed(kind, &refused(503)), None, "{kind:?}");
        }
        let mut listing = Listing::default();
        assert!(listing.received::<service_cidr::Watched>(Event::InitDone).is_some());
        assert_eq!(listing.failed(Kind::ServiceCidr, &refused(404)), None, "on a relist");
    }

    /// An agent with the rights of an earlier version serves as before, and tells what it cannot see.
    #[test]
    fn policies_that_may_not_be_seen_are_a_problem_and_stop_nothing() {
        let mut listing = Listing::default();
        let answer = listing.failed(Kind::NetworkPolicy, &refused(403));
        let Some(Update::Listed(Kind::NetworkPolicy, known)) = answer else { panic!("{answer:?}") };
        let problems: Vec<_> = known.into_iter().flat_map(|known| known.problems).collect();
        assert_eq!((unenforced(&problems), problems), (None, vec![unlisted()]));
        assert_eq!(listing.failed(Kind::NetworkPolicy, &refused(403)), None, "said once");
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::NetworkPolicy) {
            assert_eq!(Listing::default().failed(kind, &refused(403)), None, "{kind:?} is needed");
        }
    }
}
