//! The error object of the specification. Built by the plugin and, inside a `Response`, by the agent; the plugin
//! prints it on standard output with the version of the request.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Error codes of the specification and of its reference library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// The configuration's version is not supported.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A configuration key or value is not supported.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// An environment variable is missing or malformed.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading or writing failed.
    pub const IO_FAILURE: Self = Self(5);
    /// The input is not what it should be.
    pub const DECODE_FAILURE: Self = Self(6);
    /// The network configuration is wrong.
    pub const INVALID_CONFIG: Self = Self(7);
    /// The network namespace cannot be used (reference library).
    pub const INVALID_NETNS: Self = Self(8);
    /// A passing condition: the runtime should try again.
    pub const TRY_AGAIN_LATER: Self = Self(11);
    /// STATUS: ADD cannot be served now.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// STATUS: ADD cannot be served, and Pods that exist may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: Self = Self(51);
    /// The kernel refused a step of the wiring.
    pub const WIRING_FAILED: Self = Self(100);
    /// The agent refused.
    pub const AGENT_REFUSED: Self = Self(101);
    /// CHECK: reality differs from what ADD reported.
    pub const CHECK_FAILED: Self = Self(102);
}

/// A failed operation as the runtime sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}: {details} (code {})", code.0)]
pub struct CniError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What failed, in a few words.
    pub msg: String,
    /// Why, with the object concerned.
    pub details: String,
}

impl CniError {
    /// An error with its explanation.
    pub fn new(code: ErrorCode, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// A passing condition.
    pub fn try_again(msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(ErrorCode::TRY_AGAIN_LATER, msg, details)
    }

    /// The object the specification wants on standard output.
    pub fn encode(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "code": self.code, "msg": self.msg, "details": self.details })
    }
}
