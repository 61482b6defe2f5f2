//! The process ends with an error when its storage fails: whoever supervises it can then act.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A controller whose files may not grow beyond 4 or 8 MiB, as the shell counts; killed when dropped.
struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended by itself already.
        if self.0.kill().is_ok() {
            self.0.wait().expect("a killed child can be waited for");
        }
    }
}

fn start(folder: &str) -> Controller {
    let command = "trap '' XFSZ; ulimit -f 8192; exec \"$@\"";
    let child = Command::new("sh")
        .args(["-c", command, "sh", env!("CARGO_BIN_EXE_quilla-controller"), "--data-dir", folder])
        .args(["--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .spawn();
    Controller(child.expect("sh runs"))
}

/// Asks again until there is an answer.
async fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {DEADLINE:?}");
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test]
async fn a_failed_storage_ends_the_process() {
    let folder = tempfile::tempdir().expect("folder");
    let mut controller = start(folder.path().to_str().expect("utf-8"));
    let mut stderr = controller.0.stderr.take().expect("piped");
    let log = std::thread::spawn(move || std::io::read_to_string(&mut stderr).expect("utf-8"));
    let path = folder.path().join("admin.kubeconfig");
    let kubeconfig = wait_for("kubeconfig", || Kubeconfig::read_from(&path).ok()).await;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let api: Api<ConfigMap> =
        Api::namespaced(Client::try_from(config.expect("usable")).expect("client"), "default");
    for number in 0.. {
        assert!(number < 200, "the limit has no effect");
        let large = json!({"metadata": {"name": format!("c{number}")}, "data": {"k": "x".repeat(200_000)}});
        let large = serde_json::from_value(large).expect("well-typed");
        if api.create(&PostParams::default(), &large).await.is_err() {
            break;
        }
    }
    let status = wait_for("end", || controller.0.try_wait().expect("own child")).await;
    let log = log.join().expect("read");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("write to the apiserver's storage"), "{log}");
}
