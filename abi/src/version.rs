//! The version of this crate's bytes.

/// Changes whenever a pinned map's key, value or meaning changes. A pinned map of another schema is moved aside and
/// rebuilt, never reinterpreted.
pub const SCHEMA: u32 = 4;
