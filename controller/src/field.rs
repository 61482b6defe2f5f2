//! What is wrong with an object, field by field. Every validation collects into [`FieldErrors`]; `admission` turns
//! them into the causes of a Kubernetes status. A validation reports all it finds, not the first only.

use std::fmt::{Debug, Display};

/// The kinds of complaint Kubernetes clients know, by the reason they travel under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    Required,
    Invalid,
    Duplicate,
    NotSupported,
    Forbidden,
    TooMany,
}

impl Complaint {
    /// The reason in a status cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooMany => "FieldValueTooMany",
        }
    }
}

/// One complaint about one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The path, as `spec.ports[0].port`.
    pub field: String,
    pub complaint: Complaint,
    /// What is said after the path, in the words a `kubectl` user knows.
    pub message: String,
}

/// Everything found wrong with one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    pub fn required(&mut self, field: impl Into<String>, why: &str) {
        self.push(field, Complaint::Required, join("Required value", why));
    }

    pub fn invalid(&mut self, field: impl Into<String>, value: impl Debug, why: impl Display) {
        self.push(field, Complaint::Invalid, format!("Invalid value: {value:?}: {why}"));
    }

    pub fn duplicate(&mut self, field: impl Into<String>, value: impl Debug) {
        self.push(field, Complaint::Duplicate, format!("Duplicate value: {value:?}"));
    }

    pub fn unsupported(&mut self, field: impl Into<String>, value: &str, supported: &[&str]) {
        let listed: Vec<_> = supported.iter().map(|word| format!("{word:?}")).collect();
        let message = format!("Unsupported value: {value:?}: supported values: {}", listed.join(", "));
        self.push(field, Complaint::NotSupported, message);
    }

    pub fn forbidden(&mut self, field: impl Into<String>, why: &str) {
        self.push(field, Complaint::Forbidden, join("Forbidden", why));
    }

    pub fn too_many(&mut self, field: impl Into<String>, found: usize, most: usize) {
        self.push(field, Complaint::TooMany, format!("Too many: {found}: must have at most {most} items"));
    }

    /// Complains unless `value` is one of `supported`.
    pub fn one_of(&mut self, field: impl Into<String>, value: &str, supported: &[&str]) {
        if !supported.contains(&value) {
            self.unsupported(field, value, supported);
        }
    }

    /// Complains that `field` is no number from 1 to 65535.
    pub fn port_number(&mut self, field: impl Into<String>, port: i32) {
        if !(1..=65535).contains(&port) {
            self.invalid(field, port, "must be between 1 and 65535, inclusive");
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &FieldError> {
        self.0.iter()
    }

    /// `Ok` when nothing was found.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    fn push(&mut self, field: impl Into<String>, complaint: Complaint, message: String) {
        self.0.push(FieldError { field: field.into(), complaint, message });
    }
}

impl Display for FieldErrors {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let listed: Vec<_> = self.0.iter().map(|one| format!("{}: {}", one.field, one.message)).collect();
        match listed.as_slice() {
            [one] => out.write_str(one),
            many => write!(out, "[{}]", many.join(", ")),
        }
    }
}

fn join(head: &str, why: &str) -> String {
    if why.is_empty() { head.to_owned() } else { format!("{head}: {why}") }
}

/// The fields complained about, for tests.
#[cfg(test)]
pub(crate) fn fields(errors: &FieldErrors) -> Vec<(&str, Complaint)> {
    errors.iter().map(|one| (one.field.as_str(), one.complaint)).collect()
}
