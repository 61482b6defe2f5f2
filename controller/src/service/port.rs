//! Validation of a Service's ports. Called by `validate`.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{is_external_name, is_headless, kind, list, takes_node_ports};
use crate::field::FieldErrors;
use crate::syntax;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// Complains about the ports one by one and about what they share.
pub(super) fn validate(errors: &mut FieldErrors, spec: &ServiceSpec) {
    let ports = list(spec.ports.as_ref());
    if ports.is_empty() && !is_headless(spec) && !is_external_name(spec) {
        errors.required("spec.ports", "");
    }
    let mut seen = Seen::default();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        one(errors, &field, port, ports.len());
        if !takes_node_ports(spec) && port.node_port.is_some_and(|number| number != 0) {
            let why = format!("may not be used when `type` is '{}'", kind(spec));
            errors.forbidden(format!("{field}.nodePort"), &why);
        }
        seen.check(errors, &field, port);
    }
}

fn one(errors: &mut FieldErrors, field: &str, port: &ServicePort, count: usize) {
    match port.name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => syntax::dns_label(errors, &format!("{field}.name"), name),
        None if count > 1 => errors.required(format!("{field}.name"), ""),
        None => {}
    }
    errors.port_number(format!("{field}.port"), port.port);
    errors.one_of(format!("{field}.protocol"), protocol(port), &PROTOCOLS);
    match &port.target_port {
        Some(IntOrString::Int(number)) => errors.port_number(format!("{field}.targetPort"), *number),
        Some(IntOrString::String(name)) => syntax::port_name(errors, &format!("{field}.targetPort"), name),
        None => {}
    }
}

/// What earlier ports of the same Service took.
#[derive(Default)]
struct Seen<'a> {
    names: HashSet<&'a str>,
    ports: HashSet<(&'a str, i32)>,
    node_ports: HashSet<(&'a str, i32)>,
}

impl<'a> Seen<'a> {
    fn check(&mut self, errors: &mut FieldErrors, field: &str, port: &'a ServicePort) {
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty())
            && !self.names.insert(name)
        {
            errors.duplicate(format!("{field}.name"), name);
        }
        if !self.ports.insert((protocol(port), port.port)) {
            errors.duplicate(field, format_args!("{}/{}", port.port, protocol(port)));
        }
        if let Some(number) = port.node_port.filter(|&number| number != 0)
            && !self.node_ports.insert((protocol(port), number))
        {
            errors.duplicate(format!("{field}.nodePort"), number);
        }
    }
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}
