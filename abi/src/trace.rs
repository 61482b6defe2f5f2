//! What a program loaded with `TRACE` says in `__sk_buff.cb` about its verdict.
//!
//! `BPF_PROG_TEST_RUN` executes no redirect and has no tunnel metadata. With `TRACE` set, programs write where the
//! packet would have gone, and `from_overlay` takes the outer source from `cb` on input. The switch is read-only data:
//! in production the verifier removes the code.

/// Output, `cb[0]`: `action` (bits 0-7, 0 = dropped or passed), [`crate::DropReason`] (bits 8-15),
/// 1 in bit 16 if the packet took the slow path.
pub const VERDICT: usize = 0;
/// Output, `cb[1]`: ifindex the packet is redirected to.
pub const IFINDEX: usize = 1;
/// Output, `cb[2]`: node slot of an encapsulation.
pub const NODE_SLOT: usize = 2;
/// Output, `cb[3]`: `crate::counter::path` the packet was counted under, 0 if dropped.
pub const PATH: usize = 3;
/// Input, `cb[4]`: IPv4 address of the tunnel's far end (network order) for `from_overlay`; 0 = not from the tunnel.
pub const TUNNEL_SOURCE: usize = 4;

/// Bit of `cb[0]`: no established entry decided.
pub const SLOW_PATH: u32 = 1 << 16;
