//! Pods: what the network reads of them, and that what runs does not change under it.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::endpoint::validate_weight;
use crate::field::FieldErrors;
use crate::syntax;

pub fn pod(errors: &mut FieldErrors, new: &Pod, old: Option<&Pod>) {
    validate_weight(errors, &new.metadata);
    let Some(spec) = &new.spec else {
        errors.required("spec", "");
        return;
    };
    if spec.containers.is_empty() {
        errors.required("spec.containers", "");
    }
    let mut names = HashSet::new();
    containers(errors, "spec.containers", &spec.containers, &mut names);
    containers(
        errors,
        "spec.initContainers",
        spec.init_containers.as_deref().unwrap_or_default(),
        &mut names,
    );
    if let Some(node) =
        spec.node_name.as_deref().filter(|name| !name.is_empty() && !syntax::is_dns_subdomain(name))
    {
        errors.invalid("spec.nodeName", node, "must be the name of a node");
    }
    for (field, name) in [("spec.hostname", &spec.hostname), ("spec.subdomain", &spec.subdomain)] {
        if let Some(name) = name {
            syntax::dns_label(errors, field, name);
        }
    }
    if let Some(stored) = old.and_then(|old| old.spec.as_ref()) {
        unchanged(errors, spec, stored);
    }
}

fn containers<'a>(
    errors: &mut FieldErrors,
    field: &str,
    containers: &'a [Container],
    names: &mut HashSet<&'a str>,
) {
    for (index, container) in containers.iter().enumerate() {
        let field = format!("{field}[{index}]");
        syntax::dns_label(errors, &format!("{field}.name"), &container.name);
        if !names.insert(&container.name) {
            errors.duplicate(format!("{field}.name"), &container.name);
        }
        ports(errors, &field, container);
    }
}

fn ports(errors: &mut FieldErrors, field: &str, container: &Container) {
    let mut names = HashSet::new();
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let field = format!("{field}.ports[{index}]");
        errors.port_number(format!("{field}.containerPort"), port.container_port);
        errors.one_of(
            format!("{field}.protocol"),
            port.protocol.as_deref().unwrap_or("TCP"),
            &["SCTP", "TCP", "UDP"],
        );
        if let Some(name) = &port.name {
            syntax::port_name(errors, &format!("{field}.name"), name);
            if !names.insert(name) {
                errors.duplicate(format!("{field}.name"), name);
            }
        }
        if let Some(number) = port.host_port.filter(|&number| number != 0) {
            errors.port_number(format!("{field}.hostPort"), number);
        }
        if let Some(text) = port.host_ip.as_deref().filter(|text| !text.is_empty()) {
            syntax::address(errors, &format!("{field}.hostIP"), text);
        }
    }
}

/// A Pod may be given a node once; images, deadlines, tolerations and gates may change; nothing else.
fn unchanged(errors: &mut FieldErrors, new: &PodSpec, old: &PodSpec) {
    let mut allowed = old.clone();
    if allowed.node_name.as_deref().is_none_or(str::is_empty) {
        allowed.node_name.clone_from(&new.node_name);
    }
    allowed.active_deadline_seconds = new.active_deadline_seconds;
    allowed.termination_grace_period_seconds = new.termination_grace_period_seconds;
    allowed.tolerations.clone_from(&new.tolerations);
    allowed.scheduling_gates.clone_from(&new.scheduling_gates);
    images(&mut allowed.containers, &new.containers);
    if let (Some(allowed), Some(new)) = (&mut allowed.init_containers, &new.init_containers) {
        images(allowed, new);
    }
    if allowed != *new {
        let why = "pod updates may not change fields other than `spec.containers[*].image`, \
                   `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` and, once, \
                   `spec.nodeName`";
        errors.forbidden("spec", why);
    }
}

fn images(allowed: &mut [Container], new: &[Container]) {
    for (allowed, new) in allowed.iter_mut().zip(new) {
        allowed.image.clone_from(&new.image);
    }
}
