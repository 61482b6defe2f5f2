//! Direct access to packets: the only raw pointers into them.
//!
//! Every read and write checks against `data_end`; `data` is read anew each time, because helpers may move the packet.

mod words;

use core::arch::asm;

use aya_ebpf::bindings::__sk_buff;
use quilla_abi::flow::Forward;
use quilla_abi::{Address, DropReason, Mac};
use quilla_ebpf_core::Frame;
use quilla_ebpf_core::frame::HEADERS;

use crate::helper;

/// The context of a tc program.
#[derive(Clone, Copy)]
pub(crate) struct Skb {
    raw: *mut __sk_buff,
}

/// Furthest offset of an access: lets the verifier bound a variable one. Headers, and an error's embedded headers.
const REACH: u32 = 2 * HEADERS;

impl Skb {
    pub(crate) fn new(raw: *mut __sk_buff) -> Self {
        Self { raw }
    }

    /// The argument of a function of its own. The verifier wants the context there also where the function does not use
    /// it, and the compiler would pass anything.
    #[inline(always)]
    pub(crate) fn argument(raw: *mut __sk_buff) -> Self {
        Self { raw: opaque(raw as usize) as *mut __sk_buff }
    }

    #[inline(always)]
    pub(crate) fn raw(self) -> *mut __sk_buff {
        self.raw
    }

    /// The device the hook runs on.
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { (*self.raw).ifindex }
    }

    /// The device the packet came in by, if it was forwarded by the stack.
    #[inline(always)]
    pub(crate) fn ingress_ifindex(self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw).ingress_ifindex }
    }

    #[inline(always)]
    pub(crate) fn mark(self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw).mark }
    }

    #[inline(always)]
    pub(crate) fn set_mark(self, mark: u32) {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw).mark = mark };
    }

    /// Whether the frame is for another host's Ethernet address: seen where a switch floods or the device is promiscuous.
    /// In a test run every frame looks like that.
    #[inline(always)]
    pub(crate) fn is_for_another(self) -> bool {
        const PACKET_OTHERHOST: u32 = 3;
        // SAFETY: as in `ifindex`.
        !helper::tracing() && unsafe { (*self.raw).pkt_type } == PACKET_OTHERHOST
    }

    /// Whether the device took a VLAN tag out of the frame, be it a mere priority (VLAN 0).
    #[inline(always)]
    fn is_tagged(self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw).vlan_present != 0 }
    }

    /// Whether the frame is part of a VLAN: one with a mere priority is of none.
    #[inline(always)]
    fn is_of_a_vlan(self) -> bool {
        const VLAN: u32 = 0x0fff;
        // SAFETY: as in `ifindex`.
        self.is_tagged() && unsafe { (*self.raw).vlan_tci & VLAN != 0 }
    }

    /// The tunnel's far end as a test gives it; see [`quilla_abi::trace::TUNNEL_SOURCE`].
    #[inline(always)]
    pub(crate) fn traced_tunnel_source(self) -> u32 {
        // SAFETY: as in `ifindex`; the index is a constant.
        unsafe { (*self.raw).cb[quilla_abi::trace::TUNNEL_SOURCE] }
    }

    /// Writes the first four words of the control block.
    #[inline(always)]
    pub(crate) fn set_trace(self, words: [u32; 4]) {
        // SAFETY: as in `ifindex`; the indices are constants.
        unsafe {
            (*self.raw).cb[0] = words[0];
            (*self.raw).cb[1] = words[1];
            (*self.raw).cb[2] = words[2];
            (*self.raw).cb[3] = words[3];
        }
    }

    #[inline(always)]
    fn data(self) -> usize {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw).data as usize }
    }

    #[inline(always)]
    fn data_end(self) -> usize {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw).data_end as usize }
    }

    /// Where `T`, made of bytes, lies in the linear part of the packet.
    #[inline(always)]
    fn at<T>(self, offset: u32) -> Option<*mut T> {
        const { assert!(align_of::<T>() == 1, "packets know no alignment") };
        // The verifier wants bound, sum and access on the very same registers.
        let offset = opaque(offset as usize);
        if offset > REACH as usize {
            return None;
        }
        let start = opaque(self.data() + offset);
        (start + size_of::<T>() <= self.data_end()).then_some(start as *mut T)
    }

    /// `N` bytes of the frame, to be read and written in words.
    #[inline(always)]
    pub(crate) fn part<const N: usize>(self, offset: u32) -> Option<Part<N>> {
        self.at::<[u8; N]>(offset).map(|bytes| Part(bytes.cast()))
    }

    /// Writes an address at `offset`.
    #[inline(always)]
    pub(crate) fn write_address<A: Address>(self, offset: u32, address: &A) -> Result<(), DropReason> {
        let place = self.at::<A>(offset).ok_or(DropReason::Internal)?;
        // Not by value: a copy on the stack is one too many.
        // SAFETY: `at` checked that the bytes lie in the linear part of the packet.
        unsafe { words::copy(address, place) };
        Ok(())
    }

    /// Writes bytes at `offset`.
    #[inline(always)]
    pub(crate) fn write<B: Copy>(self, offset: u32, bytes: B) -> Result<(), DropReason> {
        let place = self.at::<B>(offset).ok_or(DropReason::Internal)?;
        // SAFETY: `at` checked that the bytes lie in the linear part of the packet.
        unsafe { words::store(place, bytes) };
        Ok(())
    }

    /// The length of the segments that the packet is to be cut into; 0 = it is one.
    #[inline(always)]
    pub(crate) fn segment(self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw).gso_size }
    }

    /// Sends the frame back to where it came from.
    #[inline(always)]
    pub(crate) fn turn_round(self) -> Result<(), DropReason> {
        let [destination, source]: [Mac; 2] = self.read(0).map(halves).ok_or(DropReason::Internal)?;
        self.write(0, [source, destination])
    }

    /// Writes the Ethernet addresses of the next hop.
    #[inline(always)]
    pub(crate) fn address(self, forward: &Forward) -> Result<(), DropReason> {
        let place = self.at::<[Mac; 2]>(0).ok_or(DropReason::Internal)?.cast::<Mac>();
        // SAFETY: `at` checked that both lie in the linear part of the packet.
        unsafe {
            words::copy(&forward.dmac, place);
            words::copy(&forward.smac, place.add(1));
        };
        Ok(())
    }

    /// Whether the frame comes from an Ethernet address; none comes from the address of all zeroes.
    #[inline(always)]
    pub(crate) fn is_from(self, mac: &Mac) -> bool {
        // SAFETY: `at` checked that the bytes lie in the linear part of the packet.
        self.at::<Mac>(6)
            .is_some_and(|source| unsafe { words::are_equal(source, mac) && !words::are_zero(mac) })
    }

    /// The EtherType; frames of VLANs have none that we know.
    #[inline(always)]
    pub(crate) fn ethertype(self) -> Result<u16, DropReason> {
        if self.is_of_a_vlan() {
            return Err(DropReason::UnknownEtherType);
        }
        Ok(u16::from_be_bytes(self.bytes(12)?))
    }

    /// The EtherType, where no tag is taken.
    #[inline(always)]
    pub(crate) fn untagged_ethertype(self) -> Result<u16, DropReason> {
        if self.is_tagged() {
            return Err(DropReason::UnknownEtherType);
        }
        Ok(u16::from_be_bytes(self.bytes(12)?))
    }

    /// Makes the headers linear; says whether that was news.
    #[inline(always)]
    pub(crate) fn pull(self) -> Result<bool, DropReason> {
        let wanted = if self.len() < REACH { self.len() } else { REACH };
        let linear = self.data_end().wrapping_sub(self.data()) as u32;
        if linear >= wanted {
            return Ok(false);
        }
        helper::pull(self.raw, wanted)?;
        Ok(true)
    }
}

/// A part of a frame, which was checked to be linear; valid until a helper moves the packet.
///
/// Values are in the order of memory: network order, if they are compared with what the packet says.
#[derive(Clone, Copy)]
pub(crate) struct Part<const N: usize>(*mut u8);

macro_rules! access {
    ($($read:ident, $write:ident, $type:ty;)+) => {$(
        #[inline(always)]
        pub(crate) fn $read<const AT: usize>(self) -> $type {
            const { assert!(AT + size_of::<$type>() <= N) };
            // SAFETY: within the bytes that were checked.
            unsafe { words::$read::<AT>(self.0) }
        }

        #[inline(always)]
        pub(crate) fn $write<const AT: usize>(self, value: $type) {
            const { assert!(AT + size_of::<$type>() <= N) };
            // SAFETY: as above.
            unsafe { words::$write::<AT>(self.0, value) };
        }
    )+};
}

impl<const N: usize> Part<N> {
    /// Bytes of a row, to be written like those of a frame.
    #[inline(always)]
    pub(crate) fn of(row: &mut [u8; N]) -> Self {
        Self(row.as_mut_ptr())
    }

    /// Writes the bytes of a row.
    #[inline(always)]
    pub(crate) fn set(self, row: &[u8; N]) {
        // SAFETY: within the bytes that were checked.
        unsafe { words::copy(row, self.0.cast()) };
    }

    /// `M` bytes of it.
    #[inline(always)]
    pub(crate) fn within<const M: usize, const AT: usize>(self) -> Part<M> {
        const { assert!(AT + M <= N) };
        // SAFETY: within the bytes that were checked.
        Part(unsafe { self.0.add(AT) })
    }

    access! {
        byte, set_byte, u8;
        half, set_half, u16;
        word, set_word, u32;
    }
}

fn halves(m: [u8; 12]) -> [Mac; 2] {
    [[m[0], m[1], m[2], m[3], m[4], m[5]], [m[6], m[7], m[8], m[9], m[10], m[11]]]
}

/// The same value in a register of which the compiler knows nothing.
#[inline(always)]
fn opaque(mut value: usize) -> usize {
    // An empty template would leave two line records on one instruction, which the kernel refuses.
    // SAFETY: moves a register onto itself.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

impl Frame for Skb {
    #[inline(always)]
    fn settle(&self) {
        // SAFETY: jumps to the next instruction; that it might touch memory, for all the compiler knows, is the point.
        unsafe { asm!("goto +0", options(nostack, preserves_flags)) };
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { (*self.raw).len }
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // SAFETY: `at` checked that the bytes lie in the linear part of the packet.
        self.at::<[u8; N]>(offset).map(|place| unsafe { words::load(place) })
    }
}
