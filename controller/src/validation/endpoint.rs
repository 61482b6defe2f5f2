//! EndpointSlices and Endpoints: addresses that a packet can have as its destination, and ports with distinct names.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use quilla_model::Family;

use crate::endpoint::validate_weight;
use crate::field::FieldErrors;
use crate::syntax;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const MOST_ENDPOINTS: usize = 1000;
const MOST_ADDRESSES: usize = 100;
const MOST_PORTS: usize = 20_000;

pub fn endpoint_slice(errors: &mut FieldErrors, new: &EndpointSlice, old: Option<&EndpointSlice>) {
    validate_weight(errors, &new.metadata);
    errors.one_of("addressType", &new.address_type, &["FQDN", "IPv4", "IPv6"]);
    if old.is_some_and(|old| old.address_type != new.address_type) {
        errors.invalid("addressType", &new.address_type, "field is immutable");
    }
    let endpoints = new.endpoints.as_deref().unwrap_or_default();
    if endpoints.len() > MOST_ENDPOINTS {
        errors.too_many("endpoints", endpoints.len(), MOST_ENDPOINTS);
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        addresses(errors, &format!("endpoints[{index}].addresses"), &new.address_type, &endpoint.addresses);
        if let Some(name) = &endpoint.hostname {
            syntax::dns_label(errors, &format!("endpoints[{index}].hostname"), name);
        }
    }
    let ports = new.ports.as_deref().unwrap_or_default();
    if ports.len() > MOST_PORTS {
        errors.too_many("ports", ports.len(), MOST_PORTS);
    }
    let mut names = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let name = port.name.as_deref().unwrap_or_default();
        let found = Port { name, number: port.port, protocol: port.protocol.as_deref() };
        found.validate(errors, &format!("ports[{index}]"), &mut names);
    }
}

fn addresses(errors: &mut FieldErrors, field: &str, address_type: &str, addresses: &[String]) {
    match addresses.len() {
        0 => errors.required(field, "must contain at least 1 address"),
        count if count > MOST_ADDRESSES => errors.too_many(field, count, MOST_ADDRESSES),
        _ => {}
    }
    for (index, text) in addresses.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let wanted = match address_type {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => {
                if !syntax::is_dns_subdomain(text) {
                    errors.invalid(&field, text, "must be a DNS subdomain");
                }
                continue;
            }
        };
        let Some(address) = syntax::address(errors, &field, text) else { continue };
        if Family::of(address) != wanted {
            errors.invalid(&field, text, format_args!("must be an {address_type} address"));
        }
        syntax::endpoint_address(errors, &field, address);
    }
}

pub fn endpoints(errors: &mut FieldErrors, new: &Endpoints) {
    for (index, subset) in new.subsets.iter().flatten().enumerate() {
        let field = format!("subsets[{index}]");
        let ready = subset.addresses.iter().flatten();
        let lists =
            [("addresses", ready), ("notReadyAddresses", subset.not_ready_addresses.iter().flatten())];
        for (list, addresses) in lists {
            for (index, address) in addresses.enumerate() {
                let field = format!("{field}.{list}[{index}].ip");
                if let Some(address) = syntax::address(errors, &field, &address.ip) {
                    syntax::endpoint_address(errors, &field, address);
                }
            }
        }
        let ports = subset.ports.as_deref().unwrap_or_default();
        let mut names = HashSet::new();
        for (index, port) in ports.iter().enumerate() {
            let field = format!("{field}.ports[{index}]");
            let name = port.name.as_deref().unwrap_or_default();
            if name.is_empty() && ports.len() > 1 {
                errors.required(format!("{field}.name"), "");
            }
            let found = Port { name, number: Some(port.port), protocol: port.protocol.as_deref() };
            found.validate(errors, &field, &mut names);
        }
    }
}

/// What the ports of both kinds have in common.
struct Port<'a> {
    name: &'a str,
    number: Option<i32>,
    protocol: Option<&'a str>,
}

impl<'a> Port<'a> {
    fn validate(&self, errors: &mut FieldErrors, field: &str, names: &mut HashSet<&'a str>) {
        if !names.insert(self.name) {
            errors.duplicate(format!("{field}.name"), self.name);
        }
        if !self.name.is_empty() {
            syntax::dns_label(errors, &format!("{field}.name"), self.name);
        }
        if let Some(number) = self.number {
            errors.port_number(format!("{field}.port"), number);
        }
        errors.one_of(format!("{field}.protocol"), self.protocol.unwrap_or("TCP"), &PROTOCOLS);
    }
}
