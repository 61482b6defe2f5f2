//! Services and EndpointSlices through kubectl, as an operator gets them wrong or changes them.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use quilla_controller::app::App;
use quilla_controller::config::Config;
use serde_json::{Value, json};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

struct Cluster {
    folder: TempDir,
    app: App,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().to_str().expect("utf-8");
        let arguments = ["controller", "--data-dir", path, "--listen", "127.0.0.1:0"];
        let config = Config::parse_from(arguments.into_iter().chain(["--health-listen", "127.0.0.1:0"]));
        Self { app: App::start(config).await.expect("starts"), folder }
    }

    fn kubectl(&self, arguments: &[&str], input: &Value) -> Output {
        let mut child = Command::new(std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into()))
            .args(["--request-timeout", "20s"])
            .args(arguments)
            .env("KUBECONFIG", self.folder.path().join("admin.kubeconfig"))
            .env("HOME", self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is needed: install it or name it in KUBECTL");
        let mut stdin = child.stdin.take().expect("piped");
        // A kubectl that reads nothing may have ended already.
        if let Err(error) = stdin.write_all(input.to_string().as_bytes()) {
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{error}");
        }
        drop(stdin);
        child.wait_with_output().expect("kubectl ends")
    }

    fn done(&self, arguments: &[&str], input: &Value) -> String {
        let output = self.kubectl(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("utf-8")
    }

    /// What kubectl says of an object that must not be accepted.
    fn refused(&self, object: &Value) -> String {
        let output = self.kubectl(&["create", "-f", "-"], object);
        assert!(!output.status.success(), "accepted: {object}");
        String::from_utf8(output.stderr).expect("utf-8")
    }

    async fn eventually(&self, arguments: &[&str], expected: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = self.done(arguments, &Value::Null);
            if found == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{arguments:?}: expected {expected}, last seen {found}");
            tokio::time::sleep(POLL).await;
        }
    }
}

fn service(ports: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": ports}})
}

fn slice(address_type: &str, address: &str) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "own"},
        "addressType": address_type, "endpoints": [{"addresses": [address]}], "ports": [{"port": 80}]})
}

/// S51: the address stays through any change of the ports, and the slices follow them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_service_keeps_its_address_while_its_ports_change() {
    let cluster = Cluster::start().await;
    let ports = json!([{"name": "dns", "containerPort": 5353, "protocol": "UDP"}]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "none", "ports": ports}]}});
    cluster.done(&["create", "-f", "-"], &pod);
    let status = json!({"status": {"phase": "Running", "podIP": "10.244.9.1", "podIPs": [{"ip": "10.244.9.1"}],
        "conditions": [{"type": "Ready", "status": "True"}]}});
    let status = status.to_string();
    cluster.done(&["patch", "pod", "p", "--subresource=status", "--type=merge", "-p", &status], &Value::Null);
    cluster.done(&["apply", "-f", "-"], &service(&json!([{"port": 53, "targetPort": 8053}])));
    let address = ["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"];
    let before = cluster.done(&address, &Value::Null);
    assert!(before.starts_with("10.96."), "{before}");
    let slices = [
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=web",
        "-o",
        "jsonpath={range .items[*]}{.ports[0].protocol}/{.ports[0].port} {.endpoints[0].addresses[0]}{end}",
    ];
    cluster.eventually(&slices, "TCP/8053 10.244.9.1").await;
    let changed = service(&json!([{"port": 53, "protocol": "UDP", "targetPort": "dns"}]));
    cluster.done(&["apply", "-f", "-"], &changed);
    cluster.eventually(&slices, "UDP/5353 10.244.9.1").await;
    assert_eq!(cluster.done(&address, &Value::Null), before);
    cluster.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_makes_no_sense_is_refused_with_its_field() {
    let cluster = Cluster::start().await;
    let mut address = service(&json!([{"port": 80}]));
    address["spec"]["clusterIP"] = json!("10.96.0.300");
    let refused = [
        (service(&json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}])), "spec.ports[1]: Duplicate"),
        (
            service(&json!([{"name": "a", "port": 80}, {"name": "a", "port": 81}])),
            "spec.ports[1].name: Duplicate",
        ),
        (service(&json!([{"port": 0}])), "spec.ports[0].port: Invalid"),
        (service(&json!([{"port": 80, "targetPort": 65536}])), "spec.ports[0].targetPort: Invalid"),
        (service(&json!([{"port": 80, "protocol": "ICMP"}])), "spec.ports[0].protocol: Unsupported"),
        (address, "spec.clusterIPs[0]: Invalid"),
        (slice("IPv4", "10.0.0"), "endpoints[0].addresses[0]: Invalid"),
        (slice("IPv4", "010.0.0.1"), "endpoints[0].addresses[0]: Invalid"),
        (slice("IPv6", "10.0.0.1"), "endpoints[0].addresses[0]: Invalid"),
        (slice("IPv4", "127.0.0.1"), "endpoints[0].addresses[0]: Invalid"),
        (slice("IPv4", "224.0.0.1"), "endpoints[0].addresses[0]: Invalid"),
        (slice("IPv4", "169.254.0.1"), "endpoints[0].addresses[0]: Invalid"),
        (slice("IPv6", "::1"), "endpoints[0].addresses[0]: Invalid"),
        (slice("IPv6", "ff02::1"), "endpoints[0].addresses[0]: Invalid"),
        (slice("DNS", "10.0.0.1"), "addressType: Unsupported"),
    ];
    for (object, cause) in refused {
        let told = cluster.refused(&object);
        assert!(told.contains(cause), "expected {cause:?} for {object}, got {told}");
    }
    cluster.app.shutdown().await;
}

/// KEP-1693: whoever writes a policy, or tries to, is told each time that nothing enforces it; of other kinds, and of those
/// who read or delete one, nothing is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_policy_that_nothing_enforces_is_stored_with_a_warning() {
    let cluster = Cluster::start().await;
    let policy = |ingress: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"},
            "spec": {"podSelector": {"matchLabels": {"app": ingress}}, "policyTypes": ["Ingress"]}})
    };
    let told = |arguments: &[&str], input: &Value| {
        let output = cluster.kubectl(arguments, input);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {told}");
        told
    };
    let warned = |told: String| told.lines().filter(|line| line.starts_with("Warning: ")).count();
    let apply = ["apply", "-f", "-"];
    let first = told(&["create", "--save-config", "--dry-run=server", "-f", "-"], &policy("db"));
    assert_eq!(first, "Warning: NetworkPolicies are stored but not enforced yet: no traffic is restricted\n");
    for app in ["db", "web"] {
        assert_eq!(warned(told(&apply, &policy(app))), 1, "{app}");
    }
    assert_eq!(warned(told(&["label", "networkpolicy", "deny", "a=b"], &Value::Null)), 1);
    assert_eq!(told(&["get", "networkpolicy", "deny"], &Value::Null), "");
    assert_eq!(told(&["delete", "networkpolicy", "deny"], &Value::Null), "");
    assert_eq!(told(&apply, &service(&json!([{"port": 80}]))), "");
    cluster.app.shutdown().await;
}

/// kubectl's typed commands send protobuf (those of older versions JSON) and do not fall back: what works with all is
/// to let it print the object, and to create that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_kubectl_generates_can_be_created() {
    let cluster = Cluster::start().await;
    let generate = ["create", "service", "clusterip", "gen", "--tcp=80:8080"];
    let told = cluster.kubectl(&generate, &Value::Null);
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.is_empty() || told.contains("--dry-run=client -o json"), "{told}");
    let printed = cluster.done(&[&generate[..], &["--dry-run=client", "-o", "json"]].concat(), &Value::Null);
    let mut printed: Value = serde_json::from_str(&printed).expect("JSON");
    printed["metadata"]["name"] = json!("printed");
    cluster.done(&["create", "-f", "-"], &printed);
    cluster.app.shutdown().await;
}
