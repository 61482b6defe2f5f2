//! The plugin's end of the agent's socket. Every call is bounded in time, and whatever keeps the agent from answering
//! is a passing condition to the runtime (code 11).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use quilla_cni_protocol::{
    CniError, ErrorCode, MAX_MESSAGE_BYTES, NetworkConfig, Request, RequestEnvelope, Response, decode, encode,
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// An open conversation. The agent holds what it reserved for us as long as this lives.
#[derive(Debug)]
pub(crate) struct Agent {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    /// An answer was lost: a later one could be mistaken for the answer to another question.
    broken: bool,
}

impl Agent {
    /// Connects; a full queue of a stuck agent counts as a time-out.
    pub(crate) fn connect(config: &NetworkConfig) -> Result<Self, CniError> {
        let path = &config.agent_socket;
        let unreachable = |error: rustix::io::Errno| {
            CniError::try_again("connect to the agent", format!("{}: {error}", path.display()))
        };
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(unreachable)?;
        // The kernel applies the send time-out to a blocking connect as well.
        set_socket_timeout(&fd, Timeout::Send, Some(config.agent_timeout)).map_err(unreachable)?;
        set_socket_timeout(&fd, Timeout::Recv, Some(config.agent_timeout)).map_err(unreachable)?;
        let address = SocketAddrUnix::new(path).map_err(unreachable)?;
        connect(&fd, &address).map_err(unreachable)?;
        Ok(Self { stream: BufReader::new(UnixStream::from(fd)), path: path.clone(), broken: false })
    }

    /// Asks and returns the answer; a refusal is an error.
    pub(crate) fn ask(&mut self, request: Request) -> Result<Response, CniError> {
        if self.broken {
            return Err(self.lost("an earlier answer is missing"));
        }
        self.broken = true;
        let response = self.exchange(request)?;
        self.broken = false;
        match response {
            Response::Error(error) => Err(error),
            response => Ok(response),
        }
    }

    /// Asks for something whose only good answer is `Done`.
    pub(crate) fn ask_done(&mut self, request: Request) -> Result<(), CniError> {
        match self.ask(request)? {
            Response::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn exchange(&mut self, request: Request) -> Result<Response, CniError> {
        let line = encode(&RequestEnvelope::from(request)).map_err(|error| self.lost(error))?;
        self.stream.get_mut().write_all(&line).map_err(|error| self.lost(error))?;
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(MAX_MESSAGE_BYTES as u64);
        limited.read_until(b'\n', &mut line).map_err(|error| self.lost(error))?;
        if line.last() != Some(&b'\n') {
            return Err(self.lost("the agent closed the connection"));
        }
        decode(&line).map_err(|error| self.lost(error))
    }

    fn lost(&self, error: impl std::fmt::Display) -> CniError {
        CniError::try_again("talk to the agent", format!("{}: {error}", self.path.display()))
    }
}

/// An answer of another kind than the request wants: plugin and agent do not fit together.
pub(crate) fn unexpected(response: &Response) -> CniError {
    CniError::new(ErrorCode::AGENT_REFUSED, "unexpected answer from the agent", format!("{response:?}"))
}
