//! What the tests stand on: a BPF file system and network namespaces of their own, gone when a test ends.
//!
//! A namespace has no name: it lives as long as its descriptor, so that a test that dies leaves nothing behind.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::thread;
use std::time::{Duration, Instant};

use quilla_datapath::{Datapath, Object, Options, bpffs, netns};

/// A BPF file system that is unmounted on drop, and with it everything pinned.
pub(crate) struct Bpffs {
    directory: tempfile::TempDir,
}

impl Bpffs {
    pub(crate) fn new() -> Self {
        let directory =
            tempfile::Builder::new().prefix("quilla-datapath-").tempdir().expect("temporary directory");
        bpffs::mount(directory.path()).expect("tests of this crate need root");
        Self { directory }
    }

    /// Small tables: a test opens them many times.
    pub(crate) fn options(&self) -> Options {
        Options { bpffs: self.directory.path().to_owned(), flow_capacity: 1024, ..Options::default() }
    }

    pub(crate) fn open(&self) -> Datapath {
        open(&self.options())
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.directory.path().join("quilla/maps")
    }
}

/// Opens the embedded object, or the one `QUILLA_OBJECT` names while the kernel's side is being worked on.
pub(crate) fn open(options: &Options) -> Datapath {
    match std::env::var_os("QUILLA_OBJECT") {
        Some(path) => {
            let bytes = fs::read(path).expect("the object of QUILLA_OBJECT");
            Datapath::open_object(&Object::from_bytes(&bytes), options)
        }
        None => Datapath::open(options),
    }
    .expect("open the data path")
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let path = CString::new(self.directory.path().as_os_str().as_bytes()).expect("a path");
        // SAFETY: `path` is a C string. A failure leaves an empty directory in use, which the next line reports.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// A network namespace of a test.
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let make = || {
            // SAFETY: only this thread, which ends here, changes its namespace.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
            File::open("/proc/thread-self/ns/net").expect("open the namespace")
        };
        let file = thread::scope(|scope| scope.spawn(make).join()).expect("make a namespace");
        let namespace = Self { file };
        namespace.ip("link set lo up");
        namespace
    }

    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::in_netns_fd(self.file.as_fd(), work).expect("run in the namespace")
    }

    /// The path by which another process of this machine finds it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd()))
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.command("ip", arguments)
    }

    pub(crate) fn command(&self, program: &str, arguments: &str) -> String {
        let output = self
            .run(|| Command::new(program).args(arguments.split_ascii_whitespace()).output())
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(
            output.status.success(),
            "{program} {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A veth pair that carries nothing but what the test sends: no neighbour discovery of either family.
    pub(crate) fn quiet_pair(&self, near: &str, far: &str) {
        self.run(|| fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")).expect("silence IPv6");
        self.ip(&format!("link add {near} type veth peer name {far}"));
        for device in [near, far] {
            self.ip(&format!("link set {device} arp off up"));
        }
    }

    /// A veth pair between two namespaces, up, with an address of each family at each end.
    pub(crate) fn join(&self, other: &Self, device: &str, near: &[IpAddr], far: &[IpAddr]) {
        let path = other.path();
        self.ip(&format!("link add {device} type veth peer name {device} netns {}", path.display()));
        for (namespace, addresses) in [(self, near), (other, far)] {
            for address in addresses {
                let length = if address.is_ipv4() { 24 } else { 64 };
                let flags = if address.is_ipv4() { "" } else { "nodad" };
                namespace.ip(&format!("addr add {address}/{length} dev {device} {flags}"));
            }
            namespace.ip(&format!("link set {device} up"));
        }
    }
}

/// A raw socket on a device of the calling thread's namespace.
pub(crate) fn packet_socket(device: &str) -> OwnedFd {
    // SAFETY: no addresses are passed.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(socket >= 0, "packet socket: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just made the descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let name = CString::new(device).expect("a device name");
    // SAFETY: all zero bytes are a value of this struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.cast_unsigned().try_into().expect("a small number");
    // SAFETY: `name` is a C string.
    let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
    address.sll_ifindex = ifindex.cast_signed();
    let len = size_of::<libc::sockaddr_ll>().try_into().expect("a small size");
    // SAFETY: `address` is valid for `len` bytes.
    let ret = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    assert_eq!(ret, 0, "bind to {device}: {}", io::Error::last_os_error());
    socket
}

/// Sends one frame; `false` when the device's queue is full.
pub(crate) fn send(socket: &OwnedFd, frame: &[u8]) -> bool {
    // SAFETY: `frame` is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    usize::try_from(sent).is_ok_and(|sent| sent == frame.len())
}

/// An Ethernet frame with an IPv4 UDP packet in it.
pub(crate) fn frame() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0x66, 0xc9, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x30, 0x39, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

/// Packets that the programs have counted, dropped or not.
pub(crate) fn counted(datapath: &Datapath) -> u64 {
    let maps = datapath.maps();
    let rows =
        maps.drops.totals().expect("drops").into_iter().chain(maps.forwards.totals().expect("forwards"));
    rows.map(|row| row.packets).sum()
}

/// Waits until `probe` gives what is expected, and fails with the last value after ten seconds.
pub(crate) fn eventually<T: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &T,
    mut probe: impl FnMut() -> T,
) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let value = probe();
        if value == *expected {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {value:?}, expected {expected:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A control group of the test, below the root, removed on drop.
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn new(name: &str) -> Self {
        let path = quilla_datapath::cgroup::root()
            .expect("a cgroup2 mount")
            .join(format!("quilla-datapath-{}-{name}", process::id()));
        fs::create_dir(&path).expect("make a control group");
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}
