//! Work in another network namespace, on a thread of its own.
//!
//! The caller's thread never changes its namespace: the thread that did is gone when the call returns. Devices are
//! resolved, and netlink sockets opened, in the namespace of the thread that does it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::thread;

use crate::error::{DatapathError, Result};

/// Runs `work` in the namespace that `path` names, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file =
        File::open(path).map_err(|source| DatapathError::kernel("open", path.to_string_lossy(), source))?;
    enter(file.as_fd(), &path.to_string_lossy(), work)
}

/// The same with an open namespace.
pub fn in_netns_fd<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T> {
    enter(namespace, "of a descriptor", work)
}

fn enter<T: Send>(namespace: BorrowedFd<'_>, name: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let there = || {
        // SAFETY: the descriptor is open; only this thread, which ends here, changes its namespace.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(DatapathError::kernel("enter namespace", name, io::Error::last_os_error()));
        }
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(there).join())
        .unwrap_or_else(|_| Err(DatapathError::Panicked { namespace: name.to_owned() }))
}

/// The cookie of the calling thread's namespace: what `bpf_get_netns_cookie` gives to a program.
pub fn cookie() -> Result<u64> {
    let failed =
        || DatapathError::kernel("read the cookie of", "the network namespace", io::Error::last_os_error());
    // SAFETY: no addresses are passed.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(failed());
    }
    // SAFETY: the kernel has just made the descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut cookie = 0_u64;
    let mut len: libc::socklen_t = 8;
    // SAFETY: `cookie` is valid for writes of the 8 bytes that `len` says.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if ret == 0 { Ok(cookie) } else { Err(failed()) }
}
