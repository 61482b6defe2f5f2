//! Watches: kube-rs following along, bookmarks, selectors, 410.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, watcher};
use quilla_apiserver::{AdmitAll, Config};
use serde_json::{Value, json};

use crate::fixture::{Api, CONFIG_MAPS, PATIENCE, PODS, config_map, pod};

/// The events of a watch that ends after a second.
async fn events(api: &Api, path: &str) -> Vec<Value> {
    let answer = api.get(&format!("{path}&watch=true&timeoutSeconds=1")).await;
    match answer.body {
        Value::String(lines) => lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        Value::Object(_) => vec![answer.body],
        other => panic!("not a watch: {other}"),
    }
}

/// Type and name of each event but bookmarks.
fn seen(events: &[Value]) -> Vec<(&str, &str)> {
    events
        .iter()
        .filter_map(|event| Some((event["type"].as_str()?, event["object"]["metadata"]["name"].as_str()?)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_enter_and_leave_through_the_selector() {
    let api = Api::start().await;
    let start = api.get(PODS).await.body["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    for name in ["a", "b"] {
        api.created(PODS, &pod(name)).await;
    }
    let label = |value: &str| json!({"metadata": {"labels": {"app": value}}});
    api.patch(&format!("{PODS}/a"), "merge-patch+json", &label("db")).await;
    api.patch(&format!("{PODS}/b"), "merge-patch+json", &json!({"metadata": {"labels": {"x": "y"}}})).await;
    api.patch(&format!("{PODS}/a"), "merge-patch+json", &label("web")).await;
    let last = api.delete(&format!("{PODS}/b"), &json!({})).await;
    assert_eq!(last.code, 200);
    let all = events(&api, &format!("{PODS}?resourceVersion={start}&labelSelector=app%3Dweb")).await;
    assert_eq!(
        seen(&all),
        [
            ("ADDED", "a"),
            ("ADDED", "b"),
            ("DELETED", "a"),
            ("MODIFIED", "b"),
            ("ADDED", "a"),
            ("DELETED", "b")
        ]
    );
    let revisions: Vec<u64> = all
        .iter()
        .map(|e| e["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
    let one = events(&api, &format!("{PODS}?resourceVersion=0&fieldSelector=metadata.name%3Da")).await;
    assert_eq!(seen(&one), [("ADDED", "a")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn initial_events_end_with_a_marked_bookmark() {
    let api = Api::start().await;
    api.created(CONFIG_MAPS, &config_map("a")).await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let all = events(&api, &format!("{CONFIG_MAPS}?{query}")).await;
    assert_eq!((&all[0]["type"], &all[1]["type"]), (&json!("ADDED"), &json!("BOOKMARK")));
    assert_eq!(all[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(all[1]["object"]["kind"], "ConfigMap");
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_come_periodically() {
    let config = Config { bookmark_every: Duration::from_millis(20), ..Config::default() };
    let api = Api::with(config, Arc::new(AdmitAll)).await;
    let all = events(&api, &format!("{CONFIG_MAPS}?resourceVersion=0&allowWatchBookmarks=true")).await;
    let bookmarks = all.iter().filter(|event| event["type"] == "BOOKMARK").count();
    assert!(bookmarks >= 2, "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compacted_is_gone() {
    let api = Api::with(Config { history: 3, ..Config::default() }, Arc::new(AdmitAll)).await;
    let first = api.created(CONFIG_MAPS, &config_map("a")).await;
    for number in 0..10 {
        api.created(CONFIG_MAPS, &config_map(&format!("c{number}"))).await;
    }
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = api.get(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}")).await;
    assert_eq!((watch.code, &watch.body["reason"]), (410, &json!("Expired")));
    let list = api.get(&format!("{CONFIG_MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact")).await;
    assert_eq!(list.code, 410);
}

/// list + watch = the state, as kube-rs's watcher keeps it, in both of its ways to begin.
#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_follows_along() {
    let api = Api::start().await;
    for configuration in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let maps: kube::Api<ConfigMap> = kube::Api::namespaced(api.client.clone(), "default");
        api.created(CONFIG_MAPS, &config_map("kept")).await;
        let mut stream = watcher(maps, configuration).default_backoff().boxed();
        let mut state = BTreeMap::new();
        let mut next = async |until: &dyn Fn(&BTreeMap<String, String>) -> bool| {
            while !until(&state) {
                let event = tokio::time::timeout(PATIENCE, stream.try_next()).await;
                match event.expect("an event in time").expect("no error").expect("the stream goes on") {
                    watcher::Event::Apply(map) | watcher::Event::InitApply(map) => {
                        let value = map.data.unwrap_or_default().get("key").cloned().unwrap_or_default();
                        state.insert(map.metadata.name.unwrap(), value);
                    }
                    watcher::Event::Delete(map) => drop(state.remove(&map.metadata.name.unwrap())),
                    watcher::Event::Init | watcher::Event::InitDone => {}
                }
            }
        };
        next(&|state| state.contains_key("kept")).await;
        for number in 0..20 {
            api.created(CONFIG_MAPS, &config_map(&format!("m{number}"))).await;
        }
        for number in 0..20 {
            let path = format!("{CONFIG_MAPS}/m{number}");
            api.patch(&path, "merge-patch+json", &json!({"data": {"key": "changed"}})).await;
        }
        next(&|state| state.len() == 21 && state.values().filter(|value| *value == "changed").count() == 20)
            .await;
        api.delete(CONFIG_MAPS, &json!({})).await;
        next(&|state| state.is_empty()).await;
    }
}
