//! The single owner of what the watches know: takes their updates, publishes snapshots.
//!
//! Invariant: nothing is published before every kind that is needed was listed once, so that a start never looks like a cluster in
//! which everything was deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quilla_model::{ObjectName, Problem, Snapshot};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::watch::{Kind, Known, Update, Value, unlisted};

/// Network policies, and what is to be said of each.
pub type Policies = BTreeMap<ObjectName, Vec<Problem>>;

/// Between two snapshots at least: the first change is published at once, those that follow it together.
const COALESCE: Duration = Duration::from_millis(20);

/// A snapshot, and what was skipped on the way to it.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// The cluster's intent.
    pub snapshot: Arc<Snapshot>,
    /// What could not be read.
    pub problems: Arc<Vec<Problem>>,
    /// What is not enforced, apart because there may be many; `None` while nobody knows which there are.
    pub policies: Option<Arc<Policies>>,
}

/// Takes updates until `drain`; publishes when all kinds that are needed are known, and after every change.
pub async fn own(
    mut updates: mpsc::Receiver<Update>,
    published: watch::Sender<Option<Published>>,
    drain: CancellationToken,
) {
    let mut state = State::default();
    let mut next = Instant::now();
    while let Some(Some(update)) = drain.run_until_cancelled(updates.recv()).await {
        state.take(update);
        // A timer that is due already may still wait for the next tick.
        if Instant::now() < next {
            collect(&mut state, &mut updates, next).await;
        }
        // What came at the same time: a Service and its slices, often.
        for _ in 0..updates.len() {
            updates.try_recv().into_iter().for_each(|update| state.take(update));
        }
        if let Some(snapshot) = state.publish() {
            published.send_replace(Some(snapshot));
            next = Instant::now() + COALESCE;
        }
    }
}

async fn collect(state: &mut State, updates: &mut mpsc::Receiver<Update>, until: Instant) {
    let deadline = tokio::time::sleep_until(until);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            biased;
            () = &mut deadline => return,
            more = updates.recv() => match more {
                Some(update) => state.take(update),
                None => return,
            },
        }
    }
}

/// Everything the watches said so far.
#[derive(Debug, Default)]
struct State {
    snapshot: Snapshot,
    /// Slices are stored under their Service, and a slice may change its Service.
    service_of: BTreeMap<ObjectName, ObjectName>,
    problems: BTreeMap<(Kind, ObjectName), Vec<Problem>>,
    policies: Arc<Policies>,
    listed: BTreeSet<Kind>,
    /// Something came that was not published yet.
    changed: bool,
}

impl State {
    fn take(&mut self, update: Update) {
        // Who writes to a policy changes nothing here, and each round of the reconciler costs.
        if let Update::Changed(Kind::NetworkPolicy, Known { name, problems, .. }) = &update
            && self.policies.get(name) == Some(problems)
        {
            return;
        }
        self.changed = true;
        match update {
            Update::Listed(kind, objects) => {
                self.clear(kind);
                for object in objects {
                    self.put(kind, object);
                }
                self.listed.insert(kind);
            }
            Update::Changed(kind, object) => {
                self.remove(kind, &object.name);
                self.put(kind, object);
            }
            Update::Deleted(kind, name) => self.remove(kind, &name),
            Update::Refused(kind) => {
                self.clear(kind);
                self.listed.remove(&kind);
                self.problems.insert((kind, ObjectName::new("", "")), vec![unlisted()]);
            }
        }
    }

    fn publish(&mut self) -> Option<Published> {
        let complete = Kind::ALL.iter().all(|kind| !kind.is_needed() || self.listed.contains(kind));
        if !complete || !std::mem::take(&mut self.changed) {
            return None;
        }
        let policies = self.listed.contains(&Kind::NetworkPolicy).then(|| Arc::clone(&self.policies));
        Some(Published {
            snapshot: Arc::new(self.snapshot.clone()),
            problems: Arc::new(self.problems.values().flatten().cloned().collect()),
            policies,
        })
    }

    fn put(&mut self, kind: Kind, Known { name, value, problems }: Known) {
        if kind == Kind::NetworkPolicy {
            Arc::make_mut(&mut self.policies).insert(name.clone(), problems);
        } else if !problems.is_empty() {
            self.problems.insert((kind, name.clone()), problems);
        }
        let snapshot = &mut self.snapshot;
        match value {
            None => {}
            // The text of the name is in the object already.
            Some(Value::Service(service)) => drop(snapshot.services.insert(service.name.clone(), service)),
            Some(Value::EndpointSlice(slice)) => {
                self.service_of.insert(slice.name.clone(), slice.service.clone());
                let slices = snapshot.slices.or_default(slice.service.clone());
                slices.insert(Arc::clone(&slice.name.name), slice);
            }
            Some(Value::Node(node)) => drop(snapshot.nodes.insert(name.name.to_string(), node)),
            Some(Value::Pod(pod)) => drop(snapshot.pods.insert(name, pod)),
            Some(Value::Namespace(namespace)) => {
                drop(snapshot.namespaces.insert(name.name.to_string(), namespace));
            }
            Some(Value::ServiceCidr(cidrs)) => {
                drop(snapshot.service_cidrs.insert(name.name.to_string(), cidrs));
            }
        }
    }

    fn remove(&mut self, kind: Kind, name: &ObjectName) {
        self.problems.remove(&(kind, name.clone()));
        match kind {
            Kind::Service => drop(self.snapshot.services.remove(name)),
            Kind::EndpointSlice => self.remove_slice(name),
            Kind::Node => drop(self.snapshot.nodes.remove(&*name.name)),
            Kind::Pod => drop(self.snapshot.pods.remove(name)),
            Kind::Namespace => drop(self.snapshot.namespaces.remove(&*name.name)),
            Kind::ServiceCidr => drop(self.snapshot.service_cidrs.remove(&*name.name)),
            Kind::NetworkPolicy => drop(Arc::make_mut(&mut self.policies).remove(name)),
        }
    }

    fn remove_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.service_of.remove(name) else { return };
        if let Some(slices) = self.snapshot.slices.get_mut(&service) {
            slices.remove(&name.name);
            if slices.is_empty() {
                self.snapshot.slices.remove(&service);
            }
        }
    }

    fn clear(&mut self, kind: Kind) {
        self.problems.retain(|(of, _), _| *of != kind);
        match kind {
            Kind::Service => self.snapshot.services.clear(),
            Kind::EndpointSlice => {
                self.snapshot.slices.clear();
                self.service_of.clear();
            }
            Kind::Node => self.snapshot.nodes.clear(),
            Kind::Pod => self.snapshot.pods.clear(),
            Kind::Namespace => self.snapshot.namespaces.clear(),
            Kind::ServiceCidr => self.snapshot.service_cidrs.clear(),
            Kind::NetworkPolicy => self.policies = Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use quilla_model::{EndpointSlice, Family, Namespace, ObjectName, ObjectRef, Problem, Reason};
    use tokio::sync::{mpsc, watch};
    use tokio_util::sync::CancellationToken;

    use super::{State, own};
    use crate::watch::{Kind, Known, Update, Value, unlisted};

    fn namespace(name: &str) -> Known {
        let value = Arc::new(Namespace { name: name.into(), labels: [].into() });
        Known { name: ObjectName::new("", name), value: Some(Value::Namespace(value)), problems: vec![] }
    }

    fn slice(name: &str, service: &str) -> Known {
        let name = ObjectName::new("shop", name);
        let service = ObjectName::new("shop", service);
        let slice = EndpointSlice {
            name: name.clone(),
            service,
            family: Family::V4,
            ports: vec![],
            endpoints: vec![],
            weight: 1,
        };
        Known { name, value: Some(Value::EndpointSlice(Arc::new(slice))), problems: vec![] }
    }

    fn complete() -> State {
        let mut state = State::default();
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_needed()) {
            assert!(state.publish().is_none(), "{kind:?} is missing");
            state.take(Update::Listed(kind, vec![]));
        }
        state
    }

    #[test]
    fn a_relist_replaces_what_was_known() {
        let mut state = complete();
        state.take(Update::Changed(Kind::Namespace, namespace("old")));
        state.take(Update::Listed(Kind::Namespace, vec![namespace("new")]));
        let published = state.publish().unwrap();
        assert_eq!(published.snapshot.namespaces.keys().collect::<Vec<_>>(), ["new"]);
    }

    #[test]
    fn a_slice_that_moves_leaves_its_old_service() {
        let mut state = complete();
        state.take(Update::Changed(Kind::EndpointSlice, slice("a", "one")));
        state.take(Update::Changed(Kind::EndpointSlice, slice("a", "two")));
        let slices = state.publish().unwrap().snapshot.slices.clone();
        assert_eq!(slices.keys().map(|service| &*service.name).collect::<Vec<_>>(), ["two"]);
        state.take(Update::Deleted(Kind::EndpointSlice, ObjectName::new("shop", "a")));
        assert!(state.publish().unwrap().snapshot.slices.is_empty());
    }

    #[test]
    fn problems_live_as_long_as_their_object_is_bad() {
        let mut state = complete();
        let problem = Problem::new(ObjectRef::cluster("Namespace", "n"), Reason::Malformed, "x");
        let bad = Known { problems: vec![problem], ..namespace("n") };
        state.take(Update::Changed(Kind::Namespace, bad.clone()));
        assert_eq!(state.publish().unwrap().problems.len(), 1);
        state.take(Update::Changed(Kind::Namespace, namespace("n")));
        assert_eq!(state.publish().unwrap().problems.len(), 0);
        state.take(Update::Changed(Kind::Namespace, bad));
        state.take(Update::Deleted(Kind::Namespace, ObjectName::new("", "n")));
        assert_eq!(state.publish().unwrap().problems.len(), 0);
    }

    fn policy(name: &str) -> Known {
        let name = ObjectName::new("shop", name);
        let problem = Problem::new(ObjectRef::new("NetworkPolicy", &name), Reason::Unsupported, "x");
        Known { name, value: None, problems: vec![problem] }
    }

    /// A node serves, whatever becomes of a list that decides nothing; the number is that of now, or none.
    #[test]
    fn policies_are_counted_while_they_may_be_seen_and_never_waited_for() {
        let mut state = complete();
        let mut seen = |update: Option<Update>| {
            if let Some(update) = update {
                state.take(update);
            }
            let published = state.publish().expect("a change");
            (published.policies.map(|policies| policies.len()), published.problems.to_vec())
        };
        assert_eq!(seen(None), (None, vec![]), "no answer yet");
        let refused = || Some(Update::Refused(Kind::NetworkPolicy));
        assert_eq!(seen(refused()), (None, vec![unlisted()]));
        let both = vec![policy("a"), policy("b")];
        assert_eq!(seen(Some(Update::Listed(Kind::NetworkPolicy, both))), (Some(2), vec![]));
        let gone = Update::Deleted(Kind::NetworkPolicy, policy("a").name);
        assert_eq!(seen(Some(gone)), (Some(1), vec![]));
        assert_eq!(seen(refused()), (None, vec![unlisted()]), "the right was taken away");
    }

    /// Others write to policies all the time: labels, the fields' managers.
    #[test]
    fn a_policy_that_means_the_same_is_no_news() {
        let mut state = complete();
        state.take(Update::Listed(Kind::NetworkPolicy, vec![policy("a")]));
        assert!(state.publish().is_some());
        state.take(Update::Changed(Kind::NetworkPolicy, policy("a")));
        assert!(state.publish().is_none());
        state.take(Update::Changed(Kind::NetworkPolicy, policy("b")));
        assert_eq!(state.publish().and_then(|published| published.policies).map(|all| all.len()), Some(2));
    }

    /// Something flaps 100 times a second (bad input): at most 50 snapshots a second come of it, and the last one says
    /// all.
    #[tokio::test(start_paused = true)]
    async fn changes_without_end_are_published_together() {
        let (sender, updates) = mpsc::channel(100);
        let (published, mut seen) = watch::channel(None);
        let owner = tokio::spawn(own(updates, published, CancellationToken::new()));
        let flapping = tokio::spawn(async move {
            for kind in Kind::ALL {
                sender.send(Update::Listed(kind, vec![])).await.unwrap();
            }
            for number in 0..300 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let name = format!("n{number}");
                sender.send(Update::Changed(Kind::Namespace, namespace(&name))).await.unwrap();
            }
        });
        let mut count = 0;
        while seen.changed().await.is_ok() {
            count += 1;
        }
        flapping.await.unwrap();
        owner.await.unwrap();
        assert!((100..=152).contains(&count), "{count} snapshots in three seconds");
        assert_eq!(seen.borrow().as_ref().unwrap().snapshot.namespaces.len(), 300);
    }
}
