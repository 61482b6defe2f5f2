//! Namespaces and their labels.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace as ApiNamespace;
use kube::ResourceExt;
use quilla_model::Namespace;

use super::driver::{Notes, Watch};
use super::{Kind, Value};

pub(super) struct Watched;

impl Watch for Watched {
    type Object = ApiNamespace;
    const KIND: Kind = Kind::Namespace;

    fn read(object: &ApiNamespace, _notes: &mut Notes) -> Option<Value> {
        let (name, labels) = (object.name_any(), object.labels().clone());
        Some(Value::Namespace(Arc::new(Namespace { name, labels })))
    }
}
