//! A process of a Pod: this binary again, in one of two roles. The server answers one client on localhost with the
//! address it sees as its own; the client prints both.

use std::env;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;

/// Names the role in the environment.
pub(crate) const ROLE: &str = "QUILLA_CNI_TEST_ROLE";

/// Where server and client meet, in a namespace of their own.
const PORT: u16 = 8080;

/// The role this process was started in.
pub(crate) fn role() -> Option<String> {
    env::var(ROLE).ok()
}

pub(crate) fn run(role: &str) -> ExitCode {
    let done = if role == "server" { server() } else { client() };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{role}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn server() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
    println!("listening");
    let (mut stream, _) = listener.accept()?;
    stream.write_all(own_address()?.as_bytes())
}

fn client() -> io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
    stream.shutdown(Shutdown::Write)?;
    let mut theirs = String::new();
    stream.read_to_string(&mut theirs)?;
    println!("{theirs} {}", own_address()?);
    Ok(())
}

/// The source address this process would send from. Connecting a datagram socket sends nothing.
fn own_address() -> io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect("192.0.2.1:9")?;
    Ok(socket.local_addr()?.ip().to_string())
}
