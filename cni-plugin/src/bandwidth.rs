//! How fast a Pod may send and receive (`bandwidth` of CNI-33): what the conventions allow to ask for, and how it is
//! enforced. Called by ADD after the interface is configured.

use serde::Deserialize;

/// The slowest rate that still lets one full packet through in tolerable time, in bits per second.
const SLOWEST: u64 = 8_000;

/// Limits in both directions, as seen by the Pod. A rate of 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rates {
    /// What the Pod receives, in bits per second.
    #[serde(default)]
    pub(crate) ingress_rate: u64,
    /// How much of that may come at once, in bits.
    #[serde(default)]
    pub(crate) ingress_burst: u64,
    /// What the Pod sends, in bits per second.
    #[serde(default)]
    pub(crate) egress_rate: u64,
    /// How much of that may go at once, in bits.
    #[serde(default)]
    pub(crate) egress_burst: u64,
}

impl Rates {
    /// Refuses what would stop the Pod's traffic altogether.
    pub(crate) fn validate(&self) -> Result<(), String> {
        for (name, rate, burst) in [
            ("ingressRate", self.ingress_rate, self.ingress_burst),
            ("egressRate", self.egress_rate, self.egress_burst),
        ] {
            if rate != 0 && rate < SLOWEST {
                return Err(format!("bandwidth: {name} {rate} is below {SLOWEST} bits per second"));
            }
            if rate == 0 && burst != 0 {
                return Err(format!("bandwidth: a burst without {name}"));
            }
        }
        Ok(())
    }
}
