//! Refusals as clients expect them: HTTP code plus a `Status` object with a machine-readable reason.
//!
//! Everything on the way of a request returns it. Invariant: `code` and `reason` are a pair that client-go knows.

use serde_json::{Value, json};

use crate::admission::{Cause, Rejection};
use crate::resource::Resource;
use crate::store::StoreError;

/// A refused request.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    details: Option<Value>,
}

pub(crate) type Result<T> = std::result::Result<T, Refusal>;

impl Refusal {
    pub(crate) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message)
    }

    pub(crate) fn unsupported_media_type(sent: &str, supported: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format ({sent:?}) - accepted media types include: {supported}"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// What every `kubectl create KIND` shorthand sends, and typed Go clients that prefer it.
    pub(crate) fn protobuf() -> Self {
        let message = "this server reads JSON, not protobuf: with kubectl, write the object with \
            `kubectl create ... --dry-run=client -o json` and send it with `kubectl create -f -`; \
            in a Go client, set ContentType to application/json";
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// No such path.
    pub(crate) fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", resource.qualified()))
            .about(resource, name)
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", resource.qualified()))
            .about(resource, name)
    }

    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource.qualified());
        Self::new(409, "Conflict", message).about(resource, name)
    }

    pub(crate) fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("{} {name:?} is forbidden: {why}", resource.qualified());
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// 422 with one cause per field at fault.
    pub(crate) fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Self {
        let one = |cause: &Cause| format!("{}: {}", cause.field, cause.message);
        let text = match causes {
            [cause] => one(cause),
            _ => format!("[{}]", causes.iter().map(one).collect::<Vec<_>>().join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {text}", resource.qualified_kind());
        Self::new(422, "Invalid", message).about_kind(resource, name).with_causes(causes)
    }

    pub(crate) fn rejected(resource: &Resource, name: &str, rejection: &Rejection) -> Self {
        Self::new(rejection.code, rejection.reason, rejection.message.clone())
            .about_kind(resource, name)
            .with_causes(&rejection.causes)
    }

    /// Storage failures on a path where the object's own conflicts are impossible or already handled.
    pub(crate) fn storage(error: &StoreError) -> Self {
        match error {
            StoreError::Compacted { .. } => Self::expired(format!("too old resource version: {error}")),
            StoreError::Future { asked, newest } => {
                let mut refusal = Self::new(
                    504,
                    "Timeout",
                    format!("Too large resource version: {asked}, current: {newest}"),
                );
                let cause =
                    json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
                refusal.details = Some(json!({"retryAfterSeconds": 1, "causes": [cause]}));
                refusal
            }
            _ => Self::internal(error.to_string()),
        }
    }

    /// Names the object in `details`, by resource as client-go does for 404 and 409.
    pub(crate) fn about(self, resource: &Resource, name: &str) -> Self {
        self.detailed(json!({"name": name, "group": resource.group, "kind": resource.plural}))
    }

    fn about_kind(self, resource: &Resource, name: &str) -> Self {
        self.detailed(json!({"name": name, "group": resource.group, "kind": resource.kind}))
    }

    pub(crate) fn with_causes(mut self, causes: &[Cause]) -> Self {
        if !causes.is_empty() {
            let causes: Vec<Value> = causes
                .iter()
                .map(|cause| json!({"reason": cause.reason, "message": cause.message, "field": cause.field}))
                .collect();
            self.details.get_or_insert_with(|| json!({}))["causes"] = Value::Array(causes);
        }
        self
    }

    fn detailed(mut self, mut details: Value) -> Self {
        if let Some(map) = details.as_object_mut() {
            map.retain(|_, value| value != "");
        }
        self.details = Some(details);
        self
    }

    pub(crate) fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

/// A cause for a value that is missing.
pub(crate) fn required(field: impl Into<String>) -> Cause {
    Cause {
        reason: "FieldValueRequired".to_owned(),
        message: "Required value".to_owned(),
        field: field.into(),
    }
}

/// A cause for a value that cannot be.
pub(crate) fn invalid(field: impl Into<String>, value: &str, why: &str) -> Cause {
    Cause {
        reason: "FieldValueInvalid".to_owned(),
        message: format!("Invalid value: {value:?}: {why}"),
        field: field.into(),
    }
}
