//! Many Services and their endpoints, as lists for kubectl. The endpoints are addresses of Pods that nobody runs.

use serde_json::{Value, json};

/// Name of a Service, and of its slice.
pub(super) fn name(number: usize) -> String {
    format!("service-{number}")
}

/// Services without a selector: their slices are ours.
pub(super) fn services(count: usize) -> Value {
    list((0..count).map(|number| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name(number) },
            "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
        })
    }))
}

/// One slice for each Service; no two endpoints are the same.
pub(super) fn slices(count: usize, endpoints_each: usize) -> Value {
    list((0..count).map(|number| {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": name(number), "labels": { "kubernetes.io/service-name": name(number) } },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
            "endpoints": endpoints(number * endpoints_each, endpoints_each)["endpoints"],
        })
    }))
}

/// So many endpoints, the first one with the given number.
pub(super) fn endpoints(first: usize, count: usize) -> Value {
    let address = |number: usize| format!("10.244.{}.{}", 10 + number / 250, 2 + number % 250);
    let endpoint = |number| json!({ "addresses": [address(number)], "conditions": { "ready": true } });
    json!({ "endpoints": (first..first + count).map(endpoint).collect::<Vec<_>>() })
}

fn list(items: impl Iterator<Item = Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::slices;

    #[test]
    fn endpoints_are_all_different_addresses() {
        let list = slices(1000, 10);
        let slices = list["items"].as_array().expect("items");
        let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().expect("endpoints"));
        let addresses: BTreeSet<std::net::Ipv4Addr> = endpoints
            .map(|endpoint| endpoint["addresses"][0].as_str().expect("text").parse().expect("address"))
            .collect();
        assert_eq!(addresses.len(), 10_000);
    }
}
