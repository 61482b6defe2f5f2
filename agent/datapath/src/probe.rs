//! A TCP connection that shows whether a way carries what connections carry: small packets, and full ones in a burst that a
//! device has to segment. Blocking; called by the agent's overlay probe.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use quilla_abi::program::PROBE_MARK;
use socket2::{Domain, Protocol, Socket, Type};

/// More than any segment and the first windows.
const BURST: usize = 60_000;

/// By which way the packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As those of every process of the node.
    Usual,
    /// Encapsulated directly, whatever the configuration says.
    Direct,
}

/// Asks an HTTP server something long; it answers only when all of it has arrived.
pub fn carries(to: SocketAddr, way: Way, timeout: Duration) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if way == Way::Direct {
        socket.set_mark(PROBE_MARK)?;
    }
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))?;
    match socket.connect_timeout(&to.into(), timeout) {
        // Nobody listens, but somebody answers: the rest is for another node to show.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(()),
        connected => connected?,
    }
    let mut socket = socket;
    let padding = "x".repeat(BURST);
    let request =
        format!("GET /livez HTTP/1.1\r\nHost: probe\r\nConnection: close\r\nX-Padding: {padding}\r\n\r\n");
    socket.write_all(request.as_bytes())?;
    match socket.read(&mut [0; 16])? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
