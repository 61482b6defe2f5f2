//! The network configuration on the plugin's standard input. Parsed once per invocation; unknown keys are accepted,
//! because runtimes and later versions of the specification add their own.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::attachment::{Attachment, validate_network_name};
use crate::{CniError, DEFAULT_DATA_DIR, DEFAULT_SOCKET, Dns, ErrorCode, Mechanism, SpecVersion};

/// Everything the plugin reads from its configuration.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Version of the request, and so of the answer.
    pub version: SpecVersion,
    /// Name of the network.
    pub name: String,
    /// The agent's socket.
    pub agent_socket: PathBuf,
    /// How long one request to the agent may take.
    pub agent_timeout: Duration,
    /// MTU of the Pod's interface, when the agent's own is not wanted.
    pub mtu: Option<u32>,
    /// By what programs are to be attached, when the agent's own choice is not wanted.
    pub programs: Option<Mechanism>,
    /// A file that gets a line per failed operation.
    pub log_file: Option<PathBuf>,
    /// Where DEL leaves its records while the agent is away.
    pub data_dir: PathBuf,
    /// Name resolution to report in the result.
    pub dns: Option<Dns>,
    /// The result of the previous plugin (ADD) or of the whole ADD (CHECK, DEL), not yet decoded: DEL must not care.
    pub prev_result: Option<Value>,
    /// GC: the attachments to keep.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// The plugin that gives addresses in the agent's place (CNI-17).
    pub ipam_plugin: Option<String>,
    /// What the runtime fills in for declared capabilities, not yet decoded: only ADD cares.
    pub runtime_config: Option<Value>,
    /// What the runtime adds at will, not yet decoded.
    pub args: Option<Value>,
    /// The whole document, for plugins that work for this one.
    pub document: Value,
}

/// An attachment the runtime still knows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// The sandbox.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its interface.
    pub ifname: String,
}

impl From<ValidAttachment> for Attachment {
    fn from(valid: ValidAttachment) -> Self {
        Self { container_id: valid.container_id, ifname: valid.ifname }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    name: String,
    agent_socket: Option<PathBuf>,
    agent_timeout_seconds: Option<u64>,
    mtu: Option<u32>,
    programs: Option<String>,
    log_file: Option<PathBuf>,
    data_dir: Option<PathBuf>,
    dns: Option<Dns>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    // The key libcni sent before the specification settled on the other.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<ValidAttachment>>,
    #[serde(default)]
    ipam: Ipam,
    runtime_config: Option<Value>,
    args: Option<Value>,
}

#[derive(Default, Deserialize)]
struct Ipam {
    #[serde(default, rename = "type")]
    plugin: String,
}

impl NetworkConfig {
    /// The version a document asks for, as written; `None` when it is not JSON or names none.
    pub fn requested_version(input: &[u8]) -> Option<String> {
        let document: Value = serde_json::from_slice(input).ok()?;
        Some(document.get("cniVersion")?.as_str()?.to_owned())
    }

    /// Parses and validates the document.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        let document = Value::Object(object(input)?);
        Self::read(&document, document.clone())
    }

    /// The same for a DEL, which keys that were broken since the ADD must not stop (CNI-18, CNI-31): those that only
    /// others need are left out when they cannot be used.
    pub fn parse_for_del(input: &[u8]) -> Result<Self, CniError> {
        const NEEDED: [&str; 4] = ["cniVersion", "name", "agentSocket", "dataDir"];
        let document = object(input)?;
        let mut usable = document.clone();
        usable.retain(|key, value| {
            let alone = json!({ "name": "n", key: value });
            NEEDED.contains(&key.as_str()) || Raw::deserialize(alone).is_ok_and(|raw| raw.validate().is_ok())
        });
        Self::read(&Value::Object(usable), Value::Object(document))
    }

    fn read(keys: &Value, document: Value) -> Result<Self, CniError> {
        let version = parse_version(keys)?;
        let raw = Raw::deserialize(keys).map_err(|error| undecodable(error.to_string()))?;
        raw.validate()?;
        Ok(Self {
            version,
            name: raw.name,
            agent_socket: raw.agent_socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
            agent_timeout: Duration::from_secs(raw.agent_timeout_seconds.unwrap_or(10)),
            mtu: raw.mtu,
            programs: raw.programs.as_deref().and_then(Mechanism::parse),
            log_file: raw.log_file,
            data_dir: raw.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
            dns: raw.dns,
            prev_result: raw.prev_result,
            valid_attachments: raw.valid_attachments.or(raw.attachments),
            ipam_plugin: Some(raw.ipam.plugin).filter(|plugin| !plugin.is_empty()),
            runtime_config: raw.runtime_config,
            args: raw.args,
            document,
        })
    }
}

fn undecodable(details: impl Into<String>) -> CniError {
    CniError::new(ErrorCode::DECODE_FAILURE, "decode network config", details)
}

fn object(input: &[u8]) -> Result<Map<String, Value>, CniError> {
    match serde_json::from_slice(input) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(undecodable("not a json object")),
        Err(error) => Err(undecodable(error.to_string())),
    }
}

fn parse_version(document: &Value) -> Result<SpecVersion, CniError> {
    let text = match document.get("cniVersion") {
        None => "",
        Some(Value::String(text)) => text,
        Some(other) => {
            return Err(undecodable(format!("cniVersion is not a string: {other}")));
        }
    };
    SpecVersion::parse(text).ok_or_else(|| {
        let supported = SpecVersion::ALL.map(SpecVersion::as_str).join(", ");
        let details = format!("config asks for {text:?}, supported are {supported}");
        CniError::new(ErrorCode::INCOMPATIBLE_VERSION, "incompatible cni version", details)
    })
}

impl Raw {
    fn validate(&self) -> Result<(), CniError> {
        let refuse = |details: String| {
            Err(CniError::new(ErrorCode::INVALID_CONFIG, "invalid network config", details))
        };
        if !validate_network_name(&self.name) {
            return refuse(format!("name {:?} is empty or malformed", self.name));
        }
        if self.mtu.is_some_and(|mtu| !(68..=65_535).contains(&mtu)) {
            return refuse(format!("mtu {:?} is outside 68 to 65535", self.mtu));
        }
        if self.agent_timeout_seconds.is_some_and(|seconds| !(1..=300).contains(&seconds)) {
            return refuse(format!(
                "agentTimeoutSeconds {:?} is outside 1 to 300",
                self.agent_timeout_seconds
            ));
        }
        if let Some(programs) = self.programs.as_ref().filter(|name| Mechanism::parse(name).is_none()) {
            let known = Mechanism::ALL.map(Mechanism::as_str).join(" nor ");
            return refuse(format!("programs {programs:?} is neither {known}"));
        }
        if self.ipam.plugin.contains('/') {
            return refuse(format!("ipam type {:?} is not the name of a plugin", self.ipam.plugin));
        }
        let paths =
            [("agentSocket", &self.agent_socket), ("logFile", &self.log_file), ("dataDir", &self.data_dir)];
        for (key, path) in paths {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return refuse(format!("{key} {path:?} is not absolute"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::NetworkConfig;
    use crate::{ErrorCode, Mechanism, SpecVersion};

    fn code(input: &str) -> ErrorCode {
        NetworkConfig::parse(input.as_bytes()).expect_err("must be refused").code
    }

    /// CNI-3, CNI-9: each kind of bad input has its code.
    #[test]
    fn bad_input_has_its_code() {
        for input in ["", "{", "[]", "7", r#"{"cniVersion":1,"name":"n"}"#] {
            assert_eq!(code(input), ErrorCode::DECODE_FAILURE, "{input:?}");
        }
        for input in [r#"{"name":"n"}"#, r#"{"cniVersion":"0.2.0","name":"n"}"#, r#"{"cniVersion":"9.9.9"}"#]
        {
            assert_eq!(code(input), ErrorCode::INCOMPATIBLE_VERSION, "{input:?}");
        }
        for keys in [
            r#""type":"quilla""#,
            r#""name":"-n""#,
            r#""name":"n","mtu":1"#,
            r#""name":"n","dataDir":"relative""#,
            r#""name":"n","agentTimeoutSeconds":0"#,
            r#""name":"n","ipam":{"type":"../host-local"}"#,
            r#""name":"n","programs":"xdp""#,
            r#""name":"n","programs":"""#,
        ] {
            let input = format!(r#"{{"cniVersion":"1.1.0",{keys}}}"#);
            assert_eq!(code(&input), ErrorCode::INVALID_CONFIG, "{input:?}");
        }
    }

    /// CNI-6, CNI-10: unknown keys are accepted.
    #[test]
    fn unknown_keys_are_accepted() {
        let input = br#"{"cniVersion":"0.4.0","name":"n","type":"quilla","args":{"cni":{}},"future":[1]}"#;
        let config = NetworkConfig::parse(input).expect("valid");
        assert_eq!(config.version, SpecVersion::V0_4_0);
        assert_eq!(config.agent_socket.to_str(), Some("/run/quilla/cni.sock"));
    }

    /// CNI-13: a network whose chain needs the place of clsact says so.
    #[test]
    fn programs_are_attached_by_what_the_network_says() {
        let parse = |rest: &str| {
            let input = format!(r#"{{"cniVersion":"1.1.0","name":"n"{rest}}}"#);
            NetworkConfig::parse(input.as_bytes()).expect("valid").programs
        };
        assert_eq!(parse(""), None);
        assert_eq!(parse(r#","programs":"tcx""#), Some(Mechanism::Tcx));
        assert_eq!(parse(r#","programs":"clsact""#), Some(Mechanism::Clsact));
    }

    /// CNI-18, CNI-31: what became unusable since the ADD does not keep a DEL from its work, as long as it finds the agent.
    #[test]
    fn a_del_leaves_out_what_it_does_not_need() {
        let parse = |rest: &str| {
            let input = format!(r#"{{"cniVersion":"1.1.0","name":"n",{rest}}}"#);
            NetworkConfig::parse_for_del(input.as_bytes())
        };
        for unusable in [
            r#""mtu":1"#,
            r#""mtu":"large""#,
            r#""dns":7"#,
            r#""ipam":"host-local""#,
            r#""ipam":{"type":"../x"}"#,
            r#""agentTimeoutSeconds":0"#,
            r#""logFile":"relative""#,
            r#""programs":"xdp""#,
            r#""programs":["tcx"]"#,
            r#""cni.dev/valid-attachments":7"#,
            r#""cni.dev/attachments":[{}]"#,
        ] {
            let rest = format!(r#"{unusable},"agentSocket":"/s","prevResult":[]"#);
            let config = parse(&rest).unwrap_or_else(|error| panic!("{unusable}: {error}"));
            assert_eq!((config.agent_socket.to_str(), config.agent_timeout.as_secs()), (Some("/s"), 10));
            assert_eq!((config.mtu, config.ipam_plugin, config.log_file), (None, None, None), "{unusable}");
            assert_eq!(config.programs, None, "{unusable}");
        }
        assert_eq!(
            parse(r#""mtu":1500,"ipam":{"type":"x"}"#).expect("valid").ipam_plugin.as_deref(),
            Some("x")
        );
        assert_eq!(parse(r#""agentSocket":"s""#).expect_err("where?").code, ErrorCode::INVALID_CONFIG);
        assert_eq!(parse(r#""dataDir":7"#).expect_err("where?").code, ErrorCode::DECODE_FAILURE);
    }

    /// CNI-25: both spellings of the key, and a missing key is not an empty list.
    #[test]
    fn valid_attachments() {
        let parse = |rest: &str| {
            let input = format!(r#"{{"cniVersion":"1.1.0","name":"n"{rest}}}"#);
            NetworkConfig::parse(input.as_bytes()).expect("valid").valid_attachments
        };
        assert_eq!(parse(""), None);
        assert_eq!(parse(r#","cni.dev/valid-attachments":[]"#), Some(vec![]));
        let old = parse(r#","cni.dev/attachments":[{"containerID":"c","ifname":"eth0"}]"#).expect("present");
        assert_eq!((old[0].container_id.as_str(), old[0].ifname.as_str()), ("c", "eth0"));
    }
}
