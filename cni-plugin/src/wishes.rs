//! What the runtime wishes beyond an interface (CNI-33): `runtimeConfig`, `args` and `CNI_ARGS`, in this order of
//! weight. Decoded by ADD alone, so that a malformed wish never keeps a DEL from its work.

use std::net::IpAddr;

use ipnet::IpNet;
use quilla_cni_protocol::{
    Bandwidth, CniError, Dns, ErrorCode, MacAddress, NetworkConfig, PortMapping, Transport,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::invocation::Args;

/// The wishes of one ADD.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// Addresses, at most one per family.
    pub(crate) ips: Vec<IpAddr>,
    /// Ethernet address of the Pod's side.
    pub(crate) mac: Option<MacAddress>,
    /// Ports of the node that lead to the Pod.
    pub(crate) port_mappings: Vec<PortMapping>,
    /// How fast it may be.
    pub(crate) bandwidth: Bandwidth,
    /// Name resolution to report.
    pub(crate) dns: Option<Dns>,
}

/// What the conventions put into `runtimeConfig`. Names for the Pod (`aliases`) are the cluster's name service's.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeConfig {
    #[serde(default)]
    port_mappings: Vec<RawMapping>,
    bandwidth: Option<Bandwidth>,
    #[serde(default)]
    ips: Vec<String>,
    mac: Option<String>,
    dns: Option<RawDns>,
    #[serde(default)]
    ip_ranges: Value,
    #[serde(default, rename = "deviceID")]
    device_id: Value,
    #[serde(default, rename = "infinibandGUID")]
    infiniband_guid: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMapping {
    host_port: u32,
    container_port: u32,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

#[derive(Deserialize)]
struct RawDns {
    #[serde(default)]
    servers: Vec<String>,
    #[serde(default)]
    searches: Vec<String>,
    #[serde(default)]
    options: Vec<String>,
}

/// The `cni` part of `args`.
#[derive(Default, Deserialize)]
struct CniArgs {
    #[serde(default)]
    ips: Vec<String>,
    mac: Option<String>,
}

impl RuntimeConfig {
    /// Refuses a wish that nobody here would fulfil: without the capability, a runtime does not send it.
    fn require_supported(&self, config: &NetworkConfig) -> Result<(), CniError> {
        let ranges = if config.ipam_plugin.is_some() { &Value::Null } else { &self.ip_ranges };
        let wishes =
            [("ipRanges", ranges), ("deviceID", &self.device_id), ("infinibandGUID", &self.infiniband_guid)];
        let is_empty =
            |value: &Value| matches!(value, Value::Null) || *value == json!([]) || *value == json!("");
        match wishes.into_iter().find(|(_, value)| !is_empty(value)) {
            None => Ok(()),
            Some((key, value)) => {
                let details = format!("runtimeConfig.{key} is {value}");
                Err(CniError::new(ErrorCode::UNSUPPORTED_FIELD, "unsupported field", details))
            }
        }
    }
}

impl Wishes {
    /// Reads and validates all wishes.
    pub(crate) fn read(config: &NetworkConfig, args: &Args) -> Result<Self, CniError> {
        let runtime = config.runtime_config.clone().map(decapitalized);
        let runtime: RuntimeConfig = decode("runtimeConfig", runtime.as_ref())?;
        runtime.require_supported(config)?;
        let cni: CniArgs = decode("args.cni", config.args.as_ref().and_then(|args| args.get("cni")))?;
        let listed = if runtime.ips.is_empty() { cni.ips } else { runtime.ips };
        let ips = if listed.is_empty() { args.ips.clone() } else { addresses(&listed)? };
        let count = |ipv4: bool| ips.iter().filter(|address| address.is_ipv4() == ipv4).count();
        if count(true) > 1 || count(false) > 1 {
            return Err(invalid(format!("more than one address of a family is wished: {ips:?}")));
        }
        let bandwidth = runtime.bandwidth.unwrap_or_default();
        bandwidth.validate().map_err(invalid)?;
        Ok(Self {
            ips,
            mac: mac(runtime.mac.or(cni.mac).as_deref())?.or(args.mac).map(unicast).transpose()?,
            port_mappings: mappings(&runtime.port_mappings)?,
            bandwidth,
            dns: runtime.dns.map(|dns| Dns {
                nameservers: dns.servers,
                domain: None,
                search: dns.searches,
                options: dns.options,
            }),
        })
    }
}

fn decode<T: Default + for<'de> Deserialize<'de>>(key: &str, value: Option<&Value>) -> Result<T, CniError> {
    match value {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => T::deserialize(value).map_err(|error| invalid(format!("{key}: {error}"))),
    }
}

/// The value with the first letters of all keys in lower case: containerd writes `HostPort`, because the reference
/// plugins read keys in any case.
fn decapitalized(value: Value) -> Value {
    let lower = |key: String| {
        let mut letters = key.chars();
        letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
    };
    match value {
        Value::Object(keys) => {
            Value::Object(keys.into_iter().map(|(key, value)| (lower(key), decapitalized(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(decapitalized).collect()),
        other => other,
    }
}

/// Addresses with or without a prefix length, which a Pod's address does not have.
fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, CniError> {
    let parse = |text: &String| {
        let network = |_| text.parse::<IpNet>().map(|net| net.addr());
        let address = text.parse::<IpAddr>().or_else(network);
        address.map_err(|_| invalid(format!("ips: {text:?} is not an address")))
    };
    texts.iter().map(parse).collect()
}

fn mac(text: Option<&str>) -> Result<Option<MacAddress>, CniError> {
    let parse = |text: &str| text.parse().map_err(|error| invalid(format!("mac: {error}")));
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}

fn unicast(mac: MacAddress) -> Result<MacAddress, CniError> {
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(invalid(format!("mac: {mac} cannot be an interface's")));
    }
    Ok(mac)
}

fn mappings(raw: &[RawMapping]) -> Result<Vec<PortMapping>, CniError> {
    let mut mappings: Vec<PortMapping> = Vec::new();
    for raw in raw {
        let mapping = mapping(raw)?;
        if mappings.contains(&mapping) {
            continue;
        }
        if let Some(other) = mappings.iter().find(|other| other.conflicts(&mapping)) {
            let ports = (other.container_port, mapping.container_port);
            return Err(invalid(format!("portMappings: {mapping} leads to {} and {}", ports.0, ports.1)));
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

fn mapping(raw: &RawMapping) -> Result<PortMapping, CniError> {
    let port = |name: &str, port: u32| {
        let valid = u16::try_from(port).ok().filter(|port| *port != 0);
        valid.ok_or_else(|| invalid(format!("portMappings: {name} {port} is outside 1 to 65535")))
    };
    let name = if raw.protocol.is_empty() { "tcp" } else { &raw.protocol };
    let protocol = Transport::parse(name)
        .ok_or_else(|| invalid(format!("portMappings: protocol {name:?} is none of tcp, udp, sctp")))?;
    let host_ip = match raw.host_ip.as_str() {
        "" => None,
        text => match text.parse::<IpAddr>() {
            // Runtimes write "every address" like this too.
            Ok(address) => Some(address).filter(|address| !address.is_unspecified()),
            Err(_) => return Err(invalid(format!("portMappings: hostIP {text:?} is not an address"))),
        },
    };
    Ok(PortMapping {
        host_port: port("hostPort", raw.host_port)?,
        container_port: port("containerPort", raw.container_port)?,
        protocol,
        host_ip,
    })
}

fn invalid(details: String) -> CniError {
    CniError::new(ErrorCode::INVALID_CONFIG, "invalid network config", details)
}

#[cfg(test)]
mod tests {
    use quilla_cni_protocol::{ErrorCode, NetworkConfig};

    use super::Wishes;
    use crate::invocation::Args;

    fn read(rest: &str) -> Result<Wishes, String> {
        let input = format!(r#"{{"cniVersion":"1.1.0","name":"n",{rest}}}"#);
        let config = NetworkConfig::parse(input.as_bytes()).expect("valid");
        let args = Args { ips: vec!["192.0.2.9".parse().expect("valid")], ..Args::default() };
        Wishes::read(&config, &args).map_err(|error| error.details)
    }

    fn ports(mappings: &str) -> Result<Vec<String>, String> {
        let wishes = read(&format!(r#""runtimeConfig":{{"portMappings":[{mappings}]}}"#))?;
        Ok(wishes.port_mappings.iter().map(|port| format!("{port}->{}", port.container_port)).collect())
    }

    /// CNI-33: `runtimeConfig` outweighs `args`, which outweigh `CNI_ARGS`.
    #[test]
    fn weight() {
        let ips = |rest: &str| read(rest).map(|wishes| wishes.ips[0].to_string());
        let both = r#""runtimeConfig":{"ips":["192.0.2.1/24"]},"args":{"cni":{"ips":["192.0.2.2"]}}"#;
        assert_eq!(ips(both).as_deref(), Ok("192.0.2.1"));
        assert_eq!(ips(r#""args":{"cni":{"ips":["192.0.2.2"],"labels":[]}}"#).as_deref(), Ok("192.0.2.2"));
        assert_eq!(ips(r#""runtimeConfig":{"aliases":{"n":["a"]}}"#).as_deref(), Ok("192.0.2.9"));
        let mac = |rest: &str| read(rest).map(|wishes| wishes.mac.map(|mac| mac.to_string()));
        let args = r#""args":{"cni":{"mac":"02:00:00:00:00:02"}}"#;
        assert_eq!(mac(args), Ok(Some("02:00:00:00:00:02".into())));
        let both = format!(r#""runtimeConfig":{{"mac":"02:00:00:00:00:01"}},{args}"#);
        assert_eq!(mac(&both), Ok(Some("02:00:00:00:00:01".into())));
    }

    /// CNI-33: port mappings in the shapes that runtimes send.
    #[test]
    fn port_mappings() {
        let all = r#"{"hostPort":80,"containerPort":8080,"protocol":"TCP","hostIP":""},
            {"hostPort":80,"containerPort":53,"protocol":"udp","hostIP":"0.0.0.0"},
            {"HostPort":81,"ContainerPort":81,"Protocol":"","HostIP":"192.0.2.1"},
            {"hostPort":81,"containerPort":82,"hostIP":"192.0.2.2"},
            {"hostPort":81,"containerPort":82,"hostIP":"192.0.2.2"}"#;
        let want = ["*:80/tcp->8080", "*:80/udp->53", "192.0.2.1:81/tcp->81", "192.0.2.2:81/tcp->82"];
        assert_eq!(ports(all).expect("valid"), want);
    }

    /// CNI-33: a malformed wish is refused with its key and value.
    #[test]
    fn malformed() {
        for (mapping, complaint) in [
            (r#"{"hostPort":0,"containerPort":1}"#, "hostPort 0"),
            (r#"{"hostPort":1,"containerPort":65536}"#, "containerPort 65536"),
            (r#"{"hostPort":1,"containerPort":1,"protocol":"icmp"}"#, "\"icmp\""),
            (r#"{"hostPort":1,"containerPort":1,"hostIP":"here"}"#, "\"here\""),
            (r#"{"hostPort":1,"containerPort":1},{"hostPort":1,"containerPort":2}"#, "*:1/tcp"),
            ("7", "runtimeConfig"),
        ] {
            assert!(ports(mapping).expect_err("refused").contains(complaint), "{mapping}");
        }
        for (wish, complaint) in [
            (r#""ips":["x"]"#, "\"x\""),
            (r#""ips":["192.0.2.1/x"]"#, "\"192.0.2.1/x\""),
            (r#""ips":["192.0.2.1","192.0.2.2"]"#, "more than one"),
            (r#""mac":"02""#, "\"02\""),
            (r#""mac":"01:00:5e:00:00:01""#, "01:00:5e"),
            (r#""bandwidth":{"ingressRate":1}"#, "ingressRate"),
        ] {
            let error = read(&format!(r#""runtimeConfig":{{{wish}}}"#)).expect_err("refused");
            assert!(error.contains(complaint), "{wish}: {error}");
        }
    }

    /// CNI-3, CNI-33: code 2, with key and value, for what would be given in another way than it was asked for.
    #[test]
    fn unsupported() {
        let code = |rest: &str| {
            let input = format!(r#"{{"cniVersion":"1.1.0","name":"n",{rest}}}"#);
            let config = NetworkConfig::parse(input.as_bytes()).expect("valid");
            Wishes::read(&config, &Args::default()).err().map(|error| (error.code, error.details))
        };
        let ranges = r#""runtimeConfig":{"ipRanges":[[{"subnet":"10.9.0.0/24"}]]}"#;
        let (refused, details) = code(ranges).expect("refused");
        assert_eq!(refused, ErrorCode::UNSUPPORTED_FIELD);
        assert_eq!(details, r#"runtimeConfig.ipRanges is [[{"subnet":"10.9.0.0/24"}]]"#);
        assert_eq!(
            code(&format!(r#""ipam":{{"type":"host-local"}},{ranges}"#)),
            None,
            "it is the other plugin's"
        );
        assert!(code(r#""runtimeConfig":{"deviceID":"0000:01:00.0"}"#).is_some());
        assert_eq!(code(r#""runtimeConfig":{"ipRanges":[],"deviceID":"","cgroupPath":"/x"}"#), None);
    }

    /// CNI-33: name resolution is passed on in the result's words.
    #[test]
    fn dns() {
        let wishes = read(
            r#""runtimeConfig":{"dns":{"servers":["10.96.0.10"],"searches":["svc"],"options":["ndots:5"]}}"#,
        );
        let dns = wishes.expect("valid").dns.expect("present");
        assert_eq!((dns.nameservers[0].as_str(), dns.search[0].as_str()), ("10.96.0.10", "svc"));
        assert_eq!(dns.options, ["ndots:5"]);
    }
}
