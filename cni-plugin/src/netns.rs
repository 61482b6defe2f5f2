//! Entering a Pod's network namespace. Used by ADD and CHECK; the calling thread never changes namespace: the work
//! runs on a short thread of its own.

use std::fmt;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use quilla_cni_protocol::{CniError, ErrorCode};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// An open network namespace that is not the host's.
#[derive(Debug)]
pub(crate) struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Opens the path the runtime named, and makes sure that it can be entered.
    pub(crate) fn open(path: &Path) -> Result<Self, CniError> {
        let open = |path: &Path| {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            Ok((file, (metadata.dev(), metadata.ino())))
        };
        let failed = |error: io::Error| invalid(path, error.to_string());
        let (file, theirs) = open(path).map_err(failed)?;
        let (_, ours) = open(Path::new("/proc/thread-self/ns/net")).map_err(failed)?;
        if theirs == ours {
            return Err(invalid(path, "is the plugin's own"));
        }
        let netns = Self { file, path: path.to_path_buf() };
        netns.run(|| Ok(()))?;
        Ok(netns)
    }

    /// Runs `work` inside the namespace.
    pub(crate) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, CniError> + Send,
    ) -> Result<T, CniError> {
        let failed = |error: io::Error| invalid(&self.path, format!("enter: {error}"));
        thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, || {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|errno| failed(errno.into()))?;
                work()
            });
            let joined = thread.map_err(failed)?.join();
            joined.unwrap_or_else(|_| Err(invalid(&self.path, "the thread inside panicked")))
        })
    }
}

fn invalid(path: &Path, details: impl fmt::Display) -> CniError {
    let details = format!("CNI_NETNS {}: {details}", path.display());
    CniError::new(ErrorCode::INVALID_NETNS, "invalid network namespace", details)
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The kernel's identifier of the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14), which socket
/// programs see as `bpf_get_netns_cookie`.
#[allow(unsafe_code, reason = "no safe wrapper offers this socket option")]
pub(crate) fn cookie() -> io::Result<u64> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(mem::size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: `cookie` and `length` live across the call, and `length` says how many bytes `cookie` has.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if status == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
