//! A process of a Pod: this binary again, in one of three roles. The server answers one client on localhost with the
//! address it sees as its own; the client prints both.

use std::env;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::ExitCode;

use crate::agent::{Agent, Recorder, pools};

/// Names the role in the environment.
pub(crate) const ROLE: &str = "QUILLA_CNI_TEST_ROLE";

/// Names the folder of the role `agent`.
pub(crate) const FOLDER: &str = "QUILLA_CNI_TEST_FOLDER";

/// Where server and client meet, in a namespace of their own.
const PORT: u16 = 8080;

/// The role this process was started in.
pub(crate) fn role() -> Option<String> {
    env::var(ROLE).ok()
}

pub(crate) fn run(role: &str) -> ExitCode {
    let done = match role {
        "server" => server(),
        "agent" => agent(),
        _ => client(),
    };
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

/// The CNI server with its files below the folder named, until it is killed.
fn agent() -> io::Result<()> {
    let folder = env::var_os(FOLDER).ok_or_else(|| io::Error::other("no folder"))?;
    let agent = Agent::start(Path::new(&folder), Some(pools()), Recorder::default());
    let _agent = agent.map_err(|error| io::Error::other(format!("{error:#}")))?;
    loop {
        std::thread::park();
    }
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
