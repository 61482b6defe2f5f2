//! The result of ADD, in the shape of the newest specification, and its conversion to the older ones. Built by the
//! plugin for ADD and read back from `prevResult`; what an older version cannot say is left out, never renamed.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Value, json};

use crate::{CniError, ErrorCode, MacAddress, SpecVersion};

/// What ADD made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// Interfaces, those of the host included.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes of the Pod.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name resolution, as configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// An interface ADD made or adjusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, deserialize_with = "text", skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Its MTU (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace as the runtime named it; absent for the host.
    #[serde(default, deserialize_with = "text", skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// A vhost-user or similar socket (1.1.0), of another plugin in the chain.
    #[serde(default, rename = "socketPath", skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// A PCI device (1.1.0), of another plugin in the chain.
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// An address of the Pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The address with its prefix length.
    pub address: IpNet,
    /// The next hop.
    #[serde(default, deserialize_with = "text", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route of the Pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop.
    #[serde(default, deserialize_with = "text", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// 1.1.0: 0 global, 253 link, 254 host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

/// Name resolution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl AddResult {
    /// The result as the given version of the specification writes it.
    pub fn encode(&self, version: SpecVersion) -> Value {
        let mut result = self.clone();
        if version < SpecVersion::V1_1_0 {
            result.drop_details();
        }
        let mut document = json!(result);
        if version < SpecVersion::V1_0_0 {
            add_ip_versions(&mut document, &self.ips);
        }
        document["cniVersion"] = json!(version.as_str());
        document
    }

    /// Reads a result of any supported version; one that names no version is of the configuration's.
    pub fn decode(document: &Value) -> Result<Self, CniError> {
        let undecodable =
            |details: String| CniError::new(ErrorCode::DECODE_FAILURE, "decode prevResult", details);
        match document.get("cniVersion") {
            // A list would be read as the values of an object in their order.
            None if !document.is_object() => return Err(undecodable("not a json object".to_owned())),
            None => {}
            Some(Value::String(version)) if SpecVersion::parse(version).is_some() => {}
            Some(Value::String(version)) => {
                let details = format!("prevResult has version {version:?}");
                return Err(CniError::new(
                    ErrorCode::INCOMPATIBLE_VERSION,
                    "incompatible cni version",
                    details,
                ));
            }
            Some(other) => return Err(undecodable(format!("cniVersion is not a string: {other}"))),
        }
        let result = Self::deserialize(document).map_err(|error| undecodable(error.to_string()))?;
        let beyond = |ip: &&IpConfig| ip.interface.is_some_and(|index| index >= result.interfaces.len());
        match result.ips.iter().find(beyond) {
            None => Ok(result),
            Some(IpConfig { address, interface, .. }) => {
                let details =
                    format!("address {address} has interface {interface:?} of {}", result.interfaces.len());
                Err(CniError::new(ErrorCode::INVALID_CONFIG, "invalid prevResult", details))
            }
        }
    }

    /// Appends another plugin's result, as an ADD in the middle of a chain must.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        let offset = self.interfaces.len();
        self.interfaces.extend(other.interfaces);
        self.ips.extend(other.ips.into_iter().map(|mut ip| {
            ip.interface = ip.interface.map(|index| index + offset);
            ip
        }));
        self.routes.extend(other.routes);
        self.dns = other.dns.or(self.dns);
        self
    }

    /// Leaves out what only 1.1.0 can say.
    fn drop_details(&mut self) {
        for interface in &mut self.interfaces {
            interface.mtu = None;
            interface.socket_path = None;
            interface.pci_id = None;
        }
        for route in &mut self.routes {
            *route =
                Route { mtu: None, advmss: None, priority: None, table: None, scope: None, ..route.clone() };
        }
    }
}

/// A list; other plugins write an empty one as `null`, too.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What is written as text; other plugins write an absent one as an empty text, too.
fn text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text: Option<String> = Option::deserialize(deserializer)?;
    text.filter(|text| !text.is_empty()).map(|text| text.parse().map_err(de::Error::custom)).transpose()
}

fn add_ip_versions(document: &mut Value, ips: &[IpConfig]) {
    for (index, ip) in ips.iter().enumerate() {
        let version = if ip.address.addr().is_ipv4() { "4" } else { "6" };
        document["ips"][index]["version"] = json!(version);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{AddResult, Dns, Interface, IpConfig, Route};
    use crate::{ErrorCode, MacAddress, SpecVersion};

    fn sample() -> AddResult {
        AddResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
                mtu: Some(1450),
                sandbox: Some("/run/netns/a".into()),
                socket_path: None,
                pci_id: None,
            }],
            ips: ["10.1.0.2/32", "fd00::2/128"]
                .map(|address| IpConfig {
                    address: address.parse().expect("valid"),
                    gateway: None,
                    interface: Some(0),
                })
                .to_vec(),
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().expect("valid"),
                gw: Some("10.1.0.1".parse().expect("valid")),
                mtu: Some(1400),
                advmss: Some(1),
                priority: Some(2),
                table: Some(254),
                scope: Some(0),
            }],
            dns: Some(Dns { nameservers: vec!["10.96.0.10".into()], ..Dns::default() }),
        }
    }

    /// CNI-10: every version gets its own shape, and nothing a version cannot say.
    #[test]
    fn conversion() {
        let newest = sample().encode(SpecVersion::V1_1_0);
        assert_eq!(newest["cniVersion"], "1.1.0");
        assert_eq!(newest["interfaces"][0]["mtu"], 1450);
        assert_eq!(newest["routes"][0]["table"], 254);
        assert_eq!(newest["ips"][0].get("version"), None);

        let one = sample().encode(SpecVersion::V1_0_0);
        assert_eq!(one["interfaces"][0].get("mtu"), None);
        assert_eq!(one["routes"][0], json!({ "dst": "0.0.0.0/0", "gw": "10.1.0.1" }));
        assert_eq!(one["ips"][0].get("version"), None);

        for version in [SpecVersion::V0_3_1, SpecVersion::V0_4_0] {
            let old = sample().encode(version);
            assert_eq!(old["cniVersion"], version.as_str());
            assert_eq!((&old["ips"][0]["version"], &old["ips"][1]["version"]), (&json!("4"), &json!("6")));
            assert_eq!(old["interfaces"][0].get("mtu"), None);
        }
    }

    /// CNI-10: what we write in any version we read back, less what that version cannot say.
    #[test]
    fn round_trip() {
        for version in SpecVersion::ALL {
            let mut expected = sample();
            if version < SpecVersion::V1_1_0 {
                expected.drop_details();
            }
            assert_eq!(AddResult::decode(&sample().encode(version)), Ok(expected), "{version}");
        }
    }

    /// CNI-8, CNI-19: results as other plugins may write them, and as nobody may.
    #[test]
    fn foreign_results() {
        let code = |document| AddResult::decode(&document).err().map(|error| error.code);
        let sparse = json!({
            "interfaces": [{"name": "eth0", "mac": "", "sandbox": ""}], "ips": null, "routes": null,
            "dns": {},
        });
        let decoded = AddResult::decode(&sparse).expect("valid");
        assert_eq!((decoded.interfaces[0].mac, decoded.interfaces[0].sandbox.as_deref()), (None, None));
        for version in SpecVersion::ALL {
            assert_eq!(code(json!({"cniVersion": version.as_str()})), None, "{version}");
        }
        assert_eq!(code(json!({"cniVersion": "0.2.0"})), Some(ErrorCode::INCOMPATIBLE_VERSION));
        assert_eq!(code(json!({"cniVersion": 1})), Some(ErrorCode::DECODE_FAILURE));
        let index = |index| json!({"interfaces": [{"name": "a"}], "ips": [{"address": "10.0.0.1/8", "interface": index}]});
        assert_eq!(code(index(json!(0))), None);
        assert_eq!(code(index(json!(1))), Some(ErrorCode::INVALID_CONFIG));
        assert_eq!(code(index(json!(-1))), Some(ErrorCode::DECODE_FAILURE));
    }

    /// CNI-13: a chained ADD keeps what came before and moves its own indices.
    #[test]
    fn merge_moves_interface_indices() {
        let merged = sample().merge(sample());
        assert_eq!(merged.interfaces.len(), 2);
        assert_eq!(
            merged.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(),
            [Some(0), Some(0), Some(1), Some(1)]
        );
    }
}
