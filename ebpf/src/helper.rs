//! Every call into the kernel, in one place and under a name of ours.
//!
//! With `COUNT_HELPERS` set each call is counted by kind, which is how the tests prove what a packet costs. The switch
//! is read-only data: where it is 0 the verifier removes the counting.
#![allow(
    clippy::mut_from_ref,
    reason = "a map is a handle: its rows are the kernel's memory, not the static's"
)]

use core::ptr;

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_CSUM_LEVEL_DEC, BPF_CSUM_LEVEL_QUERY,
    BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS, bpf_fib_lookup, bpf_redir_neigh,
    bpf_tunnel_key,
};
use aya_ebpf::helpers::generated as kernel;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use quilla_abi::DropReason;
use quilla_abi::counter::helper;
use quilla_ebpf_core::protocol::ETHERNET;

use crate::maps::HELPERS;

/// Insert, and fail when the key is there.
pub(crate) const NEW_ONLY: u64 = 1;
/// Insert or replace.
pub(crate) const ANY: u64 = 0;

/// The kernel's error for [`NEW_ONLY`].
pub(crate) const EXISTS: i32 = -17;

#[unsafe(no_mangle)]
static COUNT_HELPERS: u32 = 0;
#[unsafe(no_mangle)]
static HZ: u32 = 250;
#[unsafe(no_mangle)]
static TRACE: u32 = 0;
#[unsafe(no_mangle)]
static IPV6_CHECKSUM_FLAG: u32 = 0;

/// Reads a constant that the loader may have set; the compiler must not fold it.
macro_rules! constant {
    ($name:ident) => {
        // SAFETY: a static of this module, always valid; nobody writes it after the object is loaded.
        unsafe { ptr::read_volatile(&raw const $name) }
    };
}

/// Jiffies per second.
#[inline(always)]
pub(crate) fn hz() -> u32 {
    constant!(HZ)
}

/// Whether verdicts are written into the packet's control block.
#[inline(always)]
pub(crate) fn tracing() -> bool {
    constant!(TRACE) != 0
}

/// Extra flag of `bpf_l4_csum_replace` for IPv6.
#[inline(always)]
pub(crate) fn ipv6_checksum_flag() -> u64 {
    u64::from(constant!(IPV6_CHECKSUM_FLAG))
}

#[inline(always)]
fn count(kind: u32) {
    if constant!(COUNT_HELPERS) != 0
        && let Some(counter) = HELPERS.get_ptr_mut(kind)
    {
        // SAFETY: a row of this CPU's own array, which nothing else writes while a program runs.
        unsafe { *counter += 1 };
    }
}

/// Low 32 bits of the kernel's coarse clock.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: takes no arguments and touches no memory of ours.
    (unsafe { kernel::bpf_jiffies64() }) as u32
}

/// A row of a hash map; the reference is for reading.
#[inline(always)]
pub(crate) fn find<K, V>(map: &'static HashMap<K, V>, key: &K) -> Option<&'static V> {
    count(helper::LOOKUP_HASH);
    // SAFETY: rows are plain bytes that stay allocated while the program runs; user space replaces them as a whole.
    unsafe { map.get_ptr(key).map(|row| &*row) }
}

/// A row of an LRU hash, to be read and written in place.
#[inline(always)]
pub(crate) fn find_recent<K, V>(map: &'static LruHashMap<K, V>, key: &K) -> Option<&'static mut V> {
    count(helper::LOOKUP_HASH);
    recent(map, key)
}

/// The same for the flow table, counted on its own.
#[inline(always)]
pub(crate) fn find_flow<K, V>(map: &'static LruHashMap<K, V>, key: &K) -> Option<&'static mut V> {
    count(helper::LOOKUP_FLOW);
    recent(map, key)
}

#[inline(always)]
fn recent<K, V>(map: &'static LruHashMap<K, V>, key: &K) -> Option<&'static mut V> {
    // SAFETY: rows are plain bytes that stay allocated while the program runs. Two CPUs may write one row at once:
    // every field is a machine word of its own, and statistics may lose an update.
    unsafe { map.get_ptr_mut(key).map(|row| &mut *row) }
}

/// The longest prefix that covers `addr`.
#[inline(always)]
pub(crate) fn find_prefix<K, V>(map: &'static LpmTrie<K, V>, bits: u32, addr: K) -> Option<&'static V> {
    count(helper::LOOKUP_LPM);
    map.get(Key::new(bits, addr))
}

/// A row of an array.
#[inline(always)]
pub(crate) fn row<V>(map: &'static Array<V>, index: u32) -> Option<&'static mut V> {
    count(helper::LOOKUP_ARRAY);
    // SAFETY: as for `recent`; rows of arrays are never freed.
    unsafe { map.get_ptr_mut(index).map(|row| &mut *row) }
}

/// This CPU's row of an array.
#[inline(always)]
pub(crate) fn own_row<V>(map: &'static PerCpuArray<V>, index: u32) -> Option<&'static mut V> {
    count(helper::LOOKUP_ARRAY);
    // SAFETY: only this CPU has it, and programs do not nest.
    unsafe { map.get_ptr_mut(index).map(|row| &mut *row) }
}

/// Inserts into an LRU hash; the kernel's error otherwise.
#[inline(always)]
pub(crate) fn insert<K, V>(
    map: &'static LruHashMap<K, V>,
    key: &K,
    value: &V,
    flags: u64,
) -> Result<(), i32> {
    count(helper::UPDATE);
    map.insert(key, value, flags)
}

/// Deletes from an LRU hash; a missing row is as good.
#[inline(always)]
pub(crate) fn remove<K, V>(map: &'static LruHashMap<K, V>, key: &K) {
    count(helper::DELETE);
    // Either it is gone now or it was before.
    let (Ok(()) | Err(_)) = map.remove(key);
}

#[inline(always)]
fn done(code: i64) -> Result<(), DropReason> {
    if code == 0 { Ok(()) } else { Err(DropReason::Internal) }
}

/// Changes the sum that came with a packet of which the network card has summed up all bytes (`CHECKSUM_COMPLETE`); nothing for
/// any other packet.
#[inline(always)]
pub(crate) fn change_sum(skb: *mut __sk_buff, difference: u32) {
    count(helper::CHECKSUM);
    // It has no effect where there is no such sum, and says so.
    // SAFETY: `skb` is the program's context.
    unsafe { kernel::bpf_csum_update(skb, difference) };
}

/// Changes a transport checksum by a difference.
#[inline(always)]
pub(crate) fn change_checksum(
    skb: *mut __sk_buff,
    at: u32,
    difference: u32,
    flags: u64,
) -> Result<(), DropReason> {
    count(helper::CHECKSUM);
    // SAFETY: `skb` is the program's context; the helper checks the offset.
    done(unsafe { kernel::bpf_l4_csum_replace(skb, at, 0, u64::from(difference), flags) })
}

/// Makes the first `length` bytes of the packet readable directly.
#[inline(always)]
pub(crate) fn pull(skb: *mut __sk_buff, length: u32) -> Result<(), DropReason> {
    count(helper::PACKET);
    // SAFETY: `skb` is the program's context; packet pointers are read again after it.
    done(unsafe { kernel::bpf_skb_pull_data(skb, length) })
}

/// Copies the beginning of the packet, from `offset`; at most the whole of `to`, at least one byte.
#[inline(always)]
pub(crate) fn copy<const N: usize>(
    skb: *mut __sk_buff,
    offset: u32,
    to: &mut [u8; N],
    length: u32,
) -> Result<(), DropReason> {
    count(helper::PACKET);
    // SAFETY: the verifier checks that `length` stays within `to`.
    done(unsafe { kernel::bpf_skb_load_bytes(skb.cast(), offset, to.as_mut_ptr().cast(), length) })
}

/// Writes the first `length` bytes of `from` into the frame; at least one byte.
#[inline(always)]
pub(crate) fn store<const N: usize>(
    skb: *mut __sk_buff,
    offset: u32,
    from: &[u8; N],
    length: u32,
) -> Result<(), DropReason> {
    count(helper::PACKET);
    // SAFETY: the verifier checks that `length` stays within `from`; packet pointers are read again after it.
    done(unsafe { kernel::bpf_skb_store_bytes(skb, offset, from.as_ptr().cast(), length, 0) })
}

/// Cuts the frame to a length, and with it any segmentation. Fails on a packet that is in a tunnel (`-ENOTSUPP`), and
/// before it changed anything.
#[inline(always)]
pub(crate) fn cut(skb: *mut __sk_buff, length: u32) -> Result<(), DropReason> {
    count(helper::PACKET);
    // SAFETY: `skb` is the program's context; packet pointers are read again after it.
    done(unsafe { kernel::bpf_skb_change_tail(skb, length, 0) })
}

/// Makes room between the Ethernet and the network header.
#[inline(always)]
pub(crate) fn make_room(skb: *mut __sk_buff, length: u32) -> Result<(), DropReason> {
    count(helper::PACKET);
    // SAFETY: `skb` is the program's context; packet pointers are read again after it.
    done(unsafe { kernel::bpf_skb_adjust_room(skb, length as i32, BPF_ADJ_ROOM_MAC, 0) })
}

/// Takes bytes away behind the Ethernet header, at most 4095; a network header must be left. Segmentation stays.
#[inline(always)]
pub(crate) fn take_away(skb: *mut __sk_buff, length: u32) -> Result<(), DropReason> {
    count(helper::PACKET);
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
    // SAFETY: `skb` is the program's context; packet pointers are read again after it.
    done(unsafe { kernel::bpf_skb_adjust_room(skb, -(length as i32), BPF_ADJ_ROOM_MAC, flags) })
}

/// Which outer network header a tunnel has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Underlay {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Makes room for the outer headers of a tunnel behind the Ethernet header, which becomes the outer one. Segmentation and
/// checksums that are still to be done stay the inner packet's. Fails on a packet that is in a tunnel already
/// (`-EALREADY`), and before it changed anything.
#[inline(always)]
pub(crate) fn grow(skb: *mut __sk_buff, length: u32, underlay: Underlay) -> Result<(), DropReason> {
    count(helper::PACKET);
    let network = match underlay {
        Underlay::V4 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        Underlay::V6 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    };
    let rest = BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_FIXED_GSO;
    let flags = u64::from(network | rest) | u64::from(ETHERNET) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
    // SAFETY: `skb` is the program's context; packet pointers are read again after it.
    done(unsafe { kernel::bpf_skb_adjust_room(skb, length as i32, BPF_ADJ_ROOM_MAC, flags) })
}

/// Takes outer headers away again; `inner` is what is left, if that is another family. Segmentation and what is known of
/// the checksum stay. Fails before it changed anything, for another family also on kernels before 6.3.
#[inline(always)]
pub(crate) fn shrink(skb: *mut __sk_buff, length: u32, inner: Option<Underlay>) -> Result<(), DropReason> {
    count(helper::PACKET);
    let network = match inner {
        None => 0,
        Some(Underlay::V4) => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        Some(Underlay::V6) => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    };
    let flags = u64::from(network | BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
    // SAFETY: as in `grow`.
    done(unsafe { kernel::bpf_skb_adjust_room(skb, -(length as i32), BPF_ADJ_ROOM_MAC, flags) })
}

/// Whether the network card has verified the outermost checksum.
#[inline(always)]
pub(crate) fn is_verified(skb: *mut __sk_buff) -> bool {
    count(helper::CHECKSUM);
    // SAFETY: `skb` is the program's context.
    unsafe { kernel::bpf_csum_level(skb, u64::from(BPF_CSUM_LEVEL_QUERY)) >= 0 }
}

/// Forgets that the network card has verified the outermost checksum, if it has; what it says of inner ones stays.
#[inline(always)]
pub(crate) fn strip_verified(skb: *mut __sk_buff) {
    count(helper::CHECKSUM);
    // There may be nothing to forget.
    // SAFETY: `skb` is the program's context.
    unsafe { kernel::bpf_csum_level(skb, u64::from(BPF_CSUM_LEVEL_DEC)) };
}

/// Marks the packet as having experienced congestion; whether its sender understands that.
#[inline(always)]
pub(crate) fn set_congested(skb: *mut __sk_buff) -> bool {
    count(helper::PACKET);
    // SAFETY: `skb` is the program's context; packet pointers are read again after it.
    unsafe { kernel::bpf_skb_ecn_set_ce(skb) != 0 }
}

/// One's complement sum of bytes, a multiple of four of them.
#[inline(always)]
pub(crate) fn sum<const N: usize>(bytes: &mut [u8; N]) -> u32 {
    count(helper::CHECKSUM);
    // SAFETY: `bytes` is valid for reads; a null pointer with length 0 is nothing to take away.
    (unsafe { kernel::bpf_csum_diff(ptr::null_mut(), 0, bytes.as_mut_ptr().cast(), N as u32, 0) }) as u32
}

/// Out of the egress of a device.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> i32 {
    count(helper::REDIRECT);
    // SAFETY: takes no pointers.
    (unsafe { kernel::bpf_redirect(ifindex, 0) }) as i32
}

/// Into the ingress of a device, as if the packet had come by it.
#[inline(always)]
pub(crate) fn redirect_ingress(ifindex: u32) -> i32 {
    count(helper::REDIRECT);
    // SAFETY: takes no pointers.
    (unsafe { kernel::bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) }) as i32
}

/// Into the namespace at the other end of a veth.
#[inline(always)]
pub(crate) fn redirect_peer(ifindex: u32) -> i32 {
    count(helper::REDIRECT);
    // SAFETY: takes no pointers.
    (unsafe { kernel::bpf_redirect_peer(ifindex, 0) }) as i32
}

/// Out of a device, with the next hop and its Ethernet address found by the kernel.
#[inline(always)]
pub(crate) fn redirect_neighbour(ifindex: u32) -> i32 {
    count(helper::REDIRECT);
    // SAFETY: a null pointer with length 0 asks for the kernel's own lookup.
    (unsafe { kernel::bpf_redirect_neigh(ifindex, ptr::null_mut(), 0, 0) }) as i32
}

/// The same with this next hop.
#[inline(always)]
pub(crate) fn redirect_by(ifindex: u32, next_hop: &mut bpf_redir_neigh) -> i32 {
    count(helper::REDIRECT);
    // SAFETY: `next_hop` is valid for reads of its size.
    (unsafe { kernel::bpf_redirect_neigh(ifindex, next_hop, size_of::<bpf_redir_neigh>() as i32, 0) }) as i32
}

/// Where the frame that carried the packet came from.
#[inline(always)]
pub(crate) fn tunnel_key(
    skb: *mut __sk_buff,
    key: &mut bpf_tunnel_key,
    flags: u64,
) -> Result<(), DropReason> {
    count(helper::TUNNEL);
    // SAFETY: `key` is valid for writes of its size.
    done(unsafe { kernel::bpf_skb_get_tunnel_key(skb, key, size_of::<bpf_tunnel_key>() as u32, flags) })
}

/// Where the overlay device is to send the packet.
#[inline(always)]
pub(crate) fn set_tunnel_key(
    skb: *mut __sk_buff,
    key: &mut bpf_tunnel_key,
    flags: u64,
) -> Result<(), DropReason> {
    count(helper::TUNNEL);
    // SAFETY: `key` is valid for reads of its size.
    done(unsafe { kernel::bpf_skb_set_tunnel_key(skb, key, size_of::<bpf_tunnel_key>() as u32, flags) })
}

/// Asks the host's routing table. The result is the kernel's code, the answer is in `params`.
#[inline(always)]
pub(crate) fn host_route(skb: *mut __sk_buff, params: &mut bpf_fib_lookup) -> i64 {
    // SAFETY: `params` is valid for reads and writes of its size.
    unsafe { kernel::bpf_fib_lookup(skb.cast(), params, size_of::<bpf_fib_lookup>() as i32, 0) }
}

/// What fits a device (since Linux 5.12); 0 = anything, or it is gone.
#[inline(always)]
pub(crate) fn device_mtu(skb: *mut __sk_buff, ifindex: u32) -> u16 {
    // Of no length: only the answer counts.
    let mut mtu = 0;
    // SAFETY: `mtu` is valid for reads and writes.
    unsafe { kernel::bpf_check_mtu(skb.cast(), ifindex, &raw mut mtu, 0, 0) };
    if mtu > u32::from(u16::MAX) { 0 } else { mtu as u16 }
}

/// The number of a socket that no other socket has, as two halves.
#[inline(always)]
pub(crate) fn cookie(context: *mut core::ffi::c_void) -> [u32; 2] {
    // SAFETY: the context of a program that may ask.
    let cookie = unsafe { kernel::bpf_get_socket_cookie(context.cast()) };
    [cookie as u32, (cookie >> 32) as u32]
}

/// The number of a socket's network namespace, as two halves.
#[inline(always)]
pub(crate) fn netns_cookie(context: *mut core::ffi::c_void) -> [u32; 2] {
    // SAFETY: the context of a program that may ask.
    let cookie = unsafe { kernel::bpf_get_netns_cookie(context) };
    [cookie as u32, (cookie >> 32) as u32]
}

/// Sets the error with which a refused system call fails.
#[inline(always)]
pub(crate) fn fail_with(error: i32) {
    // SAFETY: takes no pointers.
    unsafe { kernel::bpf_set_retval(-error) };
}
