//! Entering a Pod's network namespace. Used by ADD and CHECK; the calling thread never changes namespace: the work
//! runs on a short thread of its own.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};
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

    /// Whether the path leads to this namespace, too.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let (ours, theirs) = (self.file.metadata().map(identity), fs::metadata(path).map(identity));
        matches!((ours, theirs), (Ok(ours), Ok(theirs)) if ours == theirs)
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

sockopt_impl!(
    /// The kernel's identifier of a socket's network namespace (Linux 5.14).
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// The identifier of the calling thread's network namespace, the one socket programs see as `bpf_get_netns_cookie`.
pub(crate) fn cookie() -> io::Result<u64> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    Ok(getsockopt(&socket, NetnsCookie)?)
}
