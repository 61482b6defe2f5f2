//! A container runtime's side of CNI: runs the plugins of a network configuration list in turn.
//!
//! Each plugin is called as the specification says, with its parameters in the environment and its configuration,
//! completed with name, version and the previous result, on standard input. Invariant: a failed ADD is followed by a
//! DEL of all plugins.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::Run;

/// A network and where its plugins are.
#[derive(Clone, Debug)]
pub struct Network {
    list: Value,
    folder: PathBuf,
}

/// One interface of one sandbox.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The runtime's name of the Pod's sandbox.
    pub container_id: String,
    /// File of the network namespace.
    pub netns: PathBuf,
    /// Namespace, name and uid of the Pod.
    pub pod: [String; 3],
}

impl Network {
    /// Reads a configuration list; its plugins are the programs in `folder`.
    pub fn read(list: &Path, folder: &Path) -> Result<Self> {
        let text = fs::read_to_string(list).with_context(|| format!("read {}", list.display()))?;
        let list = serde_json::from_str(&text).with_context(|| format!("parse {}", list.display()))?;
        Ok(Self { list, folder: folder.to_owned() })
    }

    /// ADD through the chain; the last plugin's result.
    pub fn add(&self, attachment: &Attachment) -> Result<Value> {
        let outcome = self.plugins()?.iter().try_fold(None, |previous, plugin| {
            let text = self.call("ADD", plugin, attachment, previous.as_ref())?;
            let result: Value =
                serde_json::from_str(&text).with_context(|| format!("parse result {text}"))?;
            Ok::<_, anyhow::Error>(Some(result))
        });
        match outcome {
            Ok(result) => result.context("the network has no plugin"),
            Err(error) => {
                // The failure of ADD is what counts.
                drop(self.del(attachment, None));
                Err(error)
            }
        }
    }

    /// CHECK through the chain.
    pub fn check(&self, attachment: &Attachment, result: &Value) -> Result<()> {
        self.plugins()?
            .iter()
            .try_for_each(|plugin| self.call("CHECK", plugin, attachment, Some(result)).map(drop))
    }

    /// DEL through the chain, last plugin first; the first failure ends it (CNI-20).
    pub fn del(&self, attachment: &Attachment, result: Option<&Value>) -> Result<()> {
        let mut plugins = self.plugins()?.iter().rev();
        plugins.try_for_each(|plugin| self.call("DEL", plugin, attachment, result).map(drop))
    }

    fn plugins(&self) -> Result<&Vec<Value>> {
        self.list["plugins"].as_array().context("plugins of the network")
    }

    fn call(&self, verb: &str, plugin: &Value, of: &Attachment, previous: Option<&Value>) -> Result<String> {
        let program = plugin["type"].as_str().context("type of the plugin")?;
        let mut config = plugin.clone();
        for key in ["cniVersion", "name"] {
            config[key] = self.list[key].clone();
        }
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let [namespace, name, uid] = &of.pod;
        let mut command = Command::new(self.folder.join(program));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &of.container_id)
            .env("CNI_NETNS", &of.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.folder)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid};\
                     K8S_POD_INFRA_CONTAINER_ID={}",
                    of.container_id
                ),
            );
        command.text_from(&config.to_string()).with_context(|| format!("{verb} {namespace}/{name}"))
    }
}

/// The Pod's addresses in a result.
pub fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().context("ips of the result")?;
    let parse = |ip: &Value| -> Result<IpAddr> {
        let text = ip["address"].as_str().context("address of the result")?;
        let address = text.split('/').next().unwrap_or(text);
        address.parse().with_context(|| format!("address {text}"))
    };
    ips.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A plugin that records its call and answers with its own name added to the previous result.
    const PLUGIN: &str = r#"#!/bin/sh
echo "$CNI_COMMAND $(basename "$0")" >> "$CNI_PATH/calls"
stdin=$(cat)
case "$CNI_COMMAND $stdin" in ADD*'"break":true'*) echo '{"code":100,"msg":"broken"}'; exit 1;; esac
echo '{"ips":[{"address":"10.0.0.2/32"}],"by":"'"$(basename "$0")"'"}'
"#;

    fn network(folder: &Path, plugins: &str) -> Network {
        for name in ["first", "second"] {
            let path = folder.join(name);
            fs::write(&path, PLUGIN).expect("write plugin");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
        }
        let list = folder.join("list");
        fs::write(&list, format!(r#"{{"cniVersion":"1.1.0","name":"n","plugins":[{plugins}]}}"#))
            .expect("write");
        Network::read(&list, folder).expect("read")
    }

    fn attachment() -> Attachment {
        let pod = ["ns", "pod", "uid"].map(str::to_owned);
        Attachment { container_id: "c".to_owned(), netns: "/run/netns/none".into(), pod }
    }

    fn calls(folder: &Path) -> String {
        fs::read_to_string(folder.join("calls")).expect("calls").replace('\n', ", ")
    }

    #[test]
    fn plugins_are_called_in_order_and_undone_in_reverse() {
        let folder = tempfile::tempdir().expect("folder");
        let network = network(folder.path(), r#"{"type":"first"},{"type":"second"}"#);
        let result = network.add(&attachment()).expect("add");
        assert_eq!(result["by"], "second");
        assert_eq!(addresses(&result).expect("addresses"), ["10.0.0.2".parse::<IpAddr>().expect("address")]);
        network.del(&attachment(), Some(&result)).expect("del");
        assert_eq!(calls(folder.path()), "ADD first, ADD second, DEL second, DEL first, ");
    }

    #[test]
    fn a_failed_add_is_undone() {
        let folder = tempfile::tempdir().expect("folder");
        let network = network(folder.path(), r#"{"type":"first"},{"type":"second","break":true}"#);
        let error = network.add(&attachment()).expect_err("fails");
        assert!(format!("{error:#}").contains("broken"), "{error:#}");
        assert_eq!(calls(folder.path()), "ADD first, ADD second, DEL second, DEL first, ");
    }
}
