//! Tells the cluster what is wrong with its objects: one Event per problem.
//!
//! Follows the reconciler's view and never influences it; other parts of the agent send what they have to say. The name
//! of an Event is made from the problem and the object's uid, so that an agent that starts again does not repeat itself,
//! nor the other nodes' agents what every one of them finds. What concerns one node names it. Policies, of which none is enforced,
//! are a number in the log: a cluster has many, and each node would ask for and post an Event of each.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, EventSource, Namespace, Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, ObjectMeta, PostParams};
use kube::{Api, Client};
use quilla_model::{ObjectRef, Problem, Reason};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::reconcile::View;

/// More problems with objects of one kind than these are only counted: a broken cluster is not helped by a flood.
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

impl Notice {
    /// A problem that this node found. Only room is each node's own: what else is wrong with an object is so for all.
    fn of(problem: &Problem, node: &str) -> Self {
        let notice = Self {
            object: problem.object.clone(),
            reason: camel_case(problem.reason.label()).into(),
            message: message(problem),
        };
        if problem.reason == Reason::Capacity { notice.on(node) } else { notice }
    }

    /// The same, with the node that it concerns.
    fn on(self, node: &str) -> Self {
        Self { message: format!("node {node}: {}", self.message), ..self }
    }
}

/// What was skipped, or how things are: not everything that is told is left out, so the details of the other reasons say
/// themselves what is done, or who has what two claim.
fn message(problem: &Problem) -> String {
    match problem.reason {
        Reason::Malformed | Reason::UnusableAddress | Reason::Duplicate => {
            format!("skipped: {}", problem.detail)
        }
        Reason::Conflict | Reason::Unsupported | Reason::Missing | Reason::Capacity => problem.detail.clone(),
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
        let mut policies = 0;
        loop {
            tokio::select! {
                Some(notice) = notices.recv() => post(&client, &node, &notice.on(&node)).await,
                Ok(()) = view.changed() => {
                    let current = view.borrow_and_update().clone();
                    if let Some(count) = current.unenforced_policies().filter(|count| *count != policies) {
                        tracing::warn!(policies = count, "network policies are not enforced");
                        policies = count;
                    }
                    for problem in unreported(&current.problems, &mut reported) {
                        tracing::warn!(object.r#ref = %problem.object, reason = problem.reason.label(), detail = problem.detail, "problem");
                        post(&client, &node, &Notice::of(&problem, &node)).await;
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
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for problem in reported.iter() {
        *counts.entry(problem.object.kind).or_default() += 1;
    }
    let mut has_room = |problem: &Problem| {
        let count = counts.entry(problem.object.kind).or_default();
        *count += 1;
        *count <= MAX_REPORTED
    };
    let new: Vec<Problem> = current
        .into_iter()
        .filter(|problem| !reported.contains(*problem) && has_room(problem))
        .cloned()
        .collect();
    reported.extend(new.iter().cloned());
    new
}

/// An Event that cannot be stored is not worth more than a line in the log.
async fn post(client: &Client, node: &str, notice: &Notice) {
    let involved = reference(client, &notice.object).await;
    let event = event(node, notice, involved, Timestamp::now());
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &event).await {
        Ok(_) => {}
        // An agent said it already.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => tracing::debug!(error = %error, "post event"),
    }
}

/// The object as an Event names it, with its uid if it is still there: `kubectl describe` selects Events by it. The
/// watches keep no uids, and an Event is rare enough for a question of its own.
async fn reference(client: &Client, object: &ObjectRef) -> ObjectReference {
    let resource = resource(object.kind);
    let api_version = resource.as_ref().map(|resource| resource.api_version.clone());
    let uid = match resource {
        Some(resource) => uid(client, object, &resource).await,
        None => None,
    };
    ObjectReference {
        api_version,
        kind: Some(object.kind.to_owned()),
        namespace: Some(object.namespace.to_string()).filter(|namespace| !namespace.is_empty()),
        name: Some(object.name.to_string()),
        uid,
        ..ObjectReference::default()
    }
}

/// An Event without a uid is better than none.
async fn uid(client: &Client, object: &ObjectRef, resource: &ApiResource) -> Option<String> {
    let api: Api<DynamicObject> = match &*object.namespace {
        "" => Api::all_with(client.clone(), resource),
        namespace => Api::namespaced_with(client.clone(), namespace, resource),
    };
    let found = api.get_opt(&object.name).await.inspect_err(|error| {
        tracing::debug!(object.r#ref = %object, error = %error, "get the object of an event");
    });
    found.ok()??.metadata.uid
}

/// Where the API has objects of a kind; `None` for what is none of its objects.
fn resource(kind: &str) -> Option<ApiResource> {
    let known = [
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<EndpointSlice>(&()),
        ApiResource::erase::<Pod>(&()),
        ApiResource::erase::<Node>(&()),
        ApiResource::erase::<Namespace>(&()),
        ApiResource::erase::<ServiceCIDR>(&()),
    ];
    known.into_iter().find(|resource| resource.kind == kind)
}

fn event(node: &str, notice: &Notice, involved: ObjectReference, now: Timestamp) -> Event {
    let Notice { object, reason, message } = notice;
    // Events of cluster-wide objects live in `default`.
    let namespace = if object.namespace.is_empty() { "default" } else { &object.namespace };
    let mut hasher = DefaultHasher::new();
    (&object.kind, &involved.uid, reason, message).hash(&mut hasher);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:016x}", object.name, hasher.finish())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: involved,
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
    use std::sync::Arc;

    use axum::Json;
    use axum::routing::get;
    use k8s_openapi::api::core::v1::ObjectReference;
    use k8s_openapi::jiff::Timestamp;
    use kube::{Client, Config};
    use quilla_model::{ObjectName, ObjectRef, Problem, Reason};
    use serde_json::json;
    use tokio::sync::{mpsc, watch};
    use tokio_util::sync::CancellationToken;

    use super::{MAX_REPORTED, Notice, event, reference, report, resource, unreported};
    use crate::reconcile::View;
    use crate::watch::Kind;

    #[test]
    fn an_event_names_its_object_and_repeats_its_name() {
        let object = ObjectRef::new("Service", &ObjectName::new("shop", "web"));
        let problem = Problem::new(object, Reason::UnusableAddress, "clusterIP 127.0.0.1");
        let notice = Notice::of(&problem, "a");
        let of = |node: &str, uid: &str, now| {
            let involved = ObjectReference { uid: Some(uid.into()), ..ObjectReference::default() };
            event(node, &notice, involved, now)
        };
        let first = of("a", "1", Timestamp::UNIX_EPOCH);
        assert_eq!(first.reason.as_deref(), Some("UnusableAddress"));
        assert_eq!(first.involved_object.uid.as_deref(), Some("1"));
        assert_eq!(first.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(first.metadata.name, of("a", "1", Timestamp::now()).metadata.name);
        assert_eq!(
            first.metadata.name,
            of("b", "1", Timestamp::now()).metadata.name,
            "one Event, not one a node"
        );
        let anew = of("a", "2", Timestamp::now()).metadata.name;
        assert_ne!(first.metadata.name, anew, "an object of the same name that came later");
        let node = Notice { object: ObjectRef::cluster("Node", "n1"), ..notice.clone() };
        let event = event("a", &node, ObjectReference::default(), Timestamp::now());
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
    }

    #[test]
    fn what_concerns_one_node_names_it() {
        let object = ObjectRef::new("Service", &ObjectName::new("shop", "web"));
        let names = |reason| {
            let problem = Problem::new(object.clone(), reason, "no room");
            ["a", "b"].map(|node| {
                let notice = Notice::of(&problem, node);
                (
                    event(node, &notice, ObjectReference::default(), Timestamp::now()).metadata.name,
                    notice.message,
                )
            })
        };
        let [first, second] = names(Reason::Capacity);
        assert_eq!((first.1.as_str(), second.1.as_str()), ("node a: no room", "node b: no room"));
        assert_ne!(first.0, second.0);
        let [first, second] = names(Reason::Conflict);
        assert_eq!(first, second);
    }

    /// What is left out is called so, here or in its detail; a Service at an address of a Pod is served.
    #[test]
    fn only_what_is_skipped_is_called_so() {
        let object = ObjectRef::new("Service", &ObjectName::new("shop", "web"));
        let message = |reason| Notice::of(&Problem::new(object.clone(), reason, "detail"), "a").message;
        for skipped in [Reason::Malformed, Reason::UnusableAddress, Reason::Duplicate] {
            assert_eq!(message(skipped), "skipped: detail");
        }
        for told in [Reason::Conflict, Reason::Unsupported, Reason::Missing] {
            assert_eq!(message(told), "detail");
        }
    }

    /// An apiserver with one Service and one Node.
    async fn apiserver() -> Client {
        let object = |kind: &str, uid: &str| {
            Json(json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "x", "uid": uid}}))
        };
        let (service, node) = (object("Service", "service-uid"), object("Node", "node-uid"));
        let router = axum::Router::new()
            .route("/api/v1/namespaces/shop/services/web", get(async || service))
            .route("/api/v1/nodes/n1", get(async || node));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, router).await });
        Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap()
    }

    /// As many requests as nodes and policies would be too many.
    #[tokio::test]
    async fn policies_make_no_events() {
        let (posted, mut paths) = mpsc::channel(10);
        let answer = async move |request: axum::extract::Request| {
            if request.method() == "POST" {
                posted.send(request.uri().path().to_owned()).await.unwrap();
            }
            axum::http::StatusCode::NOT_FOUND
        };
        let client = Client::new(axum::Router::new().fallback(answer), "default");
        let problem = |kind, namespace: &str| {
            let object = ObjectRef::new(kind, &ObjectName::new(namespace, "x"));
            Problem::new(object, Reason::Unsupported, "x")
        };
        let policies = [(ObjectName::new("policies", "x"), vec![problem("NetworkPolicy", "policies")])];
        let view = View {
            problems: vec![problem("Service", "shop")],
            policies: Some(Arc::new(policies.into())),
            ..View::default()
        };
        assert_eq!((view.all_problems().count(), view.unenforced_policies()), (2, Some(1)));
        let (sender, receiver) = watch::channel(Arc::default());
        let (notices, drain) = (mpsc::channel(1).1, CancellationToken::new());
        let reporting = tokio::spawn(report(client, "a".into(), receiver, notices, drain));
        sender.send_replace(Arc::new(view));
        drop(sender);
        reporting.await.unwrap();
        assert_eq!(paths.recv().await.as_deref(), Some("/api/v1/namespaces/shop/events"));
        assert_eq!(paths.recv().await, None);
    }

    /// `kubectl describe` selects by uid, `kubectl events --for` by version, kind and name.
    #[tokio::test]
    async fn an_event_can_be_found_from_its_object() {
        let client = apiserver().await;
        let service = ObjectRef::new("Service", &ObjectName::new("shop", "web"));
        let found = reference(&client, &service).await;
        let expected = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some("shop".into()),
            name: Some("web".into()),
            uid: Some("service-uid".into()),
            ..ObjectReference::default()
        };
        assert_eq!(found, expected);
        let node = reference(&client, &ObjectRef::cluster("Node", "n1")).await;
        assert_eq!((node.uid.as_deref(), node.namespace), (Some("node-uid"), None));
        let gone =
            reference(&client, &ObjectRef::new("EndpointSlice", &ObjectName::new("shop", "gone"))).await;
        assert_eq!((gone.uid, gone.api_version.as_deref()), (None, Some("discovery.k8s.io/v1")));
    }

    #[test]
    fn every_kind_that_events_are_of_has_a_place_in_the_api() {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::NetworkPolicy) {
            assert!(resource(kind.name()).is_some(), "{kind:?}");
        }
        assert!(resource("Agent").is_none(), "the self-test is no object");
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
        let other = Problem::new(ObjectRef::cluster("Namespace", "n"), Reason::Malformed, "x");
        let both = [&flood[..], std::slice::from_ref(&other)].concat();
        assert_eq!(unreported(&both, &mut reported), [other], "a flood of one kind does not hide another");
    }
}
