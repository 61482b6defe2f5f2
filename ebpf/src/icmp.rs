//! ICMP errors: they speak about a packet that they embed, and belong to its flow.

use quilla_ebpf_core::Headers;

use crate::packet::Skb;
use crate::pipeline::{Hook, Pipeline};
use crate::verdict::Outcome;

/// Forwards an error by its address.
#[inline(always)]
pub(crate) fn error<H: Hook, F: Pipeline>(_skb: Skb, _headers: &Headers<F::Addr>) -> Outcome {
    Err(quilla_abi::DropReason::NoFlow)
}
