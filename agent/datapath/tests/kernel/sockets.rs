//! Ending sockets whose peer is gone (S45, S48, E18).

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use quilla_datapath::Sockets;

use crate::support::Namespace;

const TCP: u8 = 6;
const UDP: u8 = 17;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn udp(from: &str, to: &str) -> UdpSocket {
    let socket = UdpSocket::bind(from).expect("bind");
    socket.connect(to).expect("connect");
    socket
}

/// S48, E18: a client that waits for an answer of a dead backend gets an error, and may connect again at once.
#[test]
fn e18_a_connected_datagram_socket_gets_an_error_and_others_do_not() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let gone = address("127.0.0.1:5353");
        let doomed = [udp("127.0.0.1:0", "127.0.0.1:5353"), udp("[::]:0", "[::ffff:127.0.0.1]:5353")];
        let spared = [udp("127.0.0.1:0", "127.0.0.1:5354"), udp("[::1]:0", "[::1]:5353")];
        let sockets = Sockets::open().expect("open");
        assert!(sockets.can_destroy().expect("try"), "needs CONFIG_INET_DIAG_DESTROY");
        let mut seen = Vec::new();
        let outcome = sockets.destroy(UDP, &[gone].into(), |socket| {
            seen.push((socket.local, socket.peer, socket.cookie));
            true
        });
        assert_eq!((outcome.ended, outcome.errors.len(), seen.len()), (2, 0, 2), "{outcome:?} {seen:?}");
        assert!(seen.iter().all(|(_, _, cookie)| *cookie != [0, 0]), "{seen:?}");
        for socket in &doomed {
            assert_eq!(socket.recv(&mut [0]).expect_err("ended").kind(), ErrorKind::ConnectionAborted);
            let connected = socket.connect(if socket.local_addr().expect("bound").is_ipv4() {
                "127.0.0.1:5354"
            } else {
                "[::ffff:127.0.0.1]:5354"
            });
            connected.expect("the same socket goes on with another peer");
        }
        for socket in &spared {
            socket.set_nonblocking(true).expect("non-blocking");
            assert_eq!(socket.recv(&mut [0]).expect_err("nothing came").kind(), ErrorKind::WouldBlock);
        }
    });
}

/// S45: as for datagrams, so for streams whose backend was deleted.
#[test]
fn a_stream_is_ended_for_both_sides_and_its_listener_lives_on() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let backend = listener.local_addr().expect("bound");
        let mut client = TcpStream::connect(backend).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        let outcome = Sockets::open().expect("open").destroy(TCP, &[backend].into(), |_| true);
        assert_eq!(outcome.ended, 1, "{outcome:?}");
        assert_eq!(client.read(&mut [0]).expect_err("ended").kind(), ErrorKind::ConnectionAborted);
        assert_eq!(server.read(&mut [0]).expect_err("reset").kind(), ErrorKind::ConnectionReset);
        TcpStream::connect(backend).expect("a new connection");
    });
}

/// S48: one search finds peers of both families and of several ports.
#[test]
fn peers_of_several_ports_and_families_end_together() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let doomed = [udp("127.0.0.1:0", "127.0.0.1:53"), udp("[::1]:0", "[::1]:54")];
        let spared = udp("127.0.0.1:0", "127.0.0.1:54");
        let peers = ["127.0.0.1:53", "[::1]:54"].map(address).into();
        let outcome = Sockets::open().expect("open").destroy(UDP, &peers, |_| true);
        assert_eq!((outcome.ended, outcome.errors.len()), (2, 0), "{outcome:?}");
        for socket in &doomed {
            assert_eq!(socket.recv(&mut [0]).expect_err("ended").kind(), ErrorKind::ConnectionAborted);
        }
        spared.set_nonblocking(true).expect("non-blocking");
        assert_eq!(spared.recv(&mut [0]).expect_err("nothing came").kind(), ErrorKind::WouldBlock);
    });
}

/// E18: a protocol that the kernel cannot list is an error that is told, once for each family.
#[test]
fn what_cannot_be_listed_is_told() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let peers = [address("127.0.0.1:53")].into();
        let outcome = Sockets::open().expect("open").destroy(253, &peers, |_| true);
        assert_eq!((outcome.ended, outcome.errors.len()), (0, 2), "{outcome:?}");
    });
}
