//! A server for one test, and the clients that talk to it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use quilla_apiserver::{Admission, AdmitAll, Config, RunningServer, Server};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

const TOKEN: &str = "test-token";
/// No single step of a test takes longer unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Api {
    server: RunningServer,
    directory: TempDir,
    pub(crate) client: kube::Client,
}

/// An answer of the server, its body parsed where it is JSON.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
    pub(crate) warnings: Vec<String>,
}

impl Api {
    pub(crate) async fn start() -> Self {
        Self::with(Config::default(), Arc::new(AdmitAll)).await
    }

    pub(crate) async fn with(config: Config, admission: Arc<dyn Admission>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::on(directory, config, admission).await
    }

    async fn on(directory: TempDir, config: Config, admission: Arc<dyn Admission>) -> Self {
        let config = Config {
            data_dir: directory.path().join("data"),
            tokens: vec![(TOKEN.to_owned(), "tester".to_owned())],
            ..config
        };
        let server = Server::start(config, admission).await.expect("the server starts");
        let kubeconfig = server.kubeconfig(TOKEN, &format!("https://{}", server.local_addr()));
        std::fs::write(directory.path().join("kubeconfig"), &kubeconfig).expect("writing the kubeconfig");
        let client = client(&kubeconfig).await;
        Self { server, directory, client }
    }

    /// The same data, another process life.
    pub(crate) async fn restarted(self) -> Self {
        let Self { server, directory, client } = self;
        drop(client);
        server.shutdown().await;
        Self::on(directory, Config::default(), Arc::new(AdmitAll)).await
    }

    pub(crate) async fn client_with_token(&self, token: &str) -> kube::Client {
        client(&self.server.kubeconfig(token, &format!("https://{}", self.server.local_addr()))).await
    }

    pub(crate) fn server(&self) -> &RunningServer {
        &self.server
    }

    // === raw HTTP ===

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Vec::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body.to_string().into()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, &[("content-type", "application/json")], body.to_string().into()).await
    }

    pub(crate) async fn patch(&self, path: &str, format: &str, body: &Value) -> Answer {
        let media_type = format!("application/{format}");
        self.send(Method::PATCH, path, &[("content-type", &media_type)], body.to_string().into()).await
    }

    pub(crate) async fn delete(&self, path: &str, options: &Value) -> Answer {
        self.send(Method::DELETE, path, &[("content-type", "application/json")], options.to_string().into())
            .await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        send(&self.client, method, path, headers, body).await
    }

    /// Creates and returns what the server made of it.
    pub(crate) async fn created(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body).await;
        assert_eq!(answer.code, 201, "creating at {path}: {}", answer.body);
        answer.body
    }

    // === kubectl ===

    /// Standard output of a kubectl that must succeed.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.run_kubectl(arguments, &[]).await;
        assert!(output.status.success(), "kubectl {arguments:?} failed: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub(crate) async fn run_kubectl(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let run = self.kubectl_command(arguments).envs(environment.iter().copied()).output();
        tokio::time::timeout(PATIENCE, run)
            .await
            .unwrap_or_else(|_| panic!("kubectl {arguments:?} did not end within {PATIENCE:?}"))
            .expect("kubectl runs")
    }

    pub(crate) fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(kubectl());
        command
            .args(arguments)
            .env("KUBECONFIG", self.directory.path().join("kubeconfig"))
            .env("HOME", self.directory.path())
            .env_remove("KUBERNETES_MASTER")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Path of a file with this text.
    pub(crate) fn file(&self, name: &str, contents: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, contents).expect("writing a manifest");
        path.to_str().expect("temporary paths are UTF-8").to_owned()
    }
}

pub(crate) async fn send(
    client: &kube::Client,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body)).expect("a well-formed request");
    let response = tokio::time::timeout(PATIENCE, client.send(request))
        .await
        .unwrap_or_else(|_| panic!("no answer to {path} within {PATIENCE:?}"))
        .expect("the server answers");
    let code = response.status().as_u16();
    let warnings = response.headers().get_all("warning").iter();
    let warnings = warnings.map(|value| value.to_str().expect("ASCII").to_owned()).collect();
    let bytes = response.into_body().collect().await.expect("the whole body").to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(text(&bytes)));
    Answer { code, body, warnings }
}

async fn client(kubeconfig: &str) -> kube::Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("the kubeconfig is valid");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    kube::Client::try_from(config.expect("the kubeconfig is usable")).expect("a client")
}

fn kubectl() -> PathBuf {
    if let Some(named) = std::env::var_os("KUBECTL") {
        return PathBuf::from(named);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join("kubectl"))
        .find(|path| Path::is_file(path));
    found.expect("kubectl is needed: install it (`cargo xtask doctor` tells how) or name it in KUBECTL")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "main", "image": "registry.example/web:1"}]},
    })
}

pub(crate) fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"key": "value"}})
}

pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";
pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
