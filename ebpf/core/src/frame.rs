//! The bytes of an Ethernet frame, as the parsers see them.
//!
//! In the kernel this is direct packet access, on the host a slice. A read that fails on a frame that is long enough
//! means only that the bytes are not linear yet: the caller pulls them in and parses again.

use quilla_abi::DropReason;

/// All headers must end within this many bytes of the frame: what the kernel side makes linear.
pub const HEADERS: u32 = 512;

/// Read access to a frame.
pub trait Frame {
    /// Bytes in the frame, linear or not.
    fn len(&self) -> u32;

    /// `N` bytes at `offset`, if they can be read.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// Makes the compiler put what it knows of values into memory. On the host it may know what it likes; in the kernel
    /// the verifier then sees one state where it would follow each way through the parser on its own.
    fn settle(&self) {}

    /// Whether there is nothing in the frame.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `N` bytes at `offset`, or [`DropReason::Truncated`].
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: u32) -> Result<[u8; N], DropReason> {
        self.read(offset).ok_or(DropReason::Truncated)
    }
}

impl Frame for [u8] {
    fn len(&self) -> u32 {
        u32::try_from(<[u8]>::len(self)).unwrap_or(u32::MAX)
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.get(start..start.checked_add(N)?)?;
        bytes.try_into().ok()
    }
}
