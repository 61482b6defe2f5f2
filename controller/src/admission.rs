//! What the embedded apiserver asks before it stores an object: completes and checks the kinds of the network. The one
//! place where JSON becomes typed objects and complaints become refusals. Status writes pass: they allocate nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use quilla_apiserver::{Admission, AdmissionRequest, Cause, Rejection};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::field::FieldErrors;
use crate::service::ServiceAdmission;
use crate::validation;

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

    /// Takes over what the stored Services hold, and accepts Services from now on.
    pub fn adopt(&self, services: &[Value]) {
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
        Ok(())
    }
}

impl Admission for NetworkAdmission {
    fn admit(&self, request: &AdmissionRequest<'_>, new: Option<&mut Value>) -> Result<(), Rejection> {
        if request.subresource.is_some() {
            return Ok(());
        }
        if is_service(request) {
            if !self.adopted.load(Ordering::Acquire) {
                return Err(starting());
            }
            return self.admit_service(request, new);
        }
        let Some(new) = new else { return Ok(()) };
        match (request.group, request.resource) {
            ("", "namespaces") => check::<Namespace>("Namespace", request, new, |errors, new, _| {
                validation::namespace(errors, new);
            }),
            ("", "nodes") => check::<Node>("Node", request, new, validation::node),
            ("", "pods") => check::<Pod>("Pod", request, new, validation::pod),
            ("", "endpoints") => check::<Endpoints>("Endpoints", request, new, |errors, new, _| {
                validation::endpoints(errors, new);
            }),
            ("discovery.k8s.io", "endpointslices") => check::<EndpointSlice>(
                "EndpointSlice.discovery.k8s.io",
                request,
                new,
                validation::endpoint_slice,
            ),
            ("networking.k8s.io", "networkpolicies") => {
                check::<NetworkPolicy>("NetworkPolicy.networking.k8s.io", request, new, |errors, new, _| {
                    validation::network_policy(errors, new);
                })
            }
            _ => Ok(()),
        }
    }

    fn rolled_back(&self, request: &AdmissionRequest<'_>, new: Option<&Value>) {
        if request.subresource.is_none() && is_service(request) {
            let new = new.and_then(|value| typed::<Service>(value).ok());
            let old = request.old.and_then(|value| typed::<Service>(value).ok());
            self.services.roll_back(new.as_ref(), old.as_ref());
        }
    }
}

fn is_service(request: &AdmissionRequest<'_>) -> bool {
    request.group.is_empty() && request.resource == "services"
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

#[cfg(test)]
mod tests {
    use quilla_apiserver::{Admission, AdmissionRequest, Operation};
    use serde_json::json;

    use super::NetworkAdmission;
    use crate::service::{NodePortRange, ServiceAdmission};

    fn request<'a>(group: &'a str, resource: &'a str) -> AdmissionRequest<'a> {
        AdmissionRequest {
            group,
            version: "v1",
            resource,
            namespace: Some("default"),
            name: "x",
            operation: Operation::Create,
            subresource: None,
            old: None,
            dry_run: false,
        }
    }

    fn admission() -> NetworkAdmission {
        let cidrs = ["10.96.0.0/24".parse().expect("cidr")];
        let admission = NetworkAdmission::new(ServiceAdmission::new(&cidrs, NodePortRange::default()));
        admission.adopt(&[]);
        admission
    }

    #[test]
    fn s51_nothing_is_allocated_before_stored_services_are_known() {
        let cidrs = ["10.96.0.0/24".parse().expect("cidr")];
        let admission = NetworkAdmission::new(ServiceAdmission::new(&cidrs, NodePortRange::default()));
        let asked =
            json!({"metadata": {"name": "x"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}});
        let refused =
            admission.admit(&request("", "services"), Some(&mut asked.clone())).expect_err("too early");
        assert_eq!(refused.code, 503);
        let stored = json!({"metadata": {"name": "y"}, "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}});
        admission.adopt(&[stored, json!({"spec": 1})]);
        let refused = admission.admit(&request("", "services"), Some(&mut asked.clone())).expect_err("taken");
        assert_eq!(refused.code, 422);
    }

    #[test]
    fn a_service_comes_back_complete_and_is_given_up_when_undone() {
        let admission = admission();
        let asked =
            json!({"metadata": {"name": "x"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}});
        let mut new = asked.clone();
        admission.admit(&request("", "services"), Some(&mut new)).expect("admitted");
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.9"]));
        assert_eq!(new["metadata"], asked["metadata"]);
        admission.admit(&request("", "services"), Some(&mut asked.clone())).expect_err("taken");
        admission.rolled_back(&request("", "services"), Some(&new));
        admission.admit(&request("", "services"), Some(&mut asked.clone())).expect("free again");
    }

    #[test]
    fn a_refusal_names_kind_object_and_field() {
        let mut new =
            json!({"metadata": {"name": "x"}, "addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}]});
        let refused = admission()
            .admit(&request("discovery.k8s.io", "endpointslices"), Some(&mut new))
            .expect_err("loopback of the other family");
        assert_eq!((refused.code, refused.reason), (422, "Invalid"));
        assert!(
            refused.message.starts_with("EndpointSlice.discovery.k8s.io \"x\" is invalid: ["),
            "{}",
            refused.message
        );
        assert_eq!(refused.causes.len(), 2);
        assert_eq!(refused.causes[0].field, "endpoints[0].addresses[0]");
    }

    #[test]
    fn what_is_not_of_its_type_is_a_bad_request_and_other_kinds_pass() {
        let mut new = json!({"metadata": {"name": "x"}, "spec": {"ports": "none"}});
        let refused = admission().admit(&request("", "services"), Some(&mut new)).expect_err("malformed");
        assert_eq!(refused.code, 400);
        admission().admit(&request("", "configmaps"), Some(&mut new)).expect("not ours");
    }
}
