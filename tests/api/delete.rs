//! Delete: preconditions, finalizers, grace, collections, namespaces, dependents.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Api, CONFIG_MAPS, PATIENCE, PODS, config_map, pod};

async fn gone(api: &Api, path: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = api.get(path).await;
        if answer.code == 404 {
            return;
        }
        assert!(Instant::now() < deadline, "{path} is still there: {}", answer.body);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions_hold_and_success_names_the_object() {
    let api = Api::start().await;
    let made = api.created(CONFIG_MAPS, &config_map("a")).await;
    let path = format!("{CONFIG_MAPS}/a");
    let wrong = api.delete(&path, &json!({"preconditions": {"uid": "another"}})).await;
    assert_eq!((wrong.code, &wrong.body["reason"]), (409, &json!("Conflict")));
    let right = api.delete(&path, &json!({"preconditions": {"uid": made["metadata"]["uid"]}})).await.body;
    assert_eq!((&right["status"], &right["details"]["uid"]), (&json!("Success"), &made["metadata"]["uid"]));
    assert_eq!(api.delete(&path, &json!({})).await.code, 404);
    assert_eq!(api.delete(&path, &json!({"propagationPolicy": "Orphan"})).await.code, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_an_object_until_they_are_removed() {
    let api = Api::start().await;
    let mut object = config_map("a");
    object["metadata"]["finalizers"] = json!(["quilla.example/hold"]);
    api.created(CONFIG_MAPS, &object).await;
    let path = format!("{CONFIG_MAPS}/a");
    assert!(api.delete(&path, &json!({})).await.body["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["quilla.example/hold", "quilla.example/more"]}});
    assert_eq!(api.patch(&path, "merge-patch+json", &more).await.code, 403);
    assert_eq!(api.get(&path).await.code, 200);
    let released = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["quilla.example/hold"]}});
    assert_eq!(api.patch(&path, "strategic-merge-patch+json", &released).await.code, 200);
    assert_eq!(api.get(&path).await.code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_a_node_gets_its_time_to_stop() {
    let api = Api::start().await;
    let mut object = pod("a");
    object["spec"]["nodeName"] = json!("n1");
    api.created(PODS, &object).await;
    let path = format!("{PODS}/a");
    let marked = api.delete(&path, &json!({})).await.body;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(api.get(&path).await.code, 200, "the Pod waits for its node");
    // What a kubelet sends when all containers have stopped.
    assert_eq!(api.delete(&path, &json!({"gracePeriodSeconds": 0})).await.body["status"], "Success");
    assert_eq!(api.get(&path).await.code, 404);

    // Nobody confirms: the Pod goes when its time is over.
    object["spec"]["terminationGracePeriodSeconds"] = json!(1);
    api.created(PODS, &object).await;
    assert_eq!(api.delete(&path, &json!({})).await.body["metadata"]["deletionGracePeriodSeconds"], 1);
    gone(&api, &path).await;

    api.created(PODS, &pod("unassigned")).await;
    assert_eq!(api.delete(&format!("{PODS}/unassigned"), &json!({})).await.body["status"], "Success");
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_are_deleted_by_selector() {
    let api = Api::start().await;
    for name in ["a", "b"] {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({"name": name});
        api.created(CONFIG_MAPS, &object).await;
    }
    assert_eq!(api.delete(&format!("{CONFIG_MAPS}?labelSelector=name%3Da"), &json!({})).await.code, 200);
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/a")).await.code, 404);
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/b")).await.code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_takes_its_contents_along() {
    let api = Api::start().await;
    api.created("/api/v1/namespaces", &json!({"metadata": {"name": "shop"}})).await;
    let maps = "/api/v1/namespaces/shop/configmaps";
    let mut held = config_map("held");
    held["metadata"]["finalizers"] = json!(["quilla.example/hold"]);
    api.created(maps, &config_map("free")).await;
    api.created(maps, &held).await;
    let marked = api.delete("/api/v1/namespaces/shop", &json!({})).await.body;
    assert_eq!(marked["status"]["phase"], "Terminating");
    let refused = api.post(maps, &config_map("late")).await;
    assert_eq!(
        (refused.code, &refused.body["details"]["causes"][0]["reason"]),
        (403, &json!("NamespaceTerminating"))
    );
    gone(&api, &format!("{maps}/free")).await;
    assert_eq!(api.get("/api/v1/namespaces/shop").await.code, 200, "something in it is still held");
    api.patch(&format!("{maps}/held"), "merge-patch+json", &json!({"metadata": {"finalizers": null}})).await;
    gone(&api, "/api/v1/namespaces/shop").await;
    assert_eq!(api.delete("/api/v1/namespaces/default", &json!({})).await.code, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn dependents_follow_their_last_owner() {
    let api = Api::start().await;
    let owner = |made: &Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": made["metadata"]["name"], "uid": made["metadata"]["uid"]});
    let (first, second) = (
        api.created(CONFIG_MAPS, &config_map("o1")).await,
        api.created(CONFIG_MAPS, &config_map("o2")).await,
    );
    let mut both = config_map("both");
    both["metadata"]["ownerReferences"] = json!([owner(&first), owner(&second)]);
    api.created(CONFIG_MAPS, &both).await;
    let mut one = config_map("one");
    one["metadata"]["ownerReferences"] = json!([owner(&first)]);
    api.created(CONFIG_MAPS, &one).await;
    api.delete(&format!("{CONFIG_MAPS}/o1"), &json!({})).await;
    gone(&api, &format!("{CONFIG_MAPS}/one")).await;
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/both")).await.code, 200);
    api.delete(&format!("{CONFIG_MAPS}/o2"), &json!({})).await;
    gone(&api, &format!("{CONFIG_MAPS}/both")).await;
}
