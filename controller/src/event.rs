//! Events about objects, for `kubectl describe`. Called by reconcilers. Best effort: an event that cannot be written
//! is logged and never stands in the way of the work.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

const COMPONENT: &str = "quilla-controller";

/// Writes a warning about `regarding`; about objects without a namespace it goes to `default`.
pub async fn warn(client: &Client, regarding: ObjectReference, reason: &str, message: &str) {
    let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let now = Timestamp::now();
    let name = format!("{}.{:x}", regarding.name.as_deref().unwrap_or_default(), now.as_nanosecond());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: regarding,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        type_: Some("Warning".to_owned()),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: None }),
        reporting_component: Some(COMPONENT.to_owned()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    if let Err(error) = api.create(&PostParams::default(), &event).await {
        let error = &error as &(dyn std::error::Error + 'static);
        tracing::warn!(reason, error, "event not written");
    }
}
