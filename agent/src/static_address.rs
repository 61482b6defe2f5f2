//! Addresses that a Pod asks for itself, by an annotation. The CNI server asks before it chooses addresses.
//!
//! Invariant: while nobody can say whether a Pod asks for addresses, the answer is "try again", never "none".

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};
use quilla_cni_protocol::PodRef;
use quilla_model::{ObjectName, ObjectRef};
use tokio::sync::{mpsc, watch};

use crate::cni::AttachError;
use crate::events::Notice;
use crate::reconcile::View;
use crate::snapshot::Published;

/// What a Pod writes.
pub const ANNOTATION: &str = "quilla.dev/addresses";

/// What it may write there.
pub const ALLOWED: &str = "an IPv4 address, an IPv6 address, or one of each with a comma between";

/// By these a static Pod's mirror says under which uid the kubelet runs it.
const MIRROR: &str = "kubernetes.io/config.mirror";
const MIRRORED_UID: &str = "kubernetes.io/config.hash";

/// How long the apiserver may take: less than the plugin's patience.
const PATIENCE: Duration = Duration::from_secs(2);

/// The addresses of an annotation, at most one per family.
pub fn parse(text: &str) -> Option<Vec<IpAddr>> {
    let addresses: Vec<IpAddr> =
        text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<_>>()?;
    let one_per_family = match addresses.as_slice() {
        [_] => true,
        [first, second] => first.is_ipv4() != second.is_ipv4(),
        _ => false,
    };
    one_per_family.then_some(addresses)
}

/// The uid by which a runtime knows the Pod.
pub fn uid(pod: &Pod) -> String {
    let mirrored = pod.annotations().get(MIRRORED_UID).filter(|_| pod.annotations().contains_key(MIRROR));
    mirrored.cloned().or_else(|| pod.uid()).unwrap_or_default()
}

/// Where annotations are looked up, and where their owners are told.
#[derive(Clone)]
pub struct StaticAddresses {
    /// Whether Pods may ask at all.
    pub allowed: bool,
    /// What the watches know.
    pub published: watch::Receiver<Option<Published>>,
    /// What is known while no apiserver has answered yet.
    pub view: watch::Receiver<Arc<View>>,
    /// For a Pod of which the runtime heard first.
    pub client: Client,
    /// For those who wrote an annotation.
    pub notices: mpsc::Sender<Notice>,
}

impl StaticAddresses {
    /// What the Pod asks for: nothing, when the cluster knows no such Pod.
    pub async fn of(&self, pod: &PodRef) -> Result<Vec<IpAddr>, AttachError> {
        if !self.allowed {
            return Ok(Vec::new());
        }
        let text = match self.watched(pod) {
            Some(known) => known.wished_addresses.clone(),
            None => self.fetched(pod).await.map_err(|reason| AttachError::NotReady { reason })?,
        };
        let Some(text) = text else { return Ok(Vec::new()) };
        parse(&text).ok_or_else(|| AttachError::Failed {
            operation: "read annotation",
            object: format!("{ANNOTATION} of pod {}/{}", pod.namespace, pod.name),
            source: format!("{text:?} is not {ALLOWED}").into(),
        })
    }

    /// Makes an Event of a refusal; one too many is not worth waiting for.
    pub fn refused(&self, pod: &PodRef, reason: &str) {
        let notice = Notice {
            object: ObjectRef::new("Pod", &ObjectName::new(&*pod.namespace, &*pod.name)),
            reason: "AddressRefused".into(),
            message: format!("{ANNOTATION}: {reason}"),
        };
        if self.notices.try_send(notice).is_err() {
            tracing::debug!(pod.namespace, pod.name, "too many notices for another one");
        }
    }

    /// This very Pod, if it has come by the watch. Without a uid nobody knows: a Pod that was made anew has the name of
    /// its predecessor, and the watch may be late.
    fn watched(&self, pod: &PodRef) -> Option<Arc<quilla_model::Pod>> {
        let published = self.published.borrow().as_ref().map(|published| Arc::clone(&published.snapshot));
        let snapshot = published.unwrap_or_else(|| Arc::clone(&self.view.borrow().snapshot));
        let known = snapshot.pods.get(&ObjectName::new(&*pod.namespace, &*pod.name))?;
        (pod.uid.as_ref() == Some(&known.uid)).then(|| Arc::clone(known))
    }

    /// The annotation as the apiserver has it; an error while it does not say.
    async fn fetched(&self, pod: &PodRef) -> Result<Option<String>, String> {
        if ![&pod.namespace, &pod.name].into_iter().all(|name| is_name(name)) {
            return Ok(None);
        }
        let failed = |why: &dyn std::fmt::Display| {
            format!(
                "the apiserver does not say whether pod {}/{} has {ANNOTATION}: {why}",
                pod.namespace, pod.name
            )
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let got = tokio::time::timeout(PATIENCE, api.get_opt(&pod.name)).await;
        let Some(known) = got.map_err(|late| failed(&late))?.map_err(|error| failed(&error))? else {
            return Ok(None);
        };
        let uid = uid(&known);
        if is_same(pod, &uid) {
            return Ok(known.annotations().get(ANNOTATION).cloned());
        }
        Err(failed(&format_args!("it knows one with uid {uid}")))
    }
}

impl fmt::Debug for StaticAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticAddresses").finish_non_exhaustive()
    }
}

/// Whether an object can be called so, with nothing in it that would change the meaning of a path.
fn is_name(text: &str) -> bool {
    text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
}

/// A runtime that says no uid means the Pod of that name.
fn is_same(pod: &PodRef, uid: &str) -> bool {
    pod.uid.as_ref().is_none_or(|own| own == uid)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use axum::Json;
    use axum::routing::get;
    use kube::{Client, Config};
    use quilla_cni_protocol::PodRef;
    use quilla_model::{ObjectName, Pod, Snapshot};
    use serde_json::json;
    use tokio::sync::{mpsc, watch};

    use super::{ANNOTATION, StaticAddresses, parse};
    use crate::cni::AttachError;
    use crate::events::Notice;
    use crate::reconcile::View;
    use crate::snapshot::Published;

    /// CNI-33: one or two addresses, of different families.
    #[test]
    fn cni_33_the_annotation_has_an_address_of_each_family_at_most() {
        let written = |text| parse(text).map(|ips| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>());
        assert_eq!(written("10.1.0.7"), Some(vec!["10.1.0.7".into()]));
        assert_eq!(written("fd00::7, 10.1.0.7"), Some(vec!["fd00::7".into(), "10.1.0.7".into()]));
        for malformed in [
            "",
            ",",
            "10.1.0",
            "10.1.0.7/24",
            "10.1.0.7,",
            "10.1.0.7,10.1.0.8",
            "a",
            "fd00::7,fd00::8",
            "10.1.0.7,fd00::7,fd00::8",
            "10.1.0.7 fd00::7",
            "[\"10.1.0.7\"]",
        ] {
            assert_eq!(written(malformed), None, "{malformed:?}");
        }
    }

    fn reference(name: &str, uid: Option<&str>) -> PodRef {
        PodRef { namespace: "shop".into(), name: name.into(), uid: uid.map(Into::into) }
    }

    /// An agent whose watch knows `watched`, and an apiserver that also knows `late`, and a static Pod's mirror.
    async fn cluster() -> (StaticAddresses, mpsc::Receiver<Notice>) {
        let pod = |uid: &str, annotations: serde_json::Value| {
            Json(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "x", "namespace": "shop", "uid": uid, "annotations": annotations}}))
        };
        let late = pod("2", json!({ANNOTATION: "10.1.0.8"}));
        let mirror = json!({"kubernetes.io/config.mirror": "h", "kubernetes.io/config.hash": "h", ANNOTATION: "10.1.0.9"});
        let mirror = pod("3", mirror);
        let status = Json(json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}));
        let router = axum::Router::new()
            .route("/api/v1/namespaces/shop/pods/late", get(async || late))
            .route("/api/v1/namespaces/shop/pods/mirror", get(async || mirror))
            .fallback(async || (axum::http::StatusCode::NOT_FOUND, status));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, router).await });
        agent(&address.to_string())
    }

    fn agent(apiserver: &str) -> (StaticAddresses, mpsc::Receiver<Notice>) {
        let name = ObjectName::new("shop", "watched");
        let watched = Pod {
            name: name.clone(),
            uid: "1".into(),
            addresses: vec![],
            host_network: false,
            finished: false,
            wished_addresses: Some("10.1.0.7,fd00::7".into()),
        };
        let mut snapshot = Snapshot::default();
        snapshot.pods.insert(name, Arc::new(watched));
        let published = Published { snapshot: Arc::new(snapshot), ..Published::default() };
        let (notices, noticed) = mpsc::channel(1);
        let addresses = StaticAddresses {
            allowed: true,
            published: watch::channel(Some(published)).1,
            view: watch::channel(Arc::new(View::default())).1,
            client: Client::try_from(Config::new(format!("http://{apiserver}").parse().unwrap())).unwrap(),
            notices,
        };
        (addresses, noticed)
    }

    /// CNI-33: the watch knows, or else the apiserver; a Pod that neither knows asks for nothing.
    #[tokio::test]
    async fn cni_33_a_pod_that_the_watch_does_not_know_is_asked_for() {
        let (addresses, _noticed) = cluster().await;
        let of = async |name, uid| {
            let found = addresses.of(&reference(name, uid)).await;
            found.map(|ips| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(of("watched", Some("1")).await.unwrap(), "10.1.0.7 fd00::7");
        assert_eq!(of("watched", None).await.unwrap(), "", "without a uid only the apiserver is asked");
        assert_eq!(of("late", None).await.unwrap(), "10.1.0.8");
        assert_eq!(
            of("watched", Some("0")).await.unwrap(),
            "",
            "the watch knows another Pod, the apiserver none"
        );
        assert_eq!(of("late", Some("2")).await.unwrap(), "10.1.0.8");
        assert_eq!(of("mirror", Some("h")).await.unwrap(), "10.1.0.9", "a static Pod");
        assert_eq!(of("nobody", Some("4")).await.unwrap(), "");
        assert_eq!(of("../pods/late", Some("2")).await.unwrap(), "", "no Pod is called so");
        let replaced = of("late", Some("1")).await.unwrap_err();
        assert!(
            matches!(&replaced, AttachError::NotReady { reason } if reason.contains("uid 2")),
            "{replaced}"
        );
    }

    /// CNI-33: never another address because nobody could be asked.
    #[tokio::test]
    async fn cni_33_an_apiserver_that_does_not_answer_is_waited_for() {
        let (addresses, mut noticed) = agent("127.0.0.1:1");
        let watched = addresses.of(&reference("watched", Some("1"))).await.unwrap();
        assert_eq!(watched.len(), 2, "it need not be asked");
        assert!(
            addresses.of(&reference("watched", None)).await.is_err(),
            "the watch may know its predecessor"
        );
        let forbidden = StaticAddresses { allowed: false, ..addresses.clone() };
        assert!(forbidden.of(&reference("late", None)).await.unwrap().is_empty(), "nobody is asked");
        let unknown = addresses.of(&reference("late", None)).await.unwrap_err();
        assert!(matches!(unknown, AttachError::NotReady { .. }), "{unknown}");
        addresses.refused(&reference("watched", None), "address 10.1.0.7 is held");
        let notice = noticed.recv().await.unwrap();
        assert_eq!(
            (notice.object.to_string().as_str(), &*notice.reason),
            ("Pod shop/watched", "AddressRefused")
        );
        assert_eq!(notice.message, "quilla.dev/addresses: address 10.1.0.7 is held");
    }
}
