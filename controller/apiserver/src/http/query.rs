//! Query parameters, parsed into the options of the verbs.
//!
//! Invariant: a parameter that is there but makes no sense is a 400; unknown ones are ignored, as in Kubernetes.

use std::collections::HashMap;
use std::time::Duration;

use crate::read::ListOptions;
use crate::resource::Resource;
use crate::selector::{FieldSelector, LabelSelector, Selector};
use crate::status::{Refusal, Result};
use crate::watch::WatchOptions;
use crate::write::{FieldValidation, WriteOptions};

/// How long a watch lasts that sets no limit itself.
const WATCH_TIMEOUT: Duration = Duration::from_mins(45);

pub(super) struct Query(HashMap<String, String>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// Absent and empty are the same.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool> {
        match self.0.get(name).map(String::as_str) {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(_) => Err(malformed(name)),
        }
    }

    pub(super) fn number<N: std::str::FromStr>(&self, name: &str) -> Result<Option<N>> {
        self.text(name).map(|text| text.parse().map_err(|_| malformed(name))).transpose()
    }

    pub(super) fn dry_run(&self) -> Result<bool> {
        match self.text("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(_) => Err(malformed("dryRun")),
        }
    }

    pub(super) fn write(&self) -> Result<WriteOptions> {
        let validation = match self.text("fieldValidation") {
            None => FieldValidation::default(),
            Some("Ignore") => FieldValidation::Ignore,
            Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some(_) => return Err(malformed("fieldValidation")),
        };
        Ok(WriteOptions { dry_run: self.dry_run()?, validation })
    }

    pub(super) fn list(&self, resource: &Resource, namespace: Option<&str>) -> Result<ListOptions> {
        let exact = match self.text("resourceVersionMatch") {
            None | Some("NotOlderThan") => false,
            Some("Exact") => true,
            Some(_) => return Err(malformed("resourceVersionMatch")),
        };
        Ok(ListOptions {
            namespace: namespace.map(str::to_owned),
            selector: self.selector(resource)?,
            limit: self.number("limit")?.filter(|limit| *limit > 0),
            continue_token: self.text("continue").map(str::to_owned),
            revision: self.number("resourceVersion")?,
            exact,
        })
    }

    pub(super) fn watch(&self, resource: &Resource, namespace: Option<&str>) -> Result<WatchOptions> {
        let timeout = self.number("timeoutSeconds")?.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        Ok(WatchOptions {
            namespace: namespace.map(str::to_owned),
            selector: self.selector(resource)?,
            revision: self.number("resourceVersion")?,
            bookmarks: self.flag("allowWatchBookmarks")?,
            initial_events: self.flag("sendInitialEvents")?,
            timeout: timeout.unwrap_or(WATCH_TIMEOUT),
        })
    }

    fn selector(&self, resource: &Resource) -> Result<Selector> {
        Ok(Selector {
            labels: LabelSelector::parse(self.text("labelSelector").unwrap_or_default())?,
            fields: FieldSelector::parse(self.text("fieldSelector").unwrap_or_default(), resource.fields)?,
        })
    }
}

fn malformed(name: &str) -> Refusal {
    Refusal::bad_request(format!("invalid value of query parameter {name}"))
}
