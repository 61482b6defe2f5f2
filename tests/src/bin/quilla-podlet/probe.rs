//! Readiness probes, from the node to the Pod's address as a kubelet sends them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe as Spec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[derive(Clone, Debug)]
pub(crate) struct Probe {
    port: u16,
    /// `None` only connects.
    path: Option<String>,
    patience: Duration,
}

impl Probe {
    /// `None` when the probe is of a kind that only a container can answer.
    pub(crate) fn of(spec: &Spec, container: &Container) -> Option<Self> {
        let patience =
            Duration::from_secs(spec.timeout_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(1));
        if let Some(get) = &spec.http_get {
            let path = get.path.clone().unwrap_or_else(|| "/".to_owned());
            return Some(Self { port: number(&get.port, container)?, path: Some(path), patience });
        }
        let socket = spec.tcp_socket.as_ref()?;
        Some(Self { port: number(&socket.port, container)?, path: None, patience })
    }

    pub(crate) async fn succeeds(&self, address: IpAddr) -> bool {
        let exchange = self.exchange(SocketAddr::new(address, self.port));
        timeout(self.patience, exchange).await.is_ok_and(|outcome| outcome.unwrap_or(false))
    }

    async fn exchange(&self, to: SocketAddr) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(to).await?;
        let Some(path) = &self.path else { return Ok(true) };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        Ok(answer.starts_with(b"HTTP/1.1 2") || answer.starts_with(b"HTTP/1.1 3"))
    }
}

fn number(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports.find(|port| port.name.as_ref() == Some(name))?.container_port
        }
    };
    u16::try_from(number).ok()
}
