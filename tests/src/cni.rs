//! A container runtime's side of CNI: runs the plugins of a network configuration list in turn.
//!
//! Each plugin is called as the specification says, with its parameters in the environment and its configuration,
//! completed with name, version and the previous result, on standard input. Invariant: a failed ADD is followed by a
//! DEL of all plugins.

use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use crate::command::Run;
use crate::netns::inside;

/// A network and where its plugins are.
#[derive(Clone, Debug)]
pub struct Network {
    list: Value,
    folders: Vec<PathBuf>,
    host: Option<PathBuf>,
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
    /// What the runtime has for capabilities; a plugin gets those that it declares (CNI-8).
    pub runtime_config: Value,
}

impl Network {
    /// Reads a configuration list; its plugins are the programs in `folder`.
    pub fn read(list: &Path, folder: &Path) -> Result<Self> {
        let text = fs::read_to_string(list).with_context(|| format!("read {}", list.display()))?;
        let list = serde_json::from_str(&text).with_context(|| format!("parse {}", list.display()))?;
        Ok(Self::new(list, vec![folder.to_owned()]))
    }

    /// The network of a configuration list; its plugins are looked for in the folders, in this order.
    pub fn new(list: Value, folders: Vec<PathBuf>) -> Self {
        Self { list, folders, host: None }
    }

    /// The same network on the host whose network namespace is this file.
    #[must_use]
    pub fn on_host(self, netns: &Path) -> Self {
        Self { host: Some(netns.to_owned()), ..self }
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
        let found = self.folders.iter().map(|folder| folder.join(program)).find(|path| path.is_file());
        let path = found.with_context(|| format!("plugin {program} is in none of {:?}", self.folders))?;
        let config = self.config(plugin, &of.runtime_config, previous);
        let [namespace, name, uid] = &of.pod;
        let mut command = match &self.host {
            Some(netns) => inside(netns, &path.to_string_lossy()),
            None => Command::new(path),
        };
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &of.container_id)
            .env("CNI_NETNS", &of.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", env::join_paths(&self.folders).context("join folders")?)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid};\
                     K8S_POD_INFRA_CONTAINER_ID={}",
                    of.container_id
                ),
            );
        command.text_from(&config.to_string()).with_context(|| format!("{verb} {program} {namespace}/{name}"))
    }

    /// What a plugin reads: its part of the list, completed.
    fn config(&self, plugin: &Value, offered: &Value, previous: Option<&Value>) -> Value {
        let mut config = plugin.clone();
        for key in ["cniVersion", "name"] {
            config[key] = self.list[key].clone();
        }
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let declared = config.as_object_mut().and_then(|config| config.remove("capabilities"));
        let declared = declared.as_ref().and_then(Value::as_object).into_iter().flatten();
        let wanted = declared.filter(|(_, on)| **on == Value::Bool(true)).map(|(name, _)| name);
        let provided = wanted.filter_map(|name| Some((name.clone(), offered.get(name)?.clone())));
        let provided: Map<String, Value> = provided.collect();
        if !provided.is_empty() {
            config["runtimeConfig"] = provided.into();
        }
        config
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
        let runtime_config = serde_json::json!({ "mac": "02:00:00:00:00:01", "ips": ["10.0.0.2"] });
        Attachment { container_id: "c".to_owned(), netns: "/run/netns/none".into(), pod, runtime_config }
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

    /// CNI-8: a plugin gets what it declares and the runtime has, and not the declaration.
    #[test]
    fn capabilities_become_runtime_config() {
        let network = Network::new(serde_json::json!({ "cniVersion": "1.1.0", "name": "n" }), Vec::new());
        let plugin =
            serde_json::json!({ "type": "p", "capabilities": { "mac": true, "dns": true, "ips": false } });
        let config = network.config(&plugin, &attachment().runtime_config, None);
        let want = serde_json::json!({
            "cniVersion": "1.1.0", "name": "n", "type": "p", "runtimeConfig": { "mac": "02:00:00:00:00:01" },
        });
        assert_eq!(config, want);
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
