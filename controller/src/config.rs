//! The command line and the environment. Read once by `main`; nothing else reads either.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;
use ipnet::IpNet;

use crate::error::Error;
use crate::service::NodePortRange;
use crate::subnet::Subnets;

/// Cluster-wide part of Quilla: Pod CIDRs for nodes and, embedded, a whole control plane.
///
/// Without --kubeconfig it starts its own Kubernetes-compatible apiserver and everything a cluster of Services and Pods
/// needs of one: cluster IPs, node ports, EndpointSlices, nodes for Pods. With --kubeconfig it only gives the nodes of
/// that cluster their Pod CIDRs.
#[derive(Clone, Debug, Parser)]
#[command(name = "quilla-controller", version)]
pub struct Config {
    /// Run the embedded apiserver; this is the default
    #[arg(long, conflicts_with = "kubeconfig")]
    pub embedded: bool,
    /// Serve the cluster of this kubeconfig instead
    #[arg(long, env = "QUILLA_CONTROLLER_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Where the embedded apiserver keeps its storage, its certificates and admin.kubeconfig
    #[arg(long, env = "QUILLA_CONTROLLER_DATA_DIR", default_value = "/var/lib/quilla/controller")]
    pub data_dir: PathBuf,
    /// Where the embedded apiserver listens
    #[arg(long, env = "QUILLA_CONTROLLER_LISTEN", default_value = "127.0.0.1:6443")]
    pub listen: SocketAddr,
    /// Bearer tokens, one `token,user` a line; made with one token if absent [default: tokens in the data directory]
    #[arg(long, env = "QUILLA_CONTROLLER_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Pod addresses of the cluster, one prefix a family
    #[arg(long = "cluster-cidr", env = "QUILLA_CONTROLLER_CLUSTER_CIDRS", value_delimiter = ',',
          default_values = ["10.244.0.0/16", "fd00:10:244::/48"])]
    pub cluster_cidrs: Vec<IpNet>,
    /// Prefix length of a node's IPv4 Pod CIDR
    #[arg(long, env = "QUILLA_CONTROLLER_NODE_CIDR_MASK_V4", default_value_t = 24)]
    pub node_cidr_mask_v4: u8,
    /// Prefix length of a node's IPv6 Pod CIDR
    #[arg(long, env = "QUILLA_CONTROLLER_NODE_CIDR_MASK_V6", default_value_t = 64)]
    pub node_cidr_mask_v6: u8,
    /// Service addresses of the cluster; the family of the first is the default of Services
    #[arg(long = "service-cidr", env = "QUILLA_CONTROLLER_SERVICE_CIDRS", value_delimiter = ',',
          default_values = ["10.96.0.0/16", "fd00:10:96::/112"])]
    pub service_cidrs: Vec<IpNet>,
    /// Ports for Services of type NodePort and LoadBalancer
    #[arg(long, env = "QUILLA_CONTROLLER_SERVICE_NODE_PORT_RANGE", default_value = "30000-32767")]
    pub service_node_port_range: NodePortRange,
    /// Addresses at which nodes and Pods reach the embedded apiserver [default: the address it listens on]
    #[arg(long = "advertise-address", env = "QUILLA_CONTROLLER_ADVERTISE_ADDRESSES", value_delimiter = ',')]
    pub advertise_addresses: Vec<IpAddr>,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, env = "QUILLA_CONTROLLER_HEALTH_LISTEN", default_value = "127.0.0.1:9811")]
    pub health_listen: SocketAddr,
    /// What is logged, as `info` or `quilla_controller=debug`
    #[arg(long, env = "QUILLA_CONTROLLER_LOG", default_value = "info")]
    pub log: String,
}

/// The cluster's Pod CIDRs, cut for its nodes.
pub fn subnets(cidrs: &[IpNet], mask_v4: u8, mask_v6: u8) -> Result<Vec<Subnets>, Error> {
    let cut = |cidr: &IpNet| Subnets::new(*cidr, if cidr.addr().is_ipv4() { mask_v4 } else { mask_v6 });
    cidrs.iter().map(cut).collect()
}

/// Refuses ranges that share addresses: a packet's destination must mean one thing.
pub fn check_disjoint(cluster: &[IpNet], service: &[IpNet]) -> Result<(), Error> {
    let all: Vec<_> = cluster.iter().chain(service).collect();
    for (index, one) in all.iter().enumerate() {
        if let Some(other) = all[..index].iter().find(|other| other.contains(*one) || one.contains(**other)) {
            return Err(Error::Option { option: "service-cidr", why: format!("{one} overlaps {other}") });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Config, check_disjoint, subnets};

    #[test]
    fn the_command_line_is_consistent_and_its_defaults_work() {
        Config::command().debug_assert();
        let config = Config::parse_from(["quilla-controller"]);
        check_disjoint(&config.cluster_cidrs, &config.service_cidrs).expect("disjoint");
        let cut = subnets(&config.cluster_cidrs, config.node_cidr_mask_v4, config.node_cidr_mask_v6);
        assert_eq!(cut.expect("divide").len(), 2);
        for wrong in [
            ["quilla-controller", "--service-node-port-range", "9-1"],
            ["quilla-controller", "--listen", "6443"],
            ["quilla-controller", "--cluster-cidr", "10.0.0.0"],
        ] {
            Config::try_parse_from(wrong).expect_err(wrong[2]);
        }
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let net = |text: &str| vec![text.parse().expect("cidr")];
        check_disjoint(&net("10.0.0.0/8"), &net("10.96.0.0/16")).expect_err("within");
        check_disjoint(&net("10.96.0.0/16"), &net("10.0.0.0/8")).expect_err("around");
        check_disjoint(&net("10.0.0.0/16"), &net("fd00::/64")).expect("families");
    }
}
