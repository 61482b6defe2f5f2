//! Ranges that Service addresses come from: what lies in them and is no frontend is nobody's.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use super::driver::{Notes, Watch};
use super::{Kind, Value};

pub(super) struct Watched;

impl Watch for Watched {
    type Object = ServiceCIDR;
    const KIND: Kind = Kind::ServiceCidr;

    fn read(object: &ServiceCIDR, notes: &mut Notes) -> Option<Value> {
        let texts = object.spec.as_ref()?.cidrs.iter().flatten();
        let parsed = texts.filter_map(|text| notes.parsed("spec.cidrs", text, text.parse::<IpNet>().ok()));
        Some(Value::ServiceCidr(parsed.map(|cidr| cidr.trunc()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Watched;
    use crate::watch::Value;
    use crate::watch::driver::tests::read;

    #[test]
    fn one_bad_range_does_not_hide_the_other() {
        let known = read::<Watched>(
            json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "x"]}}),
        );
        assert_eq!(known.value, Some(Value::ServiceCidr(vec!["10.96.0.0/16".parse().unwrap()])));
        assert_eq!(known.problems.len(), 1);
    }
}
