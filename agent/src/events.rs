//! Tells the cluster what is wrong with its objects: one Event per problem and agent.
//!
//! Follows the reconciler's view and never influences it. The name of an Event is made from the problem, so that an
//! agent that starts again does not repeat itself.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use quilla_model::Problem;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::reconcile::View;

/// More problems than these are only counted: a broken cluster is not helped by a flood.
const MAX_REPORTED: usize = 200;

/// Reports problems as they appear until `drain`.
pub async fn report(
    client: Client,
    node: String,
    mut view: watch::Receiver<Arc<View>>,
    drain: CancellationToken,
) {
    let mut reported = BTreeSet::new();
    while let Some(Ok(())) = drain.run_until_cancelled(view.changed()).await {
        let current: BTreeSet<Problem> = view.borrow_and_update().problems.iter().cloned().collect();
        reported.retain(|problem| current.contains(problem));
        for problem in current {
            if reported.len() < MAX_REPORTED && !reported.contains(&problem) {
                tracing::warn!(object.r#ref = %problem.object, reason = problem.reason.label(), detail = problem.detail, "skipped");
                let posting = post(&client, &node, &problem);
                if drain.run_until_cancelled(posting).await.is_none() {
                    return;
                }
                reported.insert(problem);
            }
        }
    }
}

/// An Event that cannot be stored is not worth more than a line in the log.
async fn post(client: &Client, node: &str, problem: &Problem) {
    let event = event(node, problem, Timestamp::now());
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &event).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => tracing::debug!(error = %error, "post event"),
    }
}

fn event(node: &str, problem: &Problem, now: Timestamp) -> Event {
    let object = &problem.object;
    // Events of cluster-wide objects live in `default`.
    let namespace = if object.namespace.is_empty() { "default" } else { &object.namespace };
    let mut hasher = DefaultHasher::new();
    (node, &object.kind, problem.reason, &problem.detail).hash(&mut hasher);
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
        reason: Some(camel_case(problem.reason.label())),
        message: Some(format!("skipped: {}", problem.detail)),
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

    use super::event;

    #[test]
    fn an_event_names_its_object_and_repeats_its_name() {
        let object = ObjectRef::new("Service", &ObjectName::new("shop", "web"));
        let problem = Problem::new(object, Reason::UnusableAddress, "clusterIP 127.0.0.1");
        let first = event("a", &problem, Timestamp::UNIX_EPOCH);
        assert_eq!(first.reason.as_deref(), Some("UnusableAddress"));
        assert_eq!(first.involved_object.name.as_deref(), Some("web"));
        assert_eq!(first.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(first.metadata.name, event("a", &problem, Timestamp::now()).metadata.name);
        assert_ne!(first.metadata.name, event("b", &problem, Timestamp::now()).metadata.name);
        let node = Problem { object: ObjectRef::cluster("Node", "n1"), ..problem };
        assert_eq!(event("a", &node, Timestamp::now()).metadata.namespace.as_deref(), Some("default"));
    }
}
