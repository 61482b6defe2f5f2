//! As much `OpenAPI` v3 as kubectl needs to leave validation to the server.
//!
//! Of v2 there is just the frame, without models: kubectl asks for it before it takes a `kind: List` apart, and leaves
//! what it finds no model for to the server.
//!
//! kubectl looks for the `fieldValidation` parameter of a kind's PATCH; finding it, it validates by asking the server.
//! Invariant: schemas are left open on purpose, for a schema that is not exact would make clients refuse good objects.

use serde_json::{Map, Value, json};

use super::discovery::{named_groups, of, versions};
use crate::resource::Resource;

/// The encoding in which client-go asks for `/openapi/v2`.
pub(super) const V2_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Its name in the answer: by RFC 2045 a media type has no `@`, and client-go refuses an answer with one.
pub(super) const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// An `openapi.v2.Document` of gnostic's `OpenAPIv2.proto` with nothing but its first field, `swagger: "2.0"`.
pub(super) const NO_MODELS: &[u8] = b"\x0a\x032.0";

/// The same as JSON.
pub(super) fn version_2() -> Value {
    json!({
        "swagger": "2.0", "info": {"title": "Quilla", "version": env!("CARGO_PKG_VERSION")},
        "paths": {}, "definitions": {},
    })
}

pub(super) fn index() -> Value {
    let mut paths = Map::new();
    for group in [""].into_iter().chain(named_groups()) {
        for version in versions(group) {
            let path = prefix(group, version);
            let url = format!("/openapi/v3/{path}?hash={}", env!("CARGO_PKG_VERSION"));
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

pub(super) fn document(group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for resource in of(group, version) {
        let scope = if resource.namespaced { "namespaces/{namespace}/" } else { "" };
        let collection = format!("/{}/{scope}{}", prefix(group, version), resource.plural);
        paths.insert(
            format!("{collection}/{{name}}"),
            operations(resource, &["get", "put", "patch", "delete"]),
        );
        paths.insert(collection, operations(resource, &["get", "post"]));
        schemas.insert(schema_name(resource), schema(resource));
    }
    json!({
        "openapi": "3.0.0", "info": {"title": "Quilla", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths, "components": {"schemas": schemas},
    })
}

fn operations(resource: &Resource, methods: &[&str]) -> Value {
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let response = json!({"$ref": format!("#/components/schemas/{}", schema_name(resource))});
    let mut operations = Map::new();
    for method in methods {
        let writes = matches!(*method, "post" | "put" | "patch");
        let parameters =
            if writes { vec![parameter("dryRun"), parameter("fieldValidation")] } else { Vec::new() };
        operations.insert((*method).to_owned(), json!({
            "x-kubernetes-group-version-kind": kind,
            "parameters": parameters,
            "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": response}}}},
        }));
    }
    Value::Object(operations)
}

fn schema(resource: &Resource) -> Value {
    json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-group-version-kind":
            [{"group": resource.group, "version": resource.version, "kind": resource.kind}],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        },
    })
}

fn schema_name(resource: &Resource) -> String {
    let group = resource.group.split('.').next().filter(|group| !group.is_empty()).unwrap_or("core");
    format!("io.k8s.api.{group}.{}.{}", resource.version, resource.kind)
}

fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}
