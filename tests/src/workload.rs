//! Servers that people run, as containers of harness Pods: nginx, a name server, iperf3.
//!
//! [`PodBuilder::runs`](crate::pod::PodBuilder::runs) puts one into a Pod. Each serves one port and tells its Pod's
//! name, where its protocol has room for it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The name whose TXT record is the name of the Pod that answers.
pub const WHO: &str = "who.quilla.test";

/// A server by its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Answers `GET` with two words: the Pod's name and the caller's address.
    Nginx,
    /// dnsmasq, over UDP and TCP: see [`WHO`].
    Dns,
    /// Measures streams over TCP and datagrams over UDP; one client at a time.
    Iperf3,
}

impl Workload {
    /// The port that its container serves.
    pub fn port(self) -> u16 {
        match self {
            Self::Nginx => 8080,
            Self::Dns => 5353,
            Self::Iperf3 => 5201,
        }
    }

    /// The container of a Pod named `pod`; files of it go to `folder`.
    pub(crate) fn container(self, pod: &str, folder: &Path) -> Result<Value> {
        let port = self.port().to_string();
        let command: Vec<String> = match self {
            Self::Nginx => {
                let config = folder.join(format!("{pod}.nginx.conf"));
                fs::write(&config, nginx(pod, folder))
                    .with_context(|| format!("write {}", config.display()))?;
                vec!["nginx".to_owned(), "-c".to_owned(), config.display().to_string()]
            }
            Self::Dns => {
                let record = format!("--txt-record={WHO},{pod}");
                let fixed = [
                    "dnsmasq",
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                    "--user=root",
                    "--pid-file=",
                    "--log-facility=-",
                    "--port",
                ];
                fixed.into_iter().chain([port.as_str(), record.as_str()]).map(str::to_owned).collect()
            }
            Self::Iperf3 => ["iperf3", "--server", "--port", &port].map(str::to_owned).into(),
        };
        let ports = ["TCP", "UDP"].map(|protocol| {
            json!({"name": format!("port-{}", protocol.to_lowercase()), "containerPort": self.port(), "protocol": protocol})
        });
        Ok(json!({"name": "server", "image": "quilla/workload", "command": command, "ports": ports}))
    }
}

/// A server that keeps none of its files where an installed one does.
fn nginx(pod: &str, folder: &Path) -> String {
    let own = |name: &str| folder.join(format!("{pod}.{name}")).display().to_string();
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};", own(kind)));
    format!(
        "daemon off; user root; worker_processes 1; pid {}; error_log stderr;\n\
         events {{}}\n\
         http {{ access_log off; default_type text/plain; {}\n\
         server {{ listen 8080; listen [::]:8080 ipv6only=on;\n\
         location / {{ return 200 \"{pod} $remote_addr\\n\"; }} }} }}\n",
        own("pid"),
        places.join(" ")
    )
}
