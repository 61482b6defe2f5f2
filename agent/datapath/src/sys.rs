//! The `bpf(2)` calls that aya lacks: batches, link update, test runs with reused buffers.
//!
//! Used by the other modules only, which add the name of the object to the bare [`io::Error`] given here. Each command
//! has its own attribute struct, laid out as the kernel's union member of that command; lengths are checked where
//! slices become pointers, so everything exported is safe.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

mod command {
    pub(super) const MAP_CREATE: u32 = 0;
    pub(super) const MAP_LOOKUP: u32 = 1;
    pub(super) const MAP_UPDATE: u32 = 2;
    pub(super) const MAP_DELETE: u32 = 3;
    pub(super) const MAP_NEXT_KEY: u32 = 4;
    pub(super) const PROGRAM_LOAD: u32 = 5;
    pub(super) const PIN: u32 = 6;
    pub(super) const GET: u32 = 7;
    pub(super) const TEST_RUN: u32 = 10;
    pub(super) const INFO: u32 = 15;
    pub(super) const LOOKUP_BATCH: u32 = 24;
    pub(super) const UPDATE_BATCH: u32 = 26;
    pub(super) const DELETE_BATCH: u32 = 27;
    pub(super) const LINK_CREATE: u32 = 28;
    pub(super) const LINK_UPDATE: u32 = 29;
}

/// The kernel's internal "operation not supported", which `errno.h` does not name: a map type without batches.
pub(crate) const ENOTSUPP: i32 = 524;

/// Issues one command.
///
/// # Safety
/// `attr` is the attribute struct of `command`, and every address in it is valid for what the kernel does with it.
unsafe fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for `attr`; its size is passed along, and the kernel reads no further.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(ret).map_err(io::Error::other)
}

fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr() as u64
}

fn address_mut<T>(slice: &mut [T]) -> u64 {
    slice.as_mut_ptr() as u64
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

// === Objects and pins ===

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens what is pinned at `path`.
pub(crate) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: `path` is a C string that outlives the call.
    let fd = unsafe { bpf(command::GET, &mut attr)? };
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins `object` at `path`.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: raw(object), flags: 0 };
    // SAFETY: `path` is a C string that outlives the call.
    unsafe { bpf(command::PIN, &mut attr).map(drop) }
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// What the kernel says about a map; the fields that every supported kernel has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    pub(crate) name: [u8; 16],
}

/// What the kernel says about a link of a device or a control group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    pad: u32,
    /// Of a cgroup link, the id of the group; of a tcx link, ifindex and attach type.
    target: u64,
}

impl LinkInfo {
    const CGROUP: u32 = 3;
    const TCX: u32 = 11;

    /// The device of a tcx link; 0 once the device is gone.
    pub(crate) fn ifindex(&self) -> Option<u32> {
        let [a, b, c, d, ..] = self.target.to_ne_bytes();
        (self.kind == Self::TCX).then(|| u32::from_ne_bytes([a, b, c, d]))
    }

    /// The group of a cgroup link; 0 once the group is gone.
    pub(crate) fn cgroup(&self) -> Option<u64> {
        (self.kind == Self::CGROUP).then_some(self.target)
    }
}

/// Types the kernel may fill as an information struct: integers only, so any bytes are a value.
pub(crate) trait Info: Default {}
impl Info for MapInfo {}
impl Info for LinkInfo {}

pub(crate) fn info<T: Info>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut attr = InfoAttr { fd: raw(object), len, info: std::ptr::from_mut(&mut info) as u64 };
    // SAFETY: `info` is valid for writes of `len` bytes.
    unsafe { bpf(command::INFO, &mut attr)? };
    Ok(info)
}

// === Map rows ===

#[repr(C)]
struct RowAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn row(map: BorrowedFd<'_>, key: u64, value: u64) -> RowAttr {
    RowAttr { map: raw(map), pad: 0, key, value, flags: 0 }
}

fn exists(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// # Safety
/// `key` and `value` have the sizes of the map's rows.
pub(crate) unsafe fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    // SAFETY: the caller vouches for the sizes.
    exists(unsafe { bpf(command::MAP_LOOKUP, &mut row(map, address(key), address_mut(value))) })
}

/// # Safety
/// `key` and `value` have the sizes of the map's rows.
pub(crate) unsafe fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    // SAFETY: the caller vouches for the sizes.
    unsafe { bpf(command::MAP_UPDATE, &mut row(map, address(key), address(value))).map(drop) }
}

/// # Safety
/// `key` has the size of the map's keys.
pub(crate) unsafe fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    // SAFETY: the caller vouches for the size.
    exists(unsafe { bpf(command::MAP_DELETE, &mut row(map, address(key), 0)) })
}

/// The key after `key`, or the first one.
///
/// # Safety
/// Both have the size of the map's keys.
pub(crate) unsafe fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    // SAFETY: the caller vouches for the sizes.
    exists(unsafe { bpf(command::MAP_NEXT_KEY, &mut row(map, key.map_or(0, address), address_mut(next))) })
}

#[repr(C)]
struct BatchAttr {
    position: u64,
    next_position: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// How far a batch came: rows done, and why it stopped if it did not do all.
pub(crate) struct Progress {
    pub(crate) done: usize,
    pub(crate) result: io::Result<()>,
}

/// # Safety
/// Every address in `attr` is valid for `attr.count` rows of the map.
unsafe fn batch(command: u32, mut attr: BatchAttr) -> Progress {
    // SAFETY: the caller vouches for `attr`.
    let result = unsafe { bpf(command, &mut attr).map(drop) };
    // Where the kernel copies nothing back, `count` is still the input: these errors precede the first row.
    let untouched = matches!(&result, Err(e) if [libc::EINVAL, libc::EFAULT, libc::EPERM, ENOTSUPP]
        .contains(&e.raw_os_error().unwrap_or(0)));
    Progress { done: if untouched { 0 } else { attr.count as usize }, result }
}

/// Reads up to `count` rows from `position` on (`None`: the beginning); `next` receives where to go on.
///
/// # Safety
/// `keys` and `values` have room for `count` rows, both positions for the larger of a key and 4 bytes.
pub(crate) unsafe fn lookup_batch(
    map: BorrowedFd<'_>,
    position: Option<&[u8]>,
    next: &mut [u8],
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> Progress {
    let attr = BatchAttr {
        position: position.map_or(0, address),
        next_position: address_mut(next),
        keys: address_mut(keys),
        values: address_mut(values),
        count,
        map: raw(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the caller vouches for the sizes.
    unsafe { batch(command::LOOKUP_BATCH, attr) }
}

/// # Safety
/// `keys` and `values` hold `count` rows.
pub(crate) unsafe fn update_batch(map: BorrowedFd<'_>, keys: &[u8], values: &[u8], count: u32) -> Progress {
    let attr = BatchAttr {
        position: 0,
        next_position: 0,
        keys: address(keys),
        values: address(values),
        count,
        map: raw(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the caller vouches for the sizes.
    unsafe { batch(command::UPDATE_BATCH, attr) }
}

/// # Safety
/// `keys` holds `count` keys.
pub(crate) unsafe fn delete_batch(map: BorrowedFd<'_>, keys: &[u8], count: u32) -> Progress {
    let attr = BatchAttr {
        position: 0,
        next_position: 0,
        keys: address(keys),
        values: 0,
        count,
        map: raw(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the caller vouches for the size.
    unsafe { batch(command::DELETE_BATCH, attr) }
}

// === Links ===

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

/// What a link attaches a program to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'fd> {
    /// An ifindex of the calling thread's namespace; behind the programs that are already there.
    Device(u32),
    /// A directory of the cgroup2 hierarchy.
    Cgroup(BorrowedFd<'fd>),
}

pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    const AFTER: u32 = 1 << 4;
    let (target, flags) = match target {
        Target::Device(ifindex) => (ifindex, AFTER),
        Target::Cgroup(directory) => (raw(directory), 0),
    };
    let mut attr = LinkCreateAttr {
        program: raw(program),
        target,
        attach_type,
        flags,
        relative: 0,
        pad: 0,
        revision: 0,
    };
    // SAFETY: the struct holds no addresses.
    let fd = unsafe { bpf(command::LINK_CREATE, &mut attr)? };
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Puts `program` in the place of the link's program: a packet sees the old one or the new one, never none.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link: raw(link), program: raw(program), flags: 0, old_program: 0 };
    // SAFETY: the struct holds no addresses.
    unsafe { bpf(command::LINK_UPDATE, &mut attr).map(drop) }
}

// === Test runs ===

#[repr(C)]
struct MapCreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// A table of one program, from which others go on with a tail call.
pub(crate) fn program_table(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const PROGRAM_ARRAY: u32 = 3;
    let mut attr = MapCreateAttr { kind: PROGRAM_ARRAY, key_size: 4, value_size: 4, max_entries: 1 };
    // SAFETY: the struct holds no addresses.
    let fd = unsafe { bpf(command::MAP_CREATE, &mut attr)? };
    // SAFETY: the kernel has just made the descriptor for us.
    let table = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: key and value are of four bytes.
    unsafe { update(table.as_fd(), &[0; 4], &raw(program).to_ne_bytes())? };
    Ok(table)
}

#[repr(C)]
struct ProgramLoadAttr {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    rest: [u64; 4],
}

/// Loads instructions, 8 bytes each, as a program for packets.
pub(crate) fn load_classifier(instructions: &[u64]) -> io::Result<OwnedFd> {
    const CLASSIFIER: u32 = 3;
    let mut attr = ProgramLoadAttr {
        kind: CLASSIFIER,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: address(instructions),
        license: c"GPL".as_ptr() as u64,
        rest: [0; 4],
    };
    // SAFETY: the instructions and the licence outlive the call.
    let fd = unsafe { bpf(command::PROGRAM_LOAD, &mut attr)? };
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    program: u32,
    verdict: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// What a test run gives beside the bytes in its buffers.
pub(crate) struct TestRun {
    pub(crate) verdict: u32,
    pub(crate) len: usize,
    pub(crate) nanoseconds: u32,
}

/// Runs `program` on `data`, `repeat` times. The packet afterwards is in `out`, the context in `ctx`.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    data: &[u8],
    out: &mut [u8],
    ctx: &mut [u8],
    repeat: u32,
    summed: bool,
) -> io::Result<TestRun> {
    /// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE`.
    const SUMMED: u32 = 1 << 2;
    let size = |len: usize| u32::try_from(len).map_err(io::Error::other);
    let ctx_size = size(ctx.len())?;
    let ctx_address = address_mut(ctx);
    let mut attr = TestRunAttr {
        program: raw(program),
        data_size_in: size(data.len())?,
        data_size_out: size(out.len())?,
        data_in: address(data),
        data_out: address_mut(out),
        repeat,
        ctx_size_in: ctx_size,
        ctx_size_out: ctx_size,
        ctx_in: ctx_address,
        ctx_out: ctx_address,
        flags: if summed { SUMMED } else { 0 },
        ..TestRunAttr::default()
    };
    // SAFETY: all buffers are valid for the sizes given; the kernel copies the context in before it copies it out.
    unsafe { bpf(command::TEST_RUN, &mut attr)? };
    Ok(TestRun { verdict: attr.verdict, len: attr.data_size_out as usize, nanoseconds: attr.duration })
}
