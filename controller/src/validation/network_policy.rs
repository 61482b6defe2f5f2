//! `NetworkPolicy`: a policy that is stored means one thing only (N8, N10, N19).

use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::field::FieldErrors;
use crate::{selector, syntax};

pub fn network_policy(errors: &mut FieldErrors, new: &NetworkPolicy) {
    let Some(spec) = &new.spec else { return };
    if let Some(selector) = &spec.pod_selector {
        selector::validate(errors, "spec.podSelector", selector);
    }
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.len() > 2 {
        errors.too_many("spec.policyTypes", types.len(), 2);
    }
    for (index, one) in types.iter().enumerate() {
        errors.one_of(format!("spec.policyTypes[{index}]"), one, &["Egress", "Ingress"]);
    }
    for (index, rule) in spec.ingress.iter().flatten().enumerate() {
        let field = format!("spec.ingress[{index}]");
        ports(errors, &field, rule.ports.as_deref());
        peers(errors, &format!("{field}.from"), rule.from.as_deref());
    }
    for (index, rule) in spec.egress.iter().flatten().enumerate() {
        let field = format!("spec.egress[{index}]");
        ports(errors, &field, rule.ports.as_deref());
        peers(errors, &format!("{field}.to"), rule.to.as_deref());
    }
}

fn ports(errors: &mut FieldErrors, field: &str, ports: Option<&[NetworkPolicyPort]>) {
    for (index, port) in ports.unwrap_or_default().iter().enumerate() {
        let field = format!("{field}.ports[{index}]");
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        errors.one_of(format!("{field}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        match &port.port {
            Some(IntOrString::Int(number)) => {
                errors.port_number(format!("{field}.port"), *number);
                if let Some(end) = port.end_port {
                    errors.port_number(format!("{field}.endPort"), end);
                    if end < *number {
                        errors.invalid(
                            format!("{field}.endPort"),
                            end,
                            "must be greater than or equal to `port`",
                        );
                    }
                }
            }
            Some(IntOrString::String(name)) => {
                syntax::port_name(errors, &format!("{field}.port"), name);
                if let Some(end) = port.end_port {
                    errors.invalid(
                        format!("{field}.endPort"),
                        end,
                        "may not be specified when `port` is a name",
                    );
                }
            }
            None => {
                if let Some(end) = port.end_port {
                    errors.invalid(
                        format!("{field}.endPort"),
                        end,
                        "may not be specified when `port` is not specified",
                    );
                }
            }
        }
    }
}

fn peers(errors: &mut FieldErrors, field: &str, peers: Option<&[NetworkPolicyPeer]>) {
    for (index, peer) in peers.unwrap_or_default().iter().enumerate() {
        let field = format!("{field}[{index}]");
        if peer.pod_selector.is_none() && peer.namespace_selector.is_none() && peer.ip_block.is_none() {
            errors.required(&field, "must specify a peer");
        }
        if let Some(selector) = &peer.pod_selector {
            selector::validate(errors, &format!("{field}.podSelector"), selector);
        }
        if let Some(selector) = &peer.namespace_selector {
            selector::validate(errors, &format!("{field}.namespaceSelector"), selector);
        }
        if let Some(block) = &peer.ip_block {
            if peer.pod_selector.is_some() || peer.namespace_selector.is_some() {
                errors.forbidden(&field, "may not specify both ipBlock and another peer");
            }
            ip_block(errors, &format!("{field}.ipBlock"), block);
        }
    }
}

fn ip_block(errors: &mut FieldErrors, field: &str, block: &IPBlock) {
    let cidr = syntax::cidr(errors, &format!("{field}.cidr"), &block.cidr);
    for (index, text) in block.except.iter().flatten().enumerate() {
        let field = format!("{field}.except[{index}]");
        let Some(except) = syntax::cidr(errors, &field, text) else { continue };
        if cidr.is_some_and(|cidr| !(cidr.contains(&except) && cidr.prefix_len() < except.prefix_len())) {
            errors.invalid(&field, text, format_args!("must be a strict subset of `cidr` {}", block.cidr));
        }
    }
}
