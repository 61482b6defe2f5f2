//! Watches one kind for as long as the agent runs. Spawned once per kind by [`super::start`].
//!
//! Invariant: a relist reaches the snapshot in one piece, so that no object seems to be gone while it is being listed.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt};
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

/// Before a kind is asked for again that the agent may not see: rights change seldom, and every node asks.
const REFUSED_PAUSE: Duration = Duration::from_mins(5);

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
    let mut listing = Listing::default();
    let watching = async {
        // One that was refused would resume where it ended, once it may, and never list what there is.
        while follow::<W>(watcher(api.clone(), config.clone()).default_backoff().boxed(), &mut listing, &sink)
            .await
        {
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
    };
    sink.drain.run_until_cancelled(watching).await.unwrap_or_default();
}

/// Follows one watch until it is refused; `false` if nobody takes updates any more.
async fn follow<W: Watch>(
    mut events: impl Stream<Item = watcher::Result<Event<W::Object>>> + Unpin,
    listing: &mut Listing,
    sink: &Sink,
) -> bool {
    while let Some(event) = events.next().await {
        let refused = event.as_ref().is_err_and(|error| is_refusal(W::KIND, error));
        let update = match event {
            Ok(event) => {
                sink.count::<W>(&event);
                listing.received::<W>(event)
            }
            // That was said.
            Err(_) if refused && listing.refused => None,
            Err(error) => {
                sink.metrics.watch_restarted(W::KIND);
                tracing::warn!(kind = W::KIND.name(), error = %error, "watch interrupted");
                listing.failed(W::KIND, &error)
            }
        };
        if let Some(update) = update
            && sink.updates.send(update).await.is_err()
        {
            return false;
        }
        if refused {
            return true;
        }
    }
    false
}

/// How far the listing of a kind has come.
#[derive(Debug, Default)]
struct Listing {
    relist: Vec<Known>,
    shared: Shared,
    /// A list has reached the snapshot.
    listed: bool,
    /// The agent may not see the objects, or might not when it asked last.
    refused: bool,
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
                (self.listed, self.refused) = (true, false);
                return Some(Update::Listed(W::KIND, std::mem::take(&mut self.relist)));
            }
            Event::Apply(object) => return Some(Update::Changed(W::KIND, self.known::<W>(&object))),
            Event::Delete(object) => return Some(Update::Deleted(W::KIND, name_of(&object))),
        }
        None
    }

    /// An apiserver may lack the kinds that are younger than the others: that is an empty list, unless there was one
    /// before. The right to see a kind that nothing waits for is younger, too, and may be taken away at any time. Of any other
    /// kind such an answer is the error of something in between.
    fn failed(&mut self, kind: Kind, error: &watcher::Error) -> Option<Update> {
        if is_refusal(kind, error) {
            return (!std::mem::replace(&mut self.refused, true)).then_some(Update::Refused(kind));
        }
        let may_lack = matches!(kind, Kind::ServiceCidr | Kind::NetworkPolicy);
        if !(may_lack && matches!(error, watcher::Error::InitialListFailed(_)) && code(error) == Some(404)) {
            return None;
        }
        (!std::mem::replace(&mut self.listed, true)).then(|| Update::Listed(kind, Vec::new()))
    }
}

/// Whether the agent has not got the right to see what it can do without.
fn is_refusal(kind: Kind, error: &watcher::Error) -> bool {
    !kind.is_needed() && code(error) == Some(403)
}

/// With which code of HTTP the apiserver answered a list or a watch.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
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
    use std::sync::{Arc, Mutex};

    use axum::Json;
    use axum::extract::Request;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};
    use kube::runtime::watcher::{Config, Error, Event};
    use kube::{Api, Client};
    use serde_json::{Value, json};
    use tokio::sync::mpsc;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::{Known, Listing, REFUSED_PAUSE, Sink, Watch, known, run};
    use crate::metrics::Metrics;
    use crate::watch::{Kind, Update, network_policy, service_cidr};

    /// Reads an object as the API would give it.
    pub(crate) fn read<W: Watch>(object: serde_json::Value) -> Known {
        known::<W>(&serde_json::from_value(object).expect("an object of the kind"))
    }

    fn status(code: u16) -> Value {
        json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "no", "code": code})
    }

    fn refused(code: u16) -> Error {
        let status = serde_json::from_value(status(code)).expect("a status");
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

    /// An agent with the rights of an earlier version tells it, once; what is needed is asked for again and again.
    #[test]
    fn only_policies_may_be_refused() {
        let mut listing = Listing::default();
        let said = Some(Update::Refused(Kind::NetworkPolicy));
        assert_eq!(listing.failed(Kind::NetworkPolicy, &refused(403)), said);
        assert_eq!(listing.failed(Kind::NetworkPolicy, &refused(403)), None, "said once");
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::NetworkPolicy) {
            assert_eq!(Listing::default().failed(kind, &refused(403)), None, "{kind:?} is needed");
        }
    }

    /// An apiserver that gives these answers, one after the other, and none after them; with what it was asked.
    fn apiserver(answers: Vec<(u16, Value)>) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (answers, log) = (Arc::new(Mutex::new(answers.into_iter())), Arc::clone(&asked));
        let answer = async move |request: Request| -> Response {
            let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            log.lock().unwrap().push(if watches { "watch" } else { "list" }.into());
            let next = answers.lock().unwrap().next();
            match next {
                Some((code, body)) => (StatusCode::from_u16(code).unwrap(), Json(body)).into_response(),
                None => std::future::pending().await,
            }
        };
        (Client::new(axum::Router::new().fallback(answer), "default"), asked)
    }

    /// The right comes and goes while the agent runs: what is known follows it, and nobody is asked without pause.
    #[tokio::test(start_paused = true)]
    async fn policies_are_listed_anew_after_each_refusal() {
        let refusal = || (403, status(403));
        let policy = json!({"metadata": {"namespace": "shop", "name": "deny"}, "spec": {"podSelector": {}}});
        let list = || {
            let list = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicyList",
                "metadata": {"resourceVersion": "7"}, "items": [policy]});
            (200, list)
        };
        let (client, asked) = apiserver(vec![refusal(), refusal(), list(), refusal(), list()]);
        let (sender, mut updates) = mpsc::channel(10);
        let sink = Sink::new(sender, Arc::new(Metrics::new()), CancellationToken::new());
        let started = Instant::now();
        let watch = tokio::spawn(run::<network_policy::Watched>(Api::all(client), Config::default(), sink));
        for names in [None, Some("deny"), None, Some("deny")] {
            let update = tokio::time::timeout(10 * REFUSED_PAUSE, updates.recv()).await;
            let update = update.expect("in time").expect("an update");
            let expected = match (&update, names) {
                (Update::Refused(Kind::NetworkPolicy), None) => true,
                (Update::Listed(Kind::NetworkPolicy, known), Some(name)) => {
                    known.iter().map(|known| &*known.name.name).eq([name])
                }
                _ => false,
            };
            assert!(expected, "{update:?}");
        }
        assert!(started.elapsed() >= 3 * REFUSED_PAUSE, "a pause after each refusal");
        watch.abort();
        assert_eq!(asked.lock().unwrap()[..5], ["list", "list", "list", "watch", "list"]);
    }
}
