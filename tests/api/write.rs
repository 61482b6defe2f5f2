//! Create, update and patch.

use serde_json::{Value, json};

use crate::fixture::{Api, CONFIG_MAPS, PODS, config_map, pod};

#[tokio::test(flavor = "multi_thread")]
async fn the_server_fills_in_what_is_its_own() {
    let api = Api::start().await;
    let mut object = pod("a");
    object["status"] = json!({"phase": "Running"});
    let made = api.created(PODS, &object).await;
    let metadata = &made["metadata"];
    assert_eq!((&metadata["namespace"], &metadata["generation"]), (&json!("default"), &json!(1)));
    assert!(metadata["uid"].as_str().is_some_and(|uid| uid.len() == 36), "{metadata}");
    assert!(
        metadata["creationTimestamp"].is_string() && metadata["resourceVersion"].is_string(),
        "{metadata}"
    );
    assert_eq!((&made["apiVersion"], &made["kind"]), (&json!("v1"), &json!("Pod")));
    assert_eq!(
        (&made["status"]["phase"], &made["spec"]["restartPolicy"]),
        (&json!("Pending"), &json!("Always"))
    );

    let generated = api.created(CONFIG_MAPS, &json!({"metadata": {"generateName": "g-"}})).await;
    let name = generated["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("g-") && name.len() == 7, "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_updates_conflict_and_idle_ones_change_nothing() {
    let api = Api::start().await;
    let path = format!("{CONFIG_MAPS}/a");
    let first = api.created(CONFIG_MAPS, &config_map("a")).await;
    let idle = api.put(&path, &first).await.body;
    assert_eq!(idle["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let mut second = first.clone();
    second["data"]["key"] = json!("other");
    assert_eq!(api.put(&path, &second).await.code, 200);
    let stale = api.put(&path, &first).await;
    assert_eq!((stale.code, &stale.body["reason"]), (409, &json!("Conflict")));
    let mut unconditional = first.clone();
    unconditional["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(api.put(&path, &unconditional).await.code, 200);
    unconditional["metadata"]["uid"] = json!("another");
    assert_eq!(api.put(&path, &unconditional).await.code, 409);
    api.created(CONFIG_MAPS, &config_map("b")).await;
    assert_eq!(api.put(&format!("{CONFIG_MAPS}/b"), &first).await.code, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_spec_are_written_apart() {
    let api = Api::start().await;
    api.created(PODS, &pod("a")).await;
    let path = format!("{PODS}/a");
    let both = json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
    let main = api.patch(&path, "merge-patch+json", &both).await.body;
    assert_eq!((&main["spec"]["nodeName"], &main["status"]["phase"]), (&json!("n1"), &json!("Pending")));
    assert_eq!(main["metadata"]["generation"], 2);
    let both = json!({"spec": {"nodeName": "n2"}, "status": {"phase": "Running"}});
    let status = api.patch(&format!("{path}/status"), "merge-patch+json", &both).await.body;
    assert_eq!((&status["spec"]["nodeName"], &status["status"]["phase"]), (&json!("n1"), &json!("Running")));
    assert_eq!(status["metadata"]["generation"], 2);
    let condition =
        |name: &str, value: &str| json!({"status": {"conditions": [{"type": name, "status": value}]}});
    for (name, value) in [("Ready", "False"), ("Ready", "True"), ("Other", "True")] {
        api.patch(&format!("{path}/status"), "strategic-merge-patch+json", &condition(name, value)).await;
    }
    let merged = api.get(&path).await.body["status"]["conditions"].clone();
    assert_eq!(merged, json!([{"type": "Ready", "status": "True"}, {"type": "Other", "status": "True"}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_run_stores_nothing() {
    let api = Api::start().await;
    assert_eq!(api.post(&format!("{PODS}?dryRun=All"), &pod("a")).await.code, 201);
    assert_eq!(api.get(&format!("{PODS}/a")).await.code, 404);
    api.created(PODS, &pod("a")).await;
    let labels = json!({"metadata": {"labels": {"x": "y"}}});
    let dry = api.patch(&format!("{PODS}/a?dryRun=All"), "merge-patch+json", &labels).await.body;
    assert_eq!(dry["metadata"]["labels"]["x"], "y");
    assert_eq!(api.delete(&format!("{PODS}/a?dryRun=All"), &json!({})).await.code, 200);
    assert_eq!(api.get(&format!("{PODS}/a")).await.body["metadata"]["labels"]["x"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything_even_the_history() {
    let api = Api::start().await;
    let made = api.created(CONFIG_MAPS, &config_map("a")).await;
    let other = api.created(CONFIG_MAPS, &config_map("b")).await;
    let ca = api.server().ca_pem().to_owned();
    let api = api.restarted().await;
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/a")).await.body, made);
    assert_eq!(api.server().ca_pem(), ca);
    let revision = made["metadata"]["resourceVersion"].as_str().unwrap();
    let answer = api.get(&format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1&resourceVersion={revision}")).await;
    assert_eq!(answer.body, json!({"type": "ADDED", "object": other}));
    assert_eq!(api.server().list("", "configmaps"), [made, other]);
}
