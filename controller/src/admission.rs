//! What the embedded apiserver asks before it stores an object: completes and checks the kinds of the network. The one
//! place where JSON becomes typed objects and complaints become refusals. Status writes allocate nothing.

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{NetworkPolicy, ServiceCIDR, ServiceCIDRStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use quilla_apiserver::{Admission, AdmissionRequest, Cause, Operation, Rejection};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::field::FieldErrors;
use crate::reconcile::service_cidr;
use crate::service::ServiceAdmission;
use crate::validation;

/// Whoever writes a policy and is not told believes to be protected.
const NOT_ENFORCED: &str = "NetworkPolicies are stored but not enforced yet: no traffic is restricted";

const SERVICE_CIDR_KIND: &str = "ServiceCIDR.networking.k8s.io";

/// Admission for the whole cluster.
#[derive(Debug)]
pub struct NetworkAdmission {
    services: ServiceAdmission,
    /// Whether the allocator knows what the stored Services hold; Services are refused until then.
    adopted: AtomicBool,
}

impl NetworkAdmission {
    pub fn new(services: ServiceAdmission) -> Self {
        Self { services, adopted: AtomicBool::new(false) }
    }

    /// Takes over the stored networks and what the stored Services hold, and accepts both kinds from now on.
    pub fn adopt(&self, cidrs: &[Value], services: &[Value]) {
        for value in cidrs {
            match typed::<ServiceCIDR>(value) {
                Ok(object) => {
                    if let Err(error) = self.add_cidrs(&object) {
                        let name = object.metadata.name.as_deref().unwrap_or_default();
                        tracing::error!(service_cidr = name, %error, "stored networks cannot be used");
                    }
                }
                Err(error) => {
                    let error = &error as &(dyn std::error::Error + 'static);
                    tracing::error!(error, "stored service cidr is malformed, it adds nothing");
                }
            }
        }
        for value in services {
            match typed::<Service>(value) {
                Ok(service) => {
                    for holding in self.services.adopt(&service) {
                        let name = service.metadata.name.as_deref().unwrap_or_default();
                        tracing::error!(service = name, holding, "two stored services hold the same");
                    }
                }
                Err(error) => {
                    let error = &error as &(dyn std::error::Error + 'static);
                    tracing::error!(error, "stored service is malformed, it holds nothing");
                }
            }
        }
        self.adopted.store(true, Ordering::Release);
    }

    fn admit_service(
        &self,
        request: &AdmissionRequest<'_>,
        new: Option<&mut Value>,
    ) -> Result<(), Rejection> {
        let old = request.old.map(read::<Service>).transpose()?;
        let Some(new) = new else {
            return self
                .services
                .admit(None, old.as_ref())
                .map_err(|errors| invalid("Service", request, &errors));
        };
        let mut service = read::<Service>(new)?;
        self.services
            .admit(Some(&mut service), old.as_ref())
            .map_err(|errors| invalid("Service", request, &errors))?;
        new["spec"] = serde_json::to_value(&service.spec).map_err(|error| malformed(&error))?;
        put_status(new, service.status.as_ref())
    }

    fn admit_service_cidr(
        &self,
        request: &AdmissionRequest<'_>,
        new: Option<&mut Value>,
    ) -> Result<(), Rejection> {
        let Some(new) = new else {
            return self.services.remove_cidrs(request.name).map_err(|stranded| in_use(request, &stranded));
        };
        check(SERVICE_CIDR_KIND, request, new, validation::service_cidr)?;
        if request.operation != Operation::Create {
            return Ok(());
        }
        let mut object = read::<ServiceCIDR>(new)?;
        self.add_cidrs(&object).map_err(|errors| invalid(SERVICE_CIDR_KIND, request, &errors))?;
        object.status = Some(ServiceCIDRStatus { conditions: Some(vec![usable()]) });
        put_status(new, object.status.as_ref())
    }

    /// Nothing for the object that tells of the command line's networks: the allocator has those.
    fn add_cidrs(&self, object: &ServiceCIDR) -> Result<(), FieldErrors> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        if name == service_cidr::NAME {
            return Ok(());
        }
        self.services.add_cidrs(name, &validation::networks(object))
    }

    fn roll_back_service_cidr(&self, request: &AdmissionRequest<'_>) {
        match (request.operation, request.old.map(typed::<ServiceCIDR>)) {
            (Operation::Create, _) => {
                if let Err(held) = self.services.remove_cidrs(request.name) {
                    tracing::error!(service_cidr = request.name, ?held, "undone networks are in use already");
                }
            }
            (Operation::Delete, Some(Ok(old))) => {
                if let Err(error) = self.add_cidrs(&old) {
                    tracing::error!(service_cidr = request.name, %error, "networks cannot be restored");
                }
            }
            _ => {}
        }
    }
}

fn admit_service_status(request: &AdmissionRequest<'_>, new: &mut Value) -> Result<(), Rejection> {
    let mut service = read::<Service>(new)?;
    ServiceAdmission::admit_status(&mut service).map_err(|errors| invalid("Service", request, &errors))?;
    put_status(new, service.status.as_ref())
}

impl Admission for NetworkAdmission {
    fn admit(&self, request: &AdmissionRequest<'_>, new: Option<&mut Value>) -> Result<(), Rejection> {
        match (request.subresource, new) {
            (Some("status"), Some(new)) if is_service(request) => admit_service_status(request, new),
            (None, new) if is_service(request) || is_service_cidr(request) => {
                if !self.adopted.load(Ordering::Acquire) {
                    return Err(starting());
                }
                if is_service(request) {
                    self.admit_service(request, new)
                } else {
                    self.admit_service_cidr(request, new)
                }
            }
            (None, Some(new)) => validate(request, new),
            (Some(_), _) | (None, None) => Ok(()),
        }
    }

    fn rolled_back(&self, request: &AdmissionRequest<'_>, new: Option<&Value>) {
        if request.subresource.is_some() {
            return;
        }
        if is_service(request) {
            let new = new.and_then(|value| typed::<Service>(value).ok());
            let old = request.old.and_then(|value| typed::<Service>(value).ok());
            self.services.roll_back(new.as_ref(), old.as_ref());
        } else if is_service_cidr(request) {
            self.roll_back_service_cidr(request);
        }
    }

    fn warnings(&self, request: &AdmissionRequest<'_>) -> Vec<String> {
        let written = request.operation != Operation::Delete && request.subresource.is_none();
        let policy = (request.group, request.resource) == ("networking.k8s.io", "networkpolicies");
        if written && policy { vec![NOT_ENFORCED.to_owned()] } else { Vec::new() }
    }
}

/// The kinds that are checked but hold nothing.
fn validate(request: &AdmissionRequest<'_>, new: &Value) -> Result<(), Rejection> {
    match (request.group, request.resource) {
        ("", "namespaces") => check::<Namespace>("Namespace", request, new, |errors, new, _| {
            validation::namespace(errors, new);
        }),
        ("", "nodes") => check::<Node>("Node", request, new, validation::node),
        ("", "pods") => check::<Pod>("Pod", request, new, validation::pod),
        ("", "endpoints") => check::<Endpoints>("Endpoints", request, new, |errors, new, _| {
            validation::endpoints(errors, new);
        }),
        ("discovery.k8s.io", "endpointslices") => {
            check::<EndpointSlice>("EndpointSlice.discovery.k8s.io", request, new, validation::endpoint_slice)
        }
        ("networking.k8s.io", "networkpolicies") => {
            check::<NetworkPolicy>("NetworkPolicy.networking.k8s.io", request, new, |errors, new, _| {
                validation::network_policy(errors, new);
            })
        }
        _ => Ok(()),
    }
}

fn is_service(request: &AdmissionRequest<'_>) -> bool {
    request.group.is_empty() && request.resource == "services"
}

fn is_service_cidr(request: &AdmissionRequest<'_>) -> bool {
    request.group == "networking.k8s.io" && request.resource == "servicecidrs"
}

/// An absent status is left as it is.
fn put_status<S: Serialize>(new: &mut Value, status: Option<&S>) -> Result<(), Rejection> {
    if let Some(status) = status {
        new["status"] = serde_json::to_value(status).map_err(|error| malformed(&error))?;
    }
    Ok(())
}

fn usable() -> Condition {
    Condition {
        type_: "Ready".to_owned(),
        status: "True".to_owned(),
        message: "Services may have its addresses".to_owned(),
        reason: String::new(),
        last_transition_time: Time(Timestamp::now()),
        observed_generation: None,
    }
}

/// Validates one kind that needs no completion.
fn check<K: DeserializeOwned>(
    kind: &str,
    request: &AdmissionRequest<'_>,
    new: &Value,
    validate: impl FnOnce(&mut FieldErrors, &K, Option<&K>),
) -> Result<(), Rejection> {
    let new = read::<K>(new)?;
    let old = request.old.map(read::<K>).transpose()?;
    let mut errors = FieldErrors::default();
    validate(&mut errors, &new, old.as_ref());
    errors.into_result().map_err(|errors| invalid(kind, request, &errors))
}

fn typed<K: DeserializeOwned>(value: &Value) -> Result<K, serde_json::Error> {
    K::deserialize(value)
}

fn read<K: DeserializeOwned>(value: &Value) -> Result<K, Rejection> {
    typed(value).map_err(|error| malformed(&error))
}

fn starting() -> Rejection {
    let message = "the addresses of stored services are being restored".to_owned();
    Rejection { code: 503, reason: "ServiceUnavailable", message, causes: Vec::new() }
}

fn in_use(request: &AdmissionRequest<'_>, stranded: &[IpAddr]) -> Rejection {
    let held: Vec<_> = stranded.iter().take(3).map(IpAddr::to_string).collect();
    let more = if stranded.len() > held.len() { ", …" } else { "" };
    let message = format!(
        "servicecidrs.networking.k8s.io {:?} cannot be deleted: {} of its addresses are held by services: {}{more}",
        request.name,
        stranded.len(),
        held.join(", ")
    );
    Rejection { code: 409, reason: "Conflict", message, causes: Vec::new() }
}

fn malformed(error: &serde_json::Error) -> Rejection {
    Rejection { code: 400, reason: "BadRequest", message: error.to_string(), causes: Vec::new() }
}

fn invalid(kind: &str, request: &AdmissionRequest<'_>, errors: &FieldErrors) -> Rejection {
    let cause = |error: &crate::field::FieldError| Cause {
        reason: error.complaint.reason().to_owned(),
        message: error.message.clone(),
        field: error.field.clone(),
    };
    Rejection {
        code: 422,
        reason: "Invalid",
        message: format!("{kind} {:?} is invalid: {errors}", request.name),
        causes: errors.iter().map(cause).collect(),
    }
}
