//! Entering a Pod's network namespace. Used by ADD and CHECK; the calling thread never changes namespace: the work
//! runs on a short thread of its own.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use quilla_cni_protocol::{CniError, ErrorCode};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// An open network namespace that is not the host's.
#[derive(Debug)]
pub(crate) struct Netns(File);

impl Netns {
    /// Opens the path the runtime named.
    pub(crate) fn open(path: &Path) -> Result<Self, CniError> {
        let invalid = |details: String| {
            let details = format!("CNI_NETNS {}: {details}", path.display());
            CniError::new(ErrorCode::INVALID_NETNS, "invalid network namespace", details)
        };
        let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        let file = File::open(path).map_err(|error| invalid(error.to_string()))?;
        let own = File::open("/proc/self/ns/net").map_err(|error| invalid(error.to_string()))?;
        let pair = identity(&file).and_then(|theirs| Ok((theirs, identity(&own)?)));
        let (theirs, ours) = pair.map_err(|error| invalid(error.to_string()))?;
        if theirs == ours {
            return Err(invalid("is the plugin's own".to_owned()));
        }
        // Every namespace file lives on the one nsfs.
        if theirs.0 != ours.0 {
            return Err(invalid("is not a namespace".to_owned()));
        }
        Ok(Self(file))
    }

    /// Runs `work` inside the namespace.
    pub(crate) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, CniError> + Send,
    ) -> Result<T, CniError> {
        let failed =
            |details: String| CniError::new(ErrorCode::INVALID_NETNS, "enter network namespace", details);
        thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, || {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|error| failed(error.to_string()))?;
                work()
            });
            let thread = thread.map_err(|error| failed(error.to_string()))?;
            thread.join().unwrap_or_else(|_| Err(failed("the thread inside panicked".to_owned())))
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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
