//! The kernel objects that are measured side by side: the one of this build, and others from files.

use std::fs;
use std::str::FromStr;

use anyhow::{Context, Result};
use quilla_datapath::Object;

/// The name of this build's.
const BUILT: &str = "built";

/// `NAME=FILE` on the command line. The maps of the object must have the layout of this build's.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) name: String,
    bytes: Option<Vec<u8>>,
}

impl FromStr for Candidate {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, file) = text.split_once('=').context("an object is given as NAME=FILE")?;
        let bytes = fs::read(file).with_context(|| format!("read {file}"))?;
        Ok(Self { name: name.to_owned(), bytes: Some(bytes) })
    }
}

impl Candidate {
    pub(super) fn built() -> Self {
        Self { name: BUILT.to_owned(), bytes: None }
    }

    pub(super) fn object(&self) -> Object<'_> {
        match &self.bytes {
            Some(bytes) => Object::from_bytes(bytes),
            None => Object::embedded(),
        }
    }
}
