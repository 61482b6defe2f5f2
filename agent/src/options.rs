//! The command line: the one place where the agent's settings come from.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Parser, Subcommand};
use ipnet::IpNet;
use quilla_datapath::Mechanism;
use quilla_plan::Routing;
use quilla_plan::facts::{Masquerade, NodePortAddresses};

use crate::masquerade;
use crate::overlay::Mode;

/// The node agent of Quilla: watches the apiserver and programs the kernel.
#[derive(Clone, Debug, Parser)]
#[command(name = "quilla-agent", version, subcommand_negates_reqs = true)]
pub struct Cli {
    /// How to run.
    #[command(flatten)]
    pub options: Option<Options>,
    /// What to do instead of running.
    #[command(subcommand)]
    pub task: Option<Task>,
}

/// What the program does for itself, in a process of its own.
#[derive(Clone, Debug, Subcommand)]
pub enum Task {
    /// Connect to an address as a process of a control group would, and compare the answer.
    #[command(hide = true)]
    Probe {
        /// The group.
        #[arg(long)]
        cgroup: PathBuf,
        /// Where to connect.
        #[arg(long)]
        to: SocketAddr,
        /// What must be answered.
        #[arg(long)]
        token: String,
    },
}

/// How the agent runs.
#[derive(Clone, Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub struct Options {
    /// Name of this node in the API.
    #[arg(long, env = "QUILLA_NODE_NAME")]
    pub node_name: String,
    /// How to reach the apiserver; by its own address, never by a Service's.
    #[arg(long, env = "QUILLA_KUBECONFIG")]
    pub kubeconfig: PathBuf,
    /// Device that leads to the other nodes and the world; may be given again. Pods leave the cluster by the first one.
    #[arg(long, env = "QUILLA_UPLINK", value_delimiter = ',', required = true)]
    pub uplink: Vec<String>,
    /// Control group (v2) whose sockets reach Services without a translation per packet.
    #[arg(long, env = "QUILLA_CGROUP")]
    pub cgroup: PathBuf,
    /// A mounted BPF file system.
    #[arg(long, env = "QUILLA_BPFFS", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// What must survive a restart of the node.
    #[arg(long, env = "QUILLA_STATE_DIR", default_value = "/var/lib/quilla")]
    pub state_dir: PathBuf,
    /// Where sockets are.
    #[arg(long, env = "QUILLA_RUN_DIR", default_value = "/run/quilla")]
    pub run_dir: PathBuf,
    /// Where health and metrics are served.
    #[arg(long, env = "QUILLA_METRICS", default_value = "127.0.0.1:9469")]
    pub metrics: SocketAddr,
    /// Where `/healthz` and `/livez` are served to load balancers and probes.
    #[arg(long, env = "QUILLA_HEALTH", default_value = "0.0.0.0:10256")]
    pub health: SocketAddr,
    /// Where `/proxyMode` and the metrics are served as a kube-proxy does.
    #[arg(long, env = "QUILLA_PROXY_METRICS", default_value = "127.0.0.1:10249")]
    pub proxy_metrics: SocketAddr,
    /// Which addresses of the node serve node ports: `primary` (those of its Node object), or ranges; all of a family
    /// without a range.
    #[arg(long, env = "QUILLA_NODE_PORT_ADDRESSES", default_value = "primary", value_parser = node_port_addresses)]
    pub node_port_addresses: NodePortAddresses,
    /// Whether a Service whose traffic policy is Local and whose endpoints are elsewhere rejects instead of dropping.
    #[arg(long, env = "QUILLA_REJECT_WITHOUT_LOCAL_ENDPOINTS", default_value_t = false, action = ArgAction::Set)]
    pub reject_without_local_endpoints: bool,
    /// Entries of each flow table. Another number than before forgets the connections that are open.
    #[arg(long, env = "QUILLA_FLOW_CAPACITY", default_value_t = quilla_abi::map::capacity::FLOWS,
        value_parser = clap::value_parser!(u32).range(1024..=16_777_216))]
    pub flow_capacity: u32,
    /// By what programs are attached to Pods: `clsact` filters, or `tcx` links (Linux 6.6), for which each Pod that comes or
    /// goes waits, one after the other, and which leave the place of clsact to other tools, at Pods that come from then on.
    /// Uplinks have tcx links wherever the kernel has them.
    #[arg(long, env = "QUILLA_POD_PROGRAMS", default_value = "clsact", value_parser = mechanism())]
    pub pod_programs: Mechanism,
    /// VXLAN network identifier.
    #[arg(long, env = "QUILLA_VNI", default_value_t = quilla_plan::facts::DEFAULT_VNI,
        value_parser = clap::value_parser!(u32).range(1..=0x00ff_ffff))]
    pub vni: u32,
    /// UDP port of the overlay.
    #[arg(long, env = "QUILLA_OVERLAY_PORT", default_value_t = quilla_abi::config::OVERLAY_PORT,
        value_parser = clap::value_parser!(u16).range(1..))]
    pub overlay_port: u16,
    /// Who writes the outer headers of packets for other nodes: the programs (`direct`), the kernel's VXLAN device
    /// (`device`), or the programs as soon as a connection to another node has shown that it works (`auto`).
    #[arg(long, env = "QUILLA_ENCAPSULATION", default_value = "auto", value_enum)]
    pub encapsulation: Mode,
    /// Whether outer UDP headers carry a checksum, which only the VXLAN device can compute.
    #[arg(long, env = "QUILLA_OVERLAY_CHECKSUM", default_value_t = false, action = ArgAction::Set)]
    pub overlay_checksum: bool,
    /// The largest packet that Pods send to other nodes, where the way is narrower than the uplinks are; else what the
    /// uplinks leave.
    #[arg(long, env = "QUILLA_OVERLAY_MTU", value_parser = clap::value_parser!(u16).range(1280..))]
    pub overlay_mtu: Option<u16>,
    /// How packets get to the Pods of other nodes: in tunnels (`overlay`), plainly (`native`), or in tunnels only to nodes that
    /// are in none of the uplinks' networks (`auto`).
    #[arg(long, env = "QUILLA_ROUTING", default_value = "overlay", value_parser = routing())]
    pub routing: Routing,
    /// Whether Pods leave the cluster with the node's address.
    #[arg(long, env = "QUILLA_MASQUERADE", default_value_t = true, action = ArgAction::Set)]
    pub masquerade: bool,
    /// A range outside the cluster that Pods reach with their own address; may be given again.
    #[arg(long, env = "QUILLA_NON_MASQUERADE_CIDRS", alias = "native-cidr", value_delimiter = ',',
        value_parser = masquerade::range)]
    pub non_masquerade_cidr: Vec<IpNet>,
    /// Whether Pods reach IPv4 link-local addresses with the node's address (`true`) or their own (`false`). Without it they do
    /// not reach them.
    #[arg(long, env = "QUILLA_MASQ_LINK_LOCAL", action = ArgAction::Set)]
    pub masq_link_local: Option<bool>,
    /// The same for IPv6.
    #[arg(long, env = "QUILLA_MASQ_LINK_LOCAL_IPV6", action = ArgAction::Set)]
    pub masq_link_local_ipv6: Option<bool>,
    /// A file in the format of ip-masq-agent, which is followed: `nonMasqueradeCIDRs`, `masqLinkLocal`, `masqLinkLocalIPv6`.
    #[arg(long, env = "QUILLA_MASQUERADE_CONFIG")]
    pub masquerade_config: Option<PathBuf>,
    /// Seconds for which a Pod's address rests before another Pod may get it.
    #[arg(long, env = "QUILLA_ADDRESS_COOL_DOWN", default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub address_cool_down: u64,
    /// Whether a Pod gets the addresses that its annotation quilla.dev/addresses asks for; else it is ignored.
    #[arg(long, env = "QUILLA_STATIC_ADDRESSES", default_value_t = true, action = ArgAction::Set)]
    pub static_addresses: bool,
    /// Seconds between two comparisons of the maps with the plan.
    #[arg(long, env = "QUILLA_AUDIT_INTERVAL", hide = true, default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub audit_interval: u64,
}

impl Options {
    /// Under whose address Pods leave the cluster, without what a file says.
    pub fn masquerade(&self) -> Masquerade {
        Masquerade {
            enabled: self.masquerade,
            except: self.non_masquerade_cidr.clone(),
            link_local: self.masq_link_local,
            link_local_ipv6: self.masq_link_local_ipv6,
        }
    }
}

fn routing() -> impl TypedValueParser<Value = Routing> {
    PossibleValuesParser::new(Routing::ALL.map(Routing::label))
        .map(|name| Routing::ALL.into_iter().find(|routing| routing.label() == name).unwrap_or_default())
}

fn mechanism() -> impl TypedValueParser<Value = Mechanism> {
    PossibleValuesParser::new(["clsact", "tcx"]).map(|name| match name.as_str() {
        "tcx" => Mechanism::Tcx,
        _ => Mechanism::Clsact,
    })
}

/// `primary`, or ranges with commas between.
fn node_port_addresses(text: &str) -> Result<NodePortAddresses, String> {
    if text == "primary" {
        return Ok(NodePortAddresses::Primary);
    }
    let range = |text: &str| text.parse().map_err(|_| format!("{text:?} is neither a range nor `primary`"));
    text.split(',').map(str::trim).map(range).collect::<Result<_, _>>().map(NodePortAddresses::Within)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use quilla_datapath::Mechanism;
    use quilla_plan::Routing;
    use quilla_plan::facts::{Masquerade, NodePortAddresses};

    use super::{Cli, Options};

    fn options(more: &[&str]) -> Result<Options, String> {
        let needed = "quilla-agent --node-name a --kubeconfig /k --cgroup /c --uplink eth0".split(' ');
        let cli = Cli::try_parse_from(needed.chain(more.iter().copied()));
        cli.map(|cli| cli.options.unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn s23_node_port_addresses_are_primary_or_ranges() {
        assert_eq!(options(&[]).unwrap().node_port_addresses, NodePortAddresses::Primary);
        let ranges =
            |text| options(&["--node-port-addresses", text]).map(|options| options.node_port_addresses);
        let expected = ["192.0.2.0/24", "2001:db8::/64"].map(|range| range.parse().unwrap()).into();
        assert_eq!(ranges("192.0.2.0/24, 2001:db8::/64"), Ok(NodePortAddresses::Within(expected)));
        for bad in ["", "primary,192.0.2.0/24", "192.0.2.1/33", "eth0"] {
            let error = ranges(bad).unwrap_err();
            assert!(error.contains("neither a range nor `primary`"), "{bad}: {error}");
        }
    }

    #[test]
    fn routing_and_masquerade_are_what_is_said() {
        let default = options(&[]).unwrap();
        assert_eq!((default.routing, default.masquerade()), (Routing::Overlay, Masquerade::default()));
        let given = ["--routing", "auto", "--masquerade", "false", "--masq-link-local", "false"];
        let ranges = ["--native-cidr", "10.0.0.0/8,fd00::/8"];
        let options_given = options(&[&given[..], &ranges].concat()).unwrap();
        assert_eq!(options_given.routing, Routing::Auto);
        let masquerade = options_given.masquerade();
        assert_eq!((masquerade.enabled, masquerade.except.len()), (false, 2));
        assert_eq!((masquerade.link_local, masquerade.link_local_ipv6), (Some(false), None));
        for (bad, why) in [("10.0.0.1/8", "not aligned"), ("eth0", "no range")] {
            let error = options(&["--non-masquerade-cidr", bad]).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(options(&["--routing", "direct"]).unwrap_err().contains("overlay, native, auto"));
    }

    #[test]
    fn programs_of_pods_are_filters_unless_links_are_wanted() {
        let programs = |more: &[&str]| options(more).map(|options| options.pod_programs);
        assert_eq!(programs(&[]), Ok(Mechanism::Clsact));
        assert_eq!(programs(&["--pod-programs", "tcx"]), Ok(Mechanism::Tcx));
        assert!(programs(&["--pod-programs", "xdp"]).unwrap_err().contains("clsact, tcx"));
    }

    #[test]
    fn e15_uplinks_keep_their_order() {
        assert_eq!(options(&["--uplink", "eth1,eth2"]).unwrap().uplink, ["eth0", "eth1", "eth2"]);
    }
}
