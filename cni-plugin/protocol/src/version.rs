//! The versions of the CNI specification this plugin speaks. Used by configuration and result; ordered by age.

use std::fmt;

/// A supported version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.3.1: the oldest with `interfaces` and `ips`.
    V0_3_1,
    /// 0.4.0: adds CHECK and `prevResult`.
    V0_4_0,
    /// 1.0.0: drops the per-address `version`.
    V1_0_0,
    /// 1.1.0: adds GC, STATUS, and the MTU and route details of results.
    V1_1_0,
}

impl SpecVersion {
    /// Every supported version, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The version used when the caller's cannot be known.
    pub const LATEST: Self = Self::V1_1_0;

    /// The spelling of the specification.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Parses the spelling of the specification; `None` for a version we do not speak.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
