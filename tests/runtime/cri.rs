//! The part of the container runtime interface (CRI v1) that a Pod's life needs, over a unix socket.
//!
//! Messages hold the fields that are used here, with the numbers of `runtime/v1/api.proto`; others are skipped.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// Longer than any call takes; the runtime has its own limits below this.
const LIMIT: Duration = Duration::from_mins(1);

/// A connection, with the calls as plain functions.
#[derive(Debug)]
pub(crate) struct Client {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
    #[prost(uint32, tag = "4")]
    pub(crate) attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PortMapping {
    /// 0 is TCP.
    #[prost(int32, tag = "1")]
    pub(crate) protocol: i32,
    #[prost(int32, tag = "2")]
    pub(crate) container_port: i32,
    #[prost(int32, tag = "3")]
    pub(crate) host_port: i32,
    #[prost(string, tag = "4")]
    pub(crate) host_ip: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<PodMetadata>,
    #[prost(string, tag = "2")]
    pub(crate) hostname: String,
    #[prost(message, repeated, tag = "5")]
    pub(crate) port_mappings: Vec<PortMapping>,
    #[prost(map = "string, string", tag = "7")]
    pub(crate) annotations: HashMap<String, String>,
    /// Empty, but containerd wants it to be there.
    #[prost(message, optional, tag = "8")]
    pub(crate) linux: Option<Empty>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

/// An answer or a request that is one identifier.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodStatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<PodStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodStatus {
    /// 0 is ready.
    #[prost(int32, tag = "3")]
    pub(crate) state: i32,
    #[prost(message, optional, tag = "5")]
    network: Option<PodNetwork>,
}

#[derive(Clone, PartialEq, Message)]
struct PodNetwork {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    additional_ips: Vec<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<Id>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, optional, tag = "15")]
    linux: Option<Empty>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSync {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    /// In seconds.
    #[prost(int64, tag = "3")]
    timeout: i64,
}

/// What a program in a container did.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Executed {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub(crate) exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, Message)]
struct Condition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    met: bool,
    #[prost(string, tag = "4")]
    message: String,
}

impl PodStatus {
    /// Addresses in the runtime's order.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let network = self.network.iter();
        let all = network.flat_map(|network| {
            let more = network.additional_ips.iter().map(|address| address.id.clone());
            std::iter::once(network.ip.clone()).chain(more)
        });
        all.filter(|address| !address.is_empty()).collect()
    }
}

impl Client {
    /// Connects to a runtime that listens already.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
        let uri = format!("unix:{}", socket.display());
        let endpoint = Endpoint::from_shared(uri).context("address of the runtime")?.timeout(LIMIT);
        let channel = runtime.block_on(endpoint.connect()).context("connect to the runtime")?;
        Ok(Self { runtime, channel })
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{method}").parse().context("path")?;
        let answer = self.runtime.block_on(async {
            let mut grpc = Grpc::new(self.channel.clone());
            grpc.ready().await.context("the runtime is gone")?;
            let answer = grpc.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await;
            answer.map_err(|status| anyhow::anyhow!("{method}: {}: {}", status.code(), status.message()))
        })?;
        Ok(answer.into_inner())
    }

    /// Fails as long as the runtime has no network to attach Pods to.
    pub(crate) fn require_network(&self) -> Result<()> {
        let answer: StatusAnswer = self.call("Status", Empty {})?;
        let conditions = answer.status.unwrap_or_default().conditions;
        let network = conditions.iter().find(|condition| condition.kind == "NetworkReady");
        let network = network.context("no word about the network")?;
        ensure!(network.met, "no network: {}", network.message);
        Ok(())
    }

    /// `RunPodSandbox`; the Pod's identifier.
    pub(crate) fn run_pod(&self, config: &PodConfig) -> Result<String> {
        let answer: Id = self.call("RunPodSandbox", RunPod { config: Some(config.clone()) })?;
        Ok(answer.id)
    }

    /// `PodSandboxStatus`.
    pub(crate) fn pod_status(&self, pod: &str) -> Result<PodStatus> {
        let answer: PodStatusAnswer = self.call("PodSandboxStatus", Id { id: pod.to_owned() })?;
        answer.status.context("no status")
    }

    /// `StopPodSandbox`.
    pub(crate) fn stop_pod(&self, pod: &str) -> Result<()> {
        self.call::<_, Empty>("StopPodSandbox", Id { id: pod.to_owned() }).map(drop)
    }

    /// `RemovePodSandbox`.
    pub(crate) fn remove_pod(&self, pod: &str) -> Result<()> {
        self.call::<_, Empty>("RemovePodSandbox", Id { id: pod.to_owned() }).map(drop)
    }

    /// `CreateContainer` and `StartContainer`; the container's identifier.
    pub(crate) fn start_container(
        &self,
        pod: &str,
        of: &PodConfig,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> Result<String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned() }),
            image: Some(Id { id: image.to_owned() }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            linux: Some(Empty {}),
        };
        let create = CreateContainer {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(of.clone()),
        };
        let created: Id = self.call("CreateContainer", create)?;
        self.call::<_, Empty>("StartContainer", created.clone())?;
        Ok(created.id)
    }

    /// `ExecSync`.
    pub(crate) fn exec(&self, container: &str, command: &[&str]) -> Result<Executed> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        self.call("ExecSync", ExecSync { container_id: container.to_owned(), cmd, timeout: 20 })
    }

    /// What a program that must succeed printed.
    pub(crate) fn output(&self, container: &str, command: &[&str]) -> Result<String> {
        let executed = self.exec(container, command)?;
        ensure!(executed.exit_code == 0, "{command:?}: {}", executed.words());
        Ok(executed.words())
    }
}

impl Executed {
    /// Standard output, then standard error.
    pub(crate) fn words(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout), String::from_utf8_lossy(&self.stderr))
    }
}
