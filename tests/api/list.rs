//! Lists: selectors, pages of one revision, older revisions, tables; and discovery.

use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Api, CONFIG_MAPS, PODS, config_map, pod, text};

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap_or_else(|| panic!("not a list: {list}"));
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_narrow_lists() {
    let api = Api::start().await;
    for (name, node, tier) in [("a", "n1", "front"), ("b", "n2", "front"), ("c", "n1", "back")] {
        let mut object = pod(name);
        object["spec"]["nodeName"] = json!(node);
        object["metadata"]["labels"]["tier"] = json!(tier);
        api.created(PODS, &object).await;
    }
    for (query, expected) in [
        ("fieldSelector=spec.nodeName%3Dn1", vec!["a", "c"]),
        ("fieldSelector=spec.nodeName%3Dn1,status.phase!%3DFailed,metadata.name!%3Da", vec!["c"]),
        ("labelSelector=tier+in+(front)", vec!["a", "b"]),
        ("labelSelector=tier!%3Dfront,app", vec!["c"]),
        ("labelSelector=!tier", vec![]),
    ] {
        assert_eq!(names(&api.get(&format!("/api/v1/pods?{query}")).await.body), expected, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_one_revision_whatever_happens_meanwhile() {
    let api = Api::start().await;
    for number in 0..7 {
        api.created(CONFIG_MAPS, &config_map(&format!("c{number}"))).await;
    }
    let first = api.get(&format!("{CONFIG_MAPS}?limit=3")).await.body;
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["c0", "c1", "c2"], &json!(4))
    );
    api.delete(&format!("{CONFIG_MAPS}/c4"), &json!({})).await;
    api.created(CONFIG_MAPS, &config_map("c3a")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = api.get(&format!("{CONFIG_MAPS}?limit=10&continue={token}")).await.body;
    assert_eq!(names(&second), ["c3", "c4", "c5", "c6"]);
    assert_eq!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    let now = api.get(CONFIG_MAPS).await.body;
    assert_eq!(names(&now), ["c0", "c1", "c2", "c3", "c3a", "c5", "c6"]);

    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact =
        api.get(&format!("{CONFIG_MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact")).await.body;
    assert_eq!(names(&exact), ["c0", "c1", "c2", "c3", "c4", "c5", "c6"]);
    // By kubectl, for kube-rs tries again and again, as it should.
    let future =
        api.run_kubectl(&["get", "--raw", &format!("{CONFIG_MAPS}?resourceVersion=99999")], &[]).await;
    assert!(text(&future.stderr).contains("Too large resource version"), "{}", text(&future.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_metadata_on_request() {
    let api = Api::start().await;
    api.created(PODS, &pod("a")).await;
    let get = async |accept: &str, path: &str| {
        api.send(Method::GET, path, &[("accept", accept)], Vec::new()).await.body
    };
    let table = get("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", PODS).await;
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["columnDefinitions"][1]["name"], "Ready");
    assert_eq!(
        table["rows"][0]["cells"].as_array().unwrap()[..3],
        [json!("a"), json!("0/1"), json!("Pending")]
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let whole =
        get("application/json;as=Table;v=v1;g=meta.k8s.io", &format!("{PODS}/a?includeObject=Object")).await;
    assert_eq!(whole["rows"][0]["object"]["kind"], "Pod");
    let partial = get("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", PODS).await;
    assert_eq!(
        (&partial["kind"], &partial["items"][0]["spec"]),
        (&json!("PartialObjectMetadataList"), &Value::Null)
    );
    let fallback = get("application/vnd.kubernetes.protobuf,application/json", PODS).await;
    assert_eq!(fallback["kind"], "PodList");
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_tells_every_kind() {
    let api = Api::start().await;
    let core = api.get("/api/v1").await.body;
    let pods = core["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods").unwrap();
    assert_eq!(pods["shortNames"], json!(["po"]));
    let groups = api.get("/apis").await.body;
    for group in groups["groups"].as_array().unwrap() {
        let path = format!("/apis/{}", group["preferredVersion"]["groupVersion"].as_str().unwrap());
        assert_eq!(api.get(&path).await.body["kind"], "APIResourceList", "{path}");
        assert_eq!(api.get(&format!("/openapi/v3{path}")).await.body["openapi"], "3.0.0", "{path}");
    }
    assert_eq!(api.get("/openapi/v2").await.body["swagger"], "2.0");
    assert_eq!(api.get("/version").await.body["major"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_have_two_faces() {
    let api = Api::start().await;
    let event = json!({
        "metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
        "note": "hello", "reason": "Tested", "type": "Normal", "action": "Test",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "t", "reportingInstance": "i",
    });
    api.created("/apis/events.k8s.io/v1/namespaces/default/events", &event).await;
    let path = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp";
    let core = api.get(path).await.body["items"][0].clone();
    assert_eq!((&core["apiVersion"], &core["message"]), (&json!("v1"), &json!("hello")));
    let new = api.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.body;
    assert_eq!((&new["apiVersion"], &new["note"]), (&json!("events.k8s.io/v1"), &json!("hello")));
}
