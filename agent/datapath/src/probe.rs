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

/// Asks an HTTP server something long; it answers only when all of it has arrived. A refusal is an error: it says nothing of
/// what is longer.
pub fn carries(to: SocketAddr, way: Way, timeout: Duration) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if way == Way::Direct {
        socket.set_mark(PROBE_MARK)?;
    }
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))?;
    socket.connect_timeout(&to.into(), timeout)?;
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

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Shutdown, TcpListener};
    use std::thread;
    use std::time::Duration;

    use super::{BURST, Way, carries};

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn only_an_answer_shows_that_all_of_it_arrived() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
        let to = listener.local_addr().expect("an address");
        let server = thread::spawn(move || {
            for answer in [&b"HTTP/1.1 200 OK"[..], b""] {
                let (mut connection, _) = listener.accept().expect("a connection");
                let mut arrived = vec![0; BURST];
                connection.read_exact(&mut arrived).expect("all of it");
                connection.write_all(answer).expect("answer");
                connection.shutdown(Shutdown::Write).expect("end");
                connection.read_to_end(&mut arrived).expect("the end");
            }
        });
        carries(to, Way::Usual, TIMEOUT).expect("an answer");
        let closed = carries(to, Way::Usual, TIMEOUT).expect_err("no answer");
        assert_eq!(closed.kind(), ErrorKind::UnexpectedEof);
        server.join().expect("the server");
        let refused = carries(to, Way::Usual, TIMEOUT).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
}
