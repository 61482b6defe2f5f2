//! The representations of objects: whole, as tables, as metadata only.
//!
//! `dispatch` picks one by the `Accept` header. Invariant: JSON is always among what is offered, so that clients that
//! prefer another encoding (protobuf) get the one they all list as fallback.

use serde::Serialize;
use serde_json::{Value, json};

use crate::object;
use crate::read::Page;
use crate::resource::Resource;
use crate::status::{Refusal, Result};
use crate::watch::Notice;

/// How to show objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Object,
    Metadata,
    Table(Include),
}

/// What a table's row carries of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Include {
    None,
    Metadata,
    Object,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    kind: String,
    api_version: String,
    metadata: Value,
    items: Vec<&'a Value>,
}

impl Shape {
    /// The first acceptable one; 406 if there is none.
    pub(super) fn negotiate(accept: &str, include_object: Option<&str>) -> Result<Self> {
        let include = match include_object {
            None | Some("Metadata") => Include::Metadata,
            Some("None") => Include::None,
            Some("Object") => Include::Object,
            Some(_) => return Err(Refusal::bad_request("invalid value of query parameter includeObject")),
        };
        let clauses = accept.split(',').map(str::trim).filter(|clause| !clause.is_empty());
        let mut clauses = clauses.peekable();
        if clauses.peek().is_none() {
            return Ok(Self::Object);
        }
        clauses.find_map(|clause| Self::of(clause, include)).ok_or_else(|| {
            Refusal::new(
                406,
                "NotAcceptable",
                "only the following media types are accepted: application/json",
            )
        })
    }

    fn of(clause: &str, include: Include) -> Option<Self> {
        let mut parts = clause.split(';').map(str::trim);
        let json = matches!(parts.next()?, "application/json" | "application/*" | "*/*");
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let parameter = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        match parameter("as") {
            _ if !json => None,
            None => Some(Self::Object),
            Some("Table") => Some(Self::Table(include)),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Some(Self::Metadata),
            Some(_) => None,
        }
    }

    pub(super) fn object(self, resource: &Resource, object: &Value) -> Value {
        match self {
            Self::Object => object.clone(),
            Self::Metadata => metadata_only(object),
            Self::Table(include) => {
                let revision = object::meta(object, "resourceVersion");
                table(resource, [object].into_iter(), include, true, &json!({"resourceVersion": revision}))
            }
        }
    }

    /// A list as JSON text: it may be large, so whole objects are written from where they are stored.
    pub(super) fn page(self, resource: &Resource, page: &Page) -> String {
        let mut metadata = json!({"resourceVersion": page.revision.to_string()});
        if let Some(token) = &page.continue_token {
            metadata["continue"] = json!(token);
            metadata["remainingItemCount"] = json!(page.remaining);
        }
        let objects = page.objects.iter().map(AsRef::as_ref);
        let list = match self {
            Self::Table(include) => return table(resource, objects, include, true, &metadata).to_string(),
            Self::Metadata => {
                let items: Vec<_> = objects.map(metadata_only).collect();
                return json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata, "items": items,
                })
                .to_string();
            }
            Self::Object => List {
                kind: resource.list_kind(),
                api_version: resource.api_version(),
                metadata,
                items: objects.collect(),
            },
        };
        serde_json::to_string(&list).expect("a list of JSON values is serialisable")
    }

    /// One line of a watch; a table names its columns only in the first.
    pub(super) fn notice(self, resource: &Resource, notice: &Notice, first: bool) -> Value {
        let (kind, object) = match notice {
            Notice::Added(object) => ("ADDED", object),
            Notice::Modified(object) => ("MODIFIED", object),
            Notice::Deleted(object) => ("DELETED", object),
            Notice::Error(status) => return json!({"type": "ERROR", "object": status}),
            Notice::Bookmark { revision, initial } => return self.bookmark(resource, *revision, *initial),
        };
        let object = match self {
            Self::Table(include) => {
                let metadata = json!({"resourceVersion": object::meta(object, "resourceVersion")});
                table(resource, [&**object].into_iter(), include, first, &metadata)
            }
            _ => self.object(resource, object),
        };
        json!({"type": kind, "object": object})
    }

    fn bookmark(self, resource: &Resource, revision: u64, initial: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let mut object = json!({"metadata": metadata});
        match self {
            Self::Object => resource.stamp(&mut object),
            _ => object = metadata_only(&object),
        }
        if let Self::Table(_) = self {
            let row = json!({"cells": [], "object": object});
            object = json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision.to_string()},
                "columnDefinitions": null, "rows": [row],
            });
        }
        json!({"type": "BOOKMARK", "object": object})
    }
}

fn table<'a>(
    resource: &Resource,
    objects: impl Iterator<Item = &'a Value>,
    include: Include,
    with_columns: bool,
    metadata: &Value,
) -> Value {
    let columns: Vec<Value> = resource
        .columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name, "type": "string", "format": column.format,
                "description": column.name, "priority": column.priority,
            })
        })
        .collect();
    let rows: Vec<Value> = objects
        .map(|object| {
            let stored =
                if resource.is_alias() { resource.to_stored(object.clone()) } else { object.clone() };
            let cells: Vec<Value> = resource.columns.iter().map(|column| (column.cell)(&stored)).collect();
            let object = match include {
                Include::None => Value::Null,
                Include::Metadata => metadata_only(object),
                Include::Object => object.clone(),
            };
            json!({"cells": cells, "object": object})
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": if with_columns { json!(columns) } else { Value::Null }, "rows": rows,
    })
}

fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_acceptable_shape_is_taken() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        for (accept, shape) in [
            ("", Some(Shape::Object)),
            ("*/*", Some(Shape::Object)),
            ("application/vnd.kubernetes.protobuf, application/json", Some(Shape::Object)),
            (&format!("{table}, application/json"), Some(Shape::Table(Include::Metadata))),
            ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", Some(Shape::Metadata)),
            ("application/vnd.kubernetes.protobuf", None),
            ("text/html", None),
        ] {
            assert_eq!(Shape::negotiate(accept, None).ok(), shape, "{accept}");
        }
    }
}
