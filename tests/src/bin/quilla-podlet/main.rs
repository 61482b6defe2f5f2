//! A kubelet in miniature for harness nodes: registers its node and runs the Pods bound to it.
//!
//! Runs in the node's network namespace. Pods become network namespaces wired by CNI plugins, as a container runtime
//! does it, and their containers become processes of `quilla-pod`. Invariant: it knows the network only through the
//! plugins' results.

mod container;
mod probe;
mod registration;
mod status;
mod watch;
mod worker;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use quilla_tests::cni::Network;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Parser)]
struct Options {
    /// Name of the node.
    #[arg(long)]
    node_name: String,
    /// Addresses of the node.
    #[arg(long = "address", required = true)]
    addresses: Vec<IpAddr>,
    /// Zone of the node.
    #[arg(long, default_value = "zone-a")]
    zone: String,
    /// How to reach the apiserver.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Network configuration list.
    #[arg(long)]
    cni_conf: PathBuf,
    /// Folder with the plugins.
    #[arg(long)]
    cni_bin: PathBuf,
    /// Cgroup in which the Pods' processes run.
    #[arg(long)]
    cgroup: PathBuf,
    /// The program that every container is.
    #[arg(long)]
    server: PathBuf,
    /// Before the names of the Pods' network namespaces.
    #[arg(long)]
    netns_prefix: String,
    /// Where the containers' output goes.
    #[arg(long)]
    log_dir: PathBuf,
}

/// What all Pods of the node share.
struct Node {
    name: String,
    addresses: Vec<IpAddr>,
    zone: String,
    client: Client,
    network: Network,
    cgroup: PathBuf,
    server: PathBuf,
    netns_prefix: String,
    log_dir: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    let options = Options::parse();
    let node = Arc::new(node(options).await?);
    tokio::try_join!(registration::keep(&node), watch::run(&node)).map(drop)
}

async fn node(options: Options) -> Result<Node> {
    let Options {
        node_name,
        addresses,
        zone,
        kubeconfig,
        cni_conf,
        cni_bin,
        cgroup,
        server,
        netns_prefix,
        log_dir,
    } = options;
    let kubeconfig = Kubeconfig::read_from(kubeconfig).context("read kubeconfig")?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let client = Client::try_from(config.context("use kubeconfig")?).context("make a client")?;
    let network = Network::read(&cni_conf, &cni_bin)?;
    Ok(Node { name: node_name, addresses, zone, client, network, cgroup, server, netns_prefix, log_dir })
}
