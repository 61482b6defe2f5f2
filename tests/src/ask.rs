//! Questions to harness Pods by `quilla-ask`, from anywhere a command can run.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result};

use crate::binary;
use crate::command::Run;

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// One TCP connection per question.
    Http,
    /// Datagrams from an unconnected socket.
    Udp,
    /// Datagrams from a connected socket.
    UdpConnected,
}

impl By {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Http, Self::Udp, Self::UdpConnected];

    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Udp => "udp",
            Self::UdpConnected => "udp-connected",
        }
    }
}

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its name.
    pub server: String,
    /// Whom it was talking to.
    pub caller: IpAddr,
}

/// Asks so many times, each from a new socket. `place` makes the command: of a Pod, of a node, of a namespace.
pub fn ask(place: impl Fn(&str) -> Command, target: SocketAddr, by: By, count: u32) -> Result<Vec<Answer>> {
    let program = binary::path("quilla-ask")?;
    let mut command = place(&program.to_string_lossy());
    command.args([&target.to_string(), "--protocol", by.name(), "--count", &count.to_string()]);
    command.text()?.lines().map(parse).collect()
}

/// Sends `bytes` there and back, in a stream or in one datagram.
pub fn echo(place: impl Fn(&str) -> Command, target: SocketAddr, by: By, bytes: usize) -> Result<()> {
    let program = binary::path("quilla-ask")?;
    let mut command = place(&program.to_string_lossy());
    let protocol = if by == By::Http { "echo" } else { by.name() };
    command.args([&target.to_string(), "--protocol", protocol, "--bytes", &bytes.to_string()]);
    command.text().map(drop)
}

fn parse(line: &str) -> Result<Answer> {
    let (server, caller) = line.split_once(' ').with_context(|| format!("not an answer: {line}"))?;
    let caller: SocketAddr = caller.parse().with_context(|| format!("not an address: {caller}"))?;
    Ok(Answer { server: server.to_owned(), caller: caller.ip() })
}

/// How many answers each server gave.
pub fn tally(answers: &[Answer]) -> BTreeMap<&str, usize> {
    let mut hits = BTreeMap::new();
    for answer in answers {
        *hits.entry(answer.server.as_str()).or_default() += 1;
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::{parse, tally};

    #[test]
    fn answers_of_both_families_are_read() {
        let answers: Vec<_> = ["web-a 10.244.0.2:4000", "web-b [fd00:244::2]:4000", "web-a 10.244.0.2:4001"]
            .map(|line| parse(line).expect(line))
            .into();
        assert_eq!(tally(&answers).into_iter().collect::<Vec<_>>(), [("web-a", 2), ("web-b", 1)]);
        assert_eq!(answers[1].caller.to_string(), "fd00:244::2");
        parse("echoed 5 bytes").expect_err("no address");
    }
}
