//! Sockets of the node whose backend ended, on the real maps and in a namespace of the test's own. Needs root.

mod support;

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quilla_abi::Be16;
use quilla_abi::backend::Backend;
use quilla_abi::socket::{Frontend, SocketKey};
use quilla_agent::metrics::Metrics;
use quilla_agent::sockets::{self, Support};
use quilla_datapath::{Datapath, Options, Sockets, netns};
use quilla_plan::BackendKey;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const UDP: u8 = 17;

/// A namespace that a sleeping process holds, and maps; all is gone when it ends.
struct Place {
    holder: Child,
    directory: tempfile::TempDir,
    datapath: Arc<Datapath>,
}

impl Place {
    fn new() -> Self {
        let (directory, datapath) = support::datapath(&Options::default());
        let datapath = Arc::new(datapath);
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && exec sleep 120"]);
        let holder = command.spawn().expect("unshare");
        let place = Self { holder, directory, datapath };
        let end = Instant::now() + Duration::from_secs(30);
        let loopback = || UdpSocket::bind("127.0.0.1:0").and_then(|own| own.connect("127.0.0.1:9"));
        while own_namespace() == namespace_of(place.holder.id()) || place.run(loopback).is_err() {
            assert!(Instant::now() < end, "no namespace in time");
            std::thread::yield_now();
        }
        place
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()));
        netns::in_netns(&path, work).expect("enter the namespace")
    }

    /// What the socket programs do when a Service leads a socket to its peer.
    fn lead(&self, socket: &UdpSocket) {
        let local = socket.local_addr().expect("bound");
        let mut cookie = None;
        let peers = [socket.peer_addr().expect("connected")].into();
        let look = Sockets::open().expect("open").destroy(UDP, &peers, |found| {
            if found.local == local {
                cookie = Some(found.cookie);
            }
            false
        });
        assert_eq!((look.ended, look.errors.len()), (0, 0), "{look:?}");
        let cookie = cookie.expect("the socket is listed");
        let key = SocketKey { cookie, addr: [127, 0, 0, 1], port: Be16::new(53), proto: UDP, pad: 0 };
        let frontend = Frontend { addr: [10, 96, 0, 10], port: Be16::new(53), ..Frontend::default() };
        self.datapath.maps().sockets_v4.insert(&key, &frontend).expect("write the row");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
        let unmounted = Command::new("umount").arg("--lazy").arg(self.directory.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

fn namespace_of(process: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/net")).ok()
}

fn own_namespace() -> Option<PathBuf> {
    std::fs::read_link("/proc/self/ns/net").ok()
}

fn connected(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.connect(("127.0.0.1", port)).expect("connect");
    socket
}

/// Nothing was received, and nothing is wrong.
fn waits(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).expect("non-blocking");
    socket.recv(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// S45, S48, E18: of all connected sockets, those and only those end that a Service led to a backend that is gone.
#[test]
fn e18_sockets_that_a_service_led_to_a_dead_backend_end() {
    let place = Place::new();
    place.run(|| {
        let (led, direct, other) = (connected(53), connected(53), connected(54));
        place.lead(&led);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (ended, gone) = mpsc::unbounded_channel();
            let (support, mut supported) = watch::channel(Support::Unknown);
            let (metrics, drain) = (Arc::new(Metrics::new()), CancellationToken::new());
            let ending = sockets::end(gone, Arc::clone(&place.datapath), support, metrics, drain.clone());
            let ending = tokio::spawn(ending);
            let can =
                supported.wait_for(|support| *support != Support::Unknown).await.expect("told").to_owned();
            assert_eq!(can, Support::Yes, "needs CONFIG_INET_DIAG_DESTROY");

            let backend = BackendKey { address: [127, 0, 0, 1].into(), port: 53, protocol: UDP };
            let row = Backend { addr: [127, 0, 0, 1], port: Be16::new(53), proto: UDP, pad: 0 };
            let ids = &place.datapath.maps().backend_ids_v4;
            // There again before anybody looked: nothing ends.
            ids.insert(&row, &1).expect("write the row");
            ended.send(vec![backend]).expect("told");
            tokio::task::yield_now().await;
            ended.send(vec![BackendKey { port: 54, ..backend }]).expect("told");
            tokio::task::yield_now().await;
            assert!(waits(&led), "its backend exists");

            ids.remove(&row).expect("remove the row");
            ended.send(vec![backend]).expect("told");
            led.set_nonblocking(false).expect("blocking");
            let read = tokio::task::spawn_blocking(move || led.recv(&mut [0]).expect_err("ended").kind());
            assert_eq!(read.await.expect("read"), ErrorKind::ConnectionAborted);
            drain.cancel();
            ending.await.expect("ends");
        });
        assert!(waits(&direct), "nobody led it there");
        assert!(waits(&other), "its peer is nobody's backend");
    });
}
