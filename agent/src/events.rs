//! Tells the cluster what is wrong with its objects: one Event per problem and agent.
//!
//! Follows the reconciler's view and never influences it; other parts of the agent send what they have to say. The name of an Event is made from the problem, so that an
//! agent that starts again does not repeat itself.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use quilla_model::{ObjectRef, Problem};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::reconcile::View;

/// More problems than these are only counted: a broken cluster is not helped by a flood.
const MAX_REPORTED: usize = 200;

/// Something that an object's owner should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The object.
    pub object: ObjectRef,
    /// Why, as Kubernetes writes reasons: in capitals, one word.
    pub reason: Cow<'static, str>,
    /// What happened.
    pub message: String,
}

impl From<&Problem> for Notice {
    fn from(problem: &Problem) -> Self {
        Self {
            object: problem.object.clone(),
            reason: camel_case(problem.reason.label()).into(),
            message: format!("skipped: {}", problem.detail),
        }
    }
}

/// Reports problems as they appear, and notices as they come, until `drain`.
pub async fn report(
    client: Client,
    node: String,
    mut view: watch::Receiver<Arc<View>>,
    mut notices: mpsc::Receiver<Notice>,
    drain: CancellationToken,
) {
    let reporting = async {
        let mut reported = BTreeSet::new();
        loop {
            tokio::select! {
                Some(notice) = notices.recv() => post(&client, &node, &notice).await,
                Ok(()) = view.changed() => {
                    let current = view.borrow_and_update().clone();
                    for problem in unreported(&current.problems, &mut reported) {
                        tracing::warn!(object.r#ref = %problem.object, reason = problem.reason.label(), detail = problem.detail, "skipped");
                        post(&client, &node, &Notice::from(&problem)).await;
                    }
                }
                else => return,
            }
        }
    };
    drain.run_until_cancelled(reporting).await.unwrap_or_default();
}

/// Problems that nobody heard of yet; those that are gone are forgotten.
fn unreported(problems: &[Problem], reported: &mut BTreeSet<Problem>) -> Vec<Problem> {
    let current: BTreeSet<&Problem> = problems.iter().collect();
    reported.retain(|problem| current.contains(problem));
    let room = MAX_REPORTED.saturating_sub(reported.len());
    let new: Vec<Problem> =
        current.into_iter().filter(|problem| !reported.contains(*problem)).take(room).cloned().collect();
    reported.extend(new.iter().cloned());
    new
}

/// An Event that cannot be stored is not worth more than a line in the log.
async fn post(client: &Client, node: &str, notice: &Notice) {
    let event = event(node, notice, Timestamp::now());
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &event).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => tracing::debug!(error = %error, "post event"),
    }
}

fn event(node: &str, notice: &Notice, now: Timestamp) -> Event {
    let Notice { object, reason, message } = notice;
    // Events of cluster-wide objects live in `default`.
    let namespace = if object.namespace.is_empty() { "default" } else { &object.namespace };
    let mut hasher = DefaultHasher::new();
    (node, &object.kind, reason, message).hash(&mut hasher);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:016x}", object.name, hasher.finish())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            kind: Some(object.kind.to_owned()),
            namespace: Some(object.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(object.name.clone()),
            ..ObjectReference::default()
        },
        reason: Some(reason.to_string()),
        message: Some(message.clone()),
        type_: Some("Warning".into()),
        source: Some(EventSource { component: Some("quilla-agent".into()), host: Some(node.to_owned()) }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}

/// `unusable_address` as Kubernetes writes reasons: `UnusableAddress`.
fn camel_case(label: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    label.split('_').filter(|word| !word.is_empty()).map(capital).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use quilla_model::{ObjectName, ObjectRef, Problem, Reason};

    use super::{MAX_REPORTED, Notice, event, unreported};

    #[test]
    fn an_event_names_its_object_and_repeats_its_name() {
        let object = ObjectRef::new("Service", &ObjectName::new("shop", "web"));
        let problem = Problem::new(object, Reason::UnusableAddress, "clusterIP 127.0.0.1");
        let notice = Notice::from(&problem);
        let first = event("a", &notice, Timestamp::UNIX_EPOCH);
        assert_eq!(first.reason.as_deref(), Some("UnusableAddress"));
        assert_eq!(first.involved_object.name.as_deref(), Some("web"));
        assert_eq!(first.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(first.metadata.name, event("a", &notice, Timestamp::now()).metadata.name);
        assert_ne!(first.metadata.name, event("b", &notice, Timestamp::now()).metadata.name);
        let node = Notice { object: ObjectRef::cluster("Node", "n1"), ..notice };
        assert_eq!(event("a", &node, Timestamp::now()).metadata.namespace.as_deref(), Some("default"));
    }

    #[test]
    fn a_problem_is_reported_once_and_again_when_it_came_back() {
        let problem = |detail: usize| {
            Problem::new(ObjectRef::cluster("Node", "a"), Reason::Malformed, detail.to_string())
        };
        let mut reported = std::collections::BTreeSet::new();
        assert_eq!(unreported(&[problem(1), problem(2)], &mut reported).len(), 2);
        assert_eq!(unreported(&[problem(2), problem(3)], &mut reported), [problem(3)]);
        assert_eq!(unreported(&[problem(1)], &mut reported), [problem(1)]);
        let flood: Vec<_> = (0..2 * MAX_REPORTED).map(problem).collect();
        assert_eq!(unreported(&flood, &mut reported).len(), MAX_REPORTED - 1);
    }
}
