//! Delegation to an IPAM plugin (CNI-17), where the configuration names one; otherwise the agent gives addresses.
//!
//! The plugin is found through `CNI_PATH` and called with our environment and the complete configuration; what it
//! writes to standard error goes to ours. An ADD of it that succeeded is undone whenever ours fails (CNI-15).

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use quilla_cni_protocol::{AddResult, Attachment, CniError, ErrorCode, IpConfig, Lease, NetworkConfig};
use serde::Deserialize;

/// The IPAM plugin of a network.
#[derive(Debug)]
pub(crate) struct Delegate<'a> {
    name: &'a str,
    folders: &'a [PathBuf],
    config: &'a NetworkConfig,
}

/// What it gave.
#[derive(Debug)]
pub(crate) struct Allocation {
    /// One per family, with the Pod's next hop.
    pub(crate) leases: Vec<Lease>,
    /// Its answer.
    pub(crate) result: AddResult,
}

/// The error object a plugin prints.
#[derive(Deserialize)]
struct Complaint {
    code: ErrorCode,
    msg: String,
    #[serde(default)]
    details: String,
}

impl<'a> Delegate<'a> {
    /// The plugin the configuration names, if it names one.
    pub(crate) fn of(config: &'a NetworkConfig, folders: &'a [PathBuf]) -> Option<Self> {
        config.ipam_plugin.as_deref().map(|name| Self { name, folders, config })
    }

    /// ADD; undone at once when its answer is of no use.
    pub(crate) fn add(&self, attachment: &Attachment) -> Result<Allocation, CniError> {
        let added = self.call("ADD", Some(attachment)).and_then(|output| self.allocation(&output));
        if added.is_err()
            && let Err(error) = self.del(attachment)
        {
            crate::log::notice(&format!("undo: {error}"));
        }
        added
    }

    /// DEL.
    pub(crate) fn del(&self, attachment: &Attachment) -> Result<(), CniError> {
        self.call("DEL", Some(attachment)).map(drop)
    }

    /// CHECK, GC and STATUS: our own verb, passed on.
    pub(crate) fn forward(&self, verb: &str) -> Result<(), CniError> {
        self.call(verb, None).map(drop)
    }

    fn allocation(&self, output: &[u8]) -> Result<Allocation, CniError> {
        let refuse = |details: String| {
            let msg = format!("answer of ipam plugin {}", self.name);
            Err(CniError::new(ErrorCode::DECODE_FAILURE, msg, details))
        };
        let result: AddResult = match serde_json::from_slice(output) {
            Ok(result) => result,
            Err(error) => return refuse(error.to_string()),
        };
        let count = |ipv4: bool| result.ips.iter().filter(|ip| ip.address.addr().is_ipv4() == ipv4).count();
        if result.ips.is_empty() || count(true) > 1 || count(false) > 1 {
            return refuse("wants one address, or one of each family".to_owned());
        }
        let Some(leases) = result.ips.iter().map(lease).collect() else {
            return refuse("an address has no gateway, and its network is too small to have one".to_owned());
        };
        Ok(Allocation { leases, result })
    }

    fn call(&self, verb: &str, attachment: Option<&Attachment>) -> Result<Vec<u8>, CniError> {
        let failed = |error: std::io::Error| {
            let details = format!("{verb}: {error}");
            CniError::new(ErrorCode::IO_FAILURE, format!("run ipam plugin {}", self.name), details)
        };
        let mut command = Command::new(self.program()?);
        command.env("CNI_COMMAND", verb);
        if let Some(Attachment { container_id, ifname }) = attachment {
            command.env("CNI_CONTAINERID", container_id).env("CNI_IFNAME", ifname);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take()
            && let Err(error) = stdin.write_all(self.config.document.to_string().as_bytes())
        {
            // Its own complaint says more than the broken pipe.
            crate::log::notice(&format!("ipam plugin {} did not read its input: {error}", self.name));
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(match serde_json::from_slice::<Complaint>(&output.stdout) {
            Ok(Complaint { code, msg, details }) => {
                CniError::new(code, format!("ipam plugin {}: {verb}: {msg}", self.name), details)
            }
            Err(_) => failed(std::io::Error::other(format!(
                "{}: {}",
                output.status,
                String::from_utf8_lossy(&output.stdout)
            ))),
        })
    }

    fn program(&self) -> Result<PathBuf, CniError> {
        let found = self.folders.iter().map(|folder| folder.join(self.name)).find(|path| path.is_file());
        found.ok_or_else(|| {
            let details = format!("ipam plugin {} is in no folder of CNI_PATH {:?}", self.name, self.folders);
            CniError::new(ErrorCode::INVALID_CONFIG, "invalid network config", details)
        })
    }
}

/// The address with its next hop: the one named, or the first of its network, as such plugins reserve it.
fn lease(ip: &IpConfig) -> Option<Lease> {
    let address = ip.address.addr();
    let gateway = ip.gateway.or_else(|| first_of(ip.address))?;
    (gateway != address && gateway.is_ipv4() == address.is_ipv4()).then_some(Lease { address, gateway })
}

fn first_of(net: ipnet::IpNet) -> Option<IpAddr> {
    (net.prefix_len() + 2 <= net.max_prefix_len()).then_some(())?;
    match net.network() {
        IpAddr::V4(network) => Some(std::net::Ipv4Addr::from_bits(network.to_bits() + 1).into()),
        IpAddr::V6(network) => Some(std::net::Ipv6Addr::from_bits(network.to_bits() + 1).into()),
    }
}

#[cfg(test)]
mod tests {
    use quilla_cni_protocol::IpConfig;

    use super::lease;

    /// CNI-17: the next hop is the plugin's, or the first address of the network.
    #[test]
    fn next_hop() {
        let gateway = |address: &str, gateway: Option<&str>| {
            let ip = IpConfig {
                address: address.parse().expect("valid"),
                gateway: gateway.map(|gateway| gateway.parse().expect("valid")),
                interface: None,
            };
            lease(&ip).map(|lease| lease.gateway.to_string())
        };
        assert_eq!(gateway("10.9.0.7/24", None).as_deref(), Some("10.9.0.1"));
        assert_eq!(gateway("fd00::7/64", None).as_deref(), Some("fd00::1"));
        assert_eq!(gateway("10.9.0.7/24", Some("10.9.0.254")).as_deref(), Some("10.9.0.254"));
        for (address, next_hop) in
            [("10.9.0.7/32", None), ("10.9.0.1/24", None), ("10.9.0.7/24", Some("fd00::1"))]
        {
            assert_eq!(gateway(address, next_hop), None, "{address} {next_hop:?}");
        }
    }
}
