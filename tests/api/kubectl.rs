//! The real kubectl, as a person uses it.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::fixture::{Api, PATIENCE, text};

const MANIFEST: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: https, port: 443}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec:
  containers:
  - {name: main, image: 'registry.example/web:1', ports: [{containerPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {}}], ports: [{port: 8080, protocol: TCP}]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
---
apiVersion: v1
kind: Node
metadata: {name: n1}
";

async fn applied() -> (Api, String) {
    let api = Api::start().await;
    let manifest = api.file("manifest.yaml", MANIFEST);
    let output = api.kubectl(&["apply", "-f", &manifest]).await;
    assert_eq!(output.lines().filter(|line| line.ends_with(" created")).count(), 6, "{output}");
    (api, manifest)
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_then_changes_then_leaves_alone() {
    let (api, manifest) = applied().await;
    let again = api.kubectl(&["apply", "-f", &manifest]).await;
    assert_eq!(again.lines().filter(|line| line.ends_with(" unchanged")).count(), 6, "{again}");
    // The second port goes, the first one's target changes, a label comes: a three-way strategic merge.
    let changed = MANIFEST
        .replace("  - {name: https, port: 443}\n", "")
        .replace("targetPort: 8080", "targetPort: 9090");
    let changed = api.file("changed.yaml", &changed);
    let output = api.kubectl(&["apply", "-f", &changed]).await;
    assert!(output.contains("service/web configured"), "{output}");
    let service: Value =
        serde_json::from_str(&api.kubectl(&["get", "svc", "web", "-n", "shop", "-o", "json"]).await).unwrap();
    let ports = service["spec"]["ports"].as_array().unwrap();
    assert_eq!((ports.len(), &ports[0]["targetPort"]), (1, &serde_json::json!(9090)));
    let diff = api.run_kubectl(&["apply", "-f", &changed, "--dry-run=server"], &[]).await;
    assert!(text(&diff.stdout).contains("service/web unchanged (server dry run)"), "{}", text(&diff.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_validates_on_the_server() {
    let api = Api::start().await;
    let manifest =
        api.file("typo.yaml", "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, dada: {x: y}}");
    let refused = api.run_kubectl(&["apply", "-f", &manifest], &[]).await;
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("unknown field \"dada\""), "{}", text(&refused.stderr));
    let created = api.kubectl(&["create", "-f", &manifest, "--validate=ignore"]).await;
    assert_eq!(created, "configmap/a created\n");
}

/// What `kubectl get -o yaml` prints of several objects can be applied again, and is validated item by item.
#[tokio::test(flavor = "multi_thread")]
async fn apply_takes_a_list() {
    let api = Api::start().await;
    let item = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {x: one}}";
    let list = |item: &str| format!("{{apiVersion: v1, kind: List, items: [{item}]}}");
    let manifest = api.file("list.yaml", &list(item));
    assert_eq!(api.kubectl(&["apply", "-f", &manifest]).await, "configmap/a created\n");
    let printed = api.kubectl(&["get", "configmaps", "-o", "yaml"]).await;
    let printed = api.file("printed.yaml", &printed);
    assert!(api.kubectl(&["apply", "-f", &printed]).await.starts_with("configmap/a "), "applied again");
    let wrong = api.file("wrong.yaml", &list(&item.replace(", data", ", dada")));
    let refused = api.run_kubectl(&["apply", "-f", &wrong], &[]).await;
    assert!(text(&refused.stderr).contains("unknown field \"dada\""), "{}", text(&refused.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn get_shows_the_usual_columns() {
    let (api, _) = applied().await;
    for (arguments, header, row) in [
        (
            &["get", "pods", "-n", "shop", "-o", "wide"][..],
            "NAME READY STATUS RESTARTS AGE IP NODE",
            "web-1 0/1 Pending 0",
        ),
        (
            &["get", "svc", "-A"],
            "NAMESPACE NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE",
            "shop web ClusterIP <none> <none> 80/TCP,443/TCP",
        ),
        (&["get", "netpol", "-n", "shop"], "NAME POD-SELECTOR AGE", "only-web app=web"),
        (
            &["get", "endpointslices", "-n", "shop"],
            "NAME ADDRESSTYPE PORTS ENDPOINTS AGE",
            "web-x IPv4 8080 10.0.0.1",
        ),
        (&["get", "no"], "NAME STATUS ROLES AGE VERSION", "n1 Unknown <none>"),
        (&["get", "ns", "shop"], "NAME STATUS AGE", "shop Active"),
    ] {
        let output = api.kubectl(arguments).await;
        let lines: Vec<String> =
            output.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert!(lines[0].starts_with(header), "{arguments:?}: {output}");
        assert!(lines[1].starts_with(row), "{arguments:?}: {output}");
    }
    let yaml = api.kubectl(&["get", "pod", "web-1", "-n", "shop", "-o", "yaml"]).await;
    assert!(yaml.starts_with("apiVersion: v1\nkind: Pod\n"), "{yaml}");
    let all = api.kubectl(&["get", "all", "-n", "shop", "-o", "name"]).await;
    assert_eq!(all, "pod/web-1\nservice/web\n");
    let selected = api
        .kubectl(&[
            "get",
            "pods",
            "-A",
            "-l",
            "app in (web)",
            "--field-selector",
            "status.phase=Pending",
            "-o",
            "name",
        ])
        .await;
    assert_eq!(selected, "pod/web-1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn describe_tells_of_pods_services_and_nodes() {
    let (api, _) = applied().await;
    for (arguments, part) in [
        (["pod", "web-1"], "registry.example/web:1"),
        (["service", "web"], "Endpoints:                10.0.0.1:8080"),
        (["networkpolicy", "only-web"], "PodSelector:     app=web"),
        (["endpointslice", "web-x"], "10.0.0.1"),
        (["namespace", "shop"], "Active"),
        (["node", "n1"], "Non-terminated Pods"),
    ] {
        let output = api.kubectl(&[&["describe", "-n", "shop"], &arguments[..]].concat()).await;
        assert!(output.contains(part), "{arguments:?}: {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patch_label_annotate_edit() {
    let (api, _) = applied().await;
    let shop = |arguments: &[&'static str]| [&["-n", "shop"], arguments].concat();
    for arguments in [
        shop(&["label", "pod", "web-1", "tier=front"]),
        shop(&["annotate", "pod", "web-1", "note=hello"]),
        shop(&[
            "patch",
            "pod",
            "web-1",
            "--type=strategic",
            "-p",
            r#"{"spec":{"containers":[{"name":"main","image":"i:2"}]}}"#,
        ]),
        shop(&["patch", "pod", "web-1", "--type=merge", "-p", r#"{"metadata":{"labels":{"m":"1"}}}"#]),
        shop(&[
            "patch",
            "pod",
            "web-1",
            "--type=json",
            "-p",
            r#"[{"op":"add","path":"/metadata/labels/j","value":"1"}]"#,
        ]),
        shop(&[
            "patch",
            "pod",
            "web-1",
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"phase":"Running"}}"#,
        ]),
        shop(&["label", "pod", "web-1", "m-"]),
    ] {
        api.kubectl(&arguments).await;
    }
    let edited =
        api.run_kubectl(&shop(&["edit", "pod", "web-1"]), &[("KUBE_EDITOR", "sed -i s/hello/edited/")]).await;
    assert_eq!(text(&edited.stdout), "pod/web-1 edited\n", "{}", text(&edited.stderr));
    let pod: Value =
        serde_json::from_str(&api.kubectl(&shop(&["get", "pod", "web-1", "-o", "json"])).await).unwrap();
    assert_eq!(pod["metadata"]["labels"], serde_json::json!({"app": "web", "tier": "front", "j": "1"}));
    assert_eq!(pod["metadata"]["annotations"]["note"], "edited");
    assert_eq!(pod["spec"]["containers"][0]["image"], "i:2");
    assert_eq!(pod["spec"]["containers"][0]["ports"][0]["containerPort"], 8080);
    assert_eq!(pod["status"]["phase"], "Running");
}

#[tokio::test(flavor = "multi_thread")]
async fn get_watch_and_wait_see_changes() {
    let (api, _) = applied().await;
    let mut watching = api
        .kubectl_command(&["-n", "shop", "get", "pods", "-w", "--no-headers"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut line = async || {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("a line in time").unwrap();
        line.expect("kubectl goes on watching").split_whitespace().take(3).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line().await, "web-1 0/1 Pending");
    let ready = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    let wait = ["-n", "shop", "wait", "pod/web-1", "--timeout=20s"];
    let patch = ["-n", "shop", "patch", "pod", "web-1", "--subresource=status", "-p", ready];
    let until_ready = [&wait[..], &["--for=condition=Ready"]].concat();
    let (waited, _) = tokio::join!(api.kubectl(&until_ready), api.kubectl(&patch));
    assert_eq!(waited, "pod/web-1 condition met\n");
    assert_eq!(line().await, "web-1 0/1 Running");
    let until_deleted = [&wait[..], &["--for=delete"]].concat();
    let delete = ["-n", "shop", "delete", "pod", "web-1"];
    // It says "condition met" only if it still saw the Pod; that it ends well is what counts.
    tokio::join!(api.kubectl(&until_deleted), api.kubectl(&delete));
    watching.kill().await.expect("kubectl can be stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_waits_until_it_is_done() {
    let (api, manifest) = applied().await;
    let dry = api.kubectl(&["delete", "-f", &manifest, "--dry-run=server"]).await;
    assert!(dry.contains("pod \"web-1\""), "{dry}");
    assert!(api.kubectl(&["delete", "ns", "shop"]).await.contains("namespace \"shop\" deleted"));
    // Some versions of kubectl look further and name the namespace rather than the Pod.
    let missing = api.run_kubectl(&["get", "pod", "web-1", "-n", "shop"], &[]).await;
    assert!(text(&missing.stderr).starts_with("Error from server (NotFound): "), "{}", text(&missing.stderr));
    assert!(api.kubectl(&["api-resources"]).await.contains("netpol"));
    assert!(api.kubectl(&["version"]).await.contains("Server Version: v1."));
}
