//! Bad input: each gets its `Status`, with the code and reason clients switch on.

use http::Method;
use serde_json::json;

use crate::fixture::{Api, CONFIG_MAPS, PODS, config_map, pod, send};

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_token_sees_health_only() {
    let api = Api::start().await;
    let stranger = api.client_with_token("wrong").await;
    let answer = send(&stranger, Method::GET, PODS, &[], Vec::new()).await;
    assert_eq!((answer.code, &answer.body["reason"]), (401, &json!("Unauthorized")));
    for path in ["/healthz", "/livez", "/readyz"] {
        let answer = send(&stranger, Method::GET, path, &[], Vec::new()).await;
        assert_eq!((answer.code, answer.body), (200, json!("ok")), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests() {
    let api = Api::start().await;
    let json_type = [("content-type", "application/json")];
    let huge = vec![b' '; 3 * 1024 * 1024 + 1];
    for (method, path, headers, body, code, reason) in [
        (Method::POST, PODS, &json_type[..], b"{".to_vec(), 400, "BadRequest"),
        (Method::POST, PODS, &json_type, b"[]".to_vec(), 400, "BadRequest"),
        (Method::POST, PODS, &[("content-type", "text/csv")], b"{}".to_vec(), 415, "UnsupportedMediaType"),
        (Method::POST, PODS, &json_type, huge, 413, "RequestEntityTooLarge"),
        (Method::GET, "/api/v1/frobs", &[], Vec::new(), 404, "NotFound"),
        (Method::GET, "/apis/frob.io/v1", &[], Vec::new(), 404, "NotFound"),
        (Method::PUT, PODS, &json_type, b"{}".to_vec(), 405, "MethodNotAllowed"),
        (Method::GET, PODS, &[("accept", "text/html")], Vec::new(), 406, "NotAcceptable"),
        (Method::GET, "/api/v1/pods?labelSelector=a+is+b", &[], Vec::new(), 400, "BadRequest"),
        (Method::GET, "/api/v1/pods?fieldSelector=spec.x%3D1", &[], Vec::new(), 400, "BadRequest"),
        (Method::GET, "/api/v1/pods?limit=many", &[], Vec::new(), 400, "BadRequest"),
        (Method::GET, "/api/v1/pods?continue=x", &[], Vec::new(), 400, "BadRequest"),
    ] {
        let answer = api.send(method.clone(), path, headers, body).await;
        assert_eq!(
            (answer.code, &answer.body["reason"]),
            (code, &json!(reason)),
            "{method} {path}: {}",
            answer.body
        );
        assert_eq!((&answer.body["kind"], &answer.body["code"]), (&json!("Status"), &json!(code)), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_cannot_be() {
    let api = Api::start().await;
    let mut wrong_type = pod("a");
    wrong_type["spec"]["containers"][0]["name"] = json!(7);
    let mut other_kind = pod("a");
    other_kind["kind"] = json!("Service");
    let mut other_namespace = pod("a");
    other_namespace["metadata"]["namespace"] = json!("kube-system");
    let mut bad_label = pod("a");
    bad_label["metadata"]["labels"]["app"] = json!("not a label");
    for (object, code, part) in [
        (wrong_type, 400, "spec.containers[0].name"),
        (other_kind, 400, "expects a Pod"),
        (other_namespace, 400, "namespace"),
        (pod("Not_DNS"), 422, "metadata.name"),
        (bad_label, 422, "metadata.labels"),
        (
            json!({"spec": {"containers": [{"name": "c", "image": "i"}]}}),
            422,
            "name or generateName is required",
        ),
        (
            json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}),
            422,
            "spec.containers[0].image",
        ),
        (json!({"metadata": {"name": "a"}}), 422, "spec.containers"),
    ] {
        let answer = api.post(PODS, &object).await;
        let message = answer.body["message"].as_str().unwrap_or_default();
        assert_eq!(answer.code, code, "{message}");
        assert!(message.contains(part), "{part:?} is not in {message:?}");
        if code == 422 {
            let causes = answer.body["details"]["causes"].as_array().expect("causes");
            assert!(
                causes.iter().all(|cause| cause["field"].is_string() && cause["reason"].is_string()),
                "{causes:?}"
            );
        }
    }
    let missing = api.post("/api/v1/namespaces/nowhere/pods", &pod("a")).await;
    assert_eq!((missing.code, &missing.body["details"]["kind"]), (404, &json!("namespaces")));
    let missing = api.get(&format!("{PODS}/a")).await;
    assert_eq!(missing.body["message"], "pods \"a\" not found");
    assert_eq!(missing.body["details"], json!({"name": "a", "kind": "pods"}));
    api.created(CONFIG_MAPS, &config_map("twice")).await;
    assert_eq!(api.post(CONFIG_MAPS, &config_map("twice")).await.body["reason"], "AlreadyExists");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_as_the_client_wishes() {
    let api = Api::start().await;
    let mut object = pod("a");
    object["spec"]["frob"] = json!(1);
    let at = |mode: &str| format!("{PODS}?dryRun=All&fieldValidation={mode}");
    let strict = api.post(&at("Strict"), &object).await;
    assert_eq!(strict.code, 400);
    assert!(
        strict.body["message"].as_str().unwrap().contains("unknown field \"spec.frob\""),
        "{}",
        strict.body
    );
    let warned = api.post(&at("Warn"), &object).await;
    assert_eq!(
        (warned.code, warned.warnings.as_slice()),
        (201, &["299 - \"unknown field \\\"spec.frob\\\"\"".to_owned()][..])
    );
    let ignored = api.post(&at("Ignore"), &object).await;
    assert!(ignored.warnings.is_empty() && ignored.body["spec"]["frob"].is_null(), "{ignored:?}");
}

/// What `kubectl create configmap` and its like send.
#[tokio::test(flavor = "multi_thread")]
async fn protobuf_is_refused_with_the_way_round_it() {
    let api = Api::start().await;
    let protobuf = [("content-type", "application/vnd.kubernetes.protobuf")];
    let answer = api.send(Method::POST, PODS, &protobuf, b"k8s\0".to_vec()).await;
    assert_eq!((answer.code, &answer.body["reason"]), (415, &json!("UnsupportedMediaType")));
    let message = answer.body["message"].as_str().unwrap();
    assert!(message.contains("--dry-run=client -o json") && message.contains("create -f -"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_side_apply_is_refused_clearly() {
    let api = Api::start().await;
    let answer = api.patch(&format!("{PODS}/a"), "apply-patch+yaml", &pod("a")).await;
    assert_eq!(answer.code, 415);
    assert!(answer.body["message"].as_str().unwrap().contains("server-side apply is not supported"));
    let unknown = api.patch(&format!("{PODS}/a"), "frob", &json!({})).await;
    assert_eq!(unknown.code, 415);
}
