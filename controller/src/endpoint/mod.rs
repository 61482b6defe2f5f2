//! From a Service and its Pods to EndpointSlices, as pure values. Called by the EndpointSlice reconciler. The same
//! input gives the same slices, and slices that are right already are not touched.

mod desired;
mod hints;
mod pod;
mod slices;
mod topology;
mod trigger;
mod weight;

#[cfg(test)]
mod tests;

pub use desired::{Group, desired};
pub use slices::{Plan, plan};
pub use topology::Topology;
pub use trigger::{Triggers, of_pod as pod_trigger, of_service as service_trigger};
pub use weight::{WEIGHT_ANNOTATION, validate as validate_weight};

/// The label that names a slice's Service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The label that names who writes a slice.
pub const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// What we put there: slices with another value are somebody else's.
pub const MANAGED_BY: &str = "endpointslice-controller.quilla.net";
/// The label of a headless Service's slices, which no proxy reads (S1).
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// When the change happened that a slice tells of (S53).
pub const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
