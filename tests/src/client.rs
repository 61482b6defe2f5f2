//! Clients that people run: curl, dig and iperf3, with what they make of an answer, and of none.
//!
//! `place` makes the command, as for [`crate::ask`]: of a Pod, of a node, of the outside. Each has a limit of its own,
//! which tells silence from refusal.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::ask::Answer;
use crate::command::Run;
use crate::workload::WHO;

/// After so many seconds without an answer, a client calls it silence.
const PATIENCE: &str = "3";

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// An answer.
    Answered(T),
    /// At once, an error: nobody serves there.
    Refused,
    /// Nothing at all.
    Silence,
}

impl<T: std::fmt::Debug> Outcome<T> {
    /// The answer; an error if there was none.
    pub fn answer(self) -> Result<T> {
        match self {
            Self::Answered(answer) => Ok(answer),
            other => bail!("no answer: {other:?}"),
        }
    }

    /// An error unless it was refused.
    pub fn refused(&self) -> Result<()> {
        ensure!(matches!(self, Self::Refused), "not refused: {self:?}");
        Ok(())
    }

    /// An error unless there was silence.
    pub fn silence(&self) -> Result<()> {
        ensure!(matches!(self, Self::Silence), "not silent: {self:?}");
        Ok(())
    }
}

/// An answer over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its code.
    pub code: u16,
    /// Status line and headers.
    pub head: String,
    /// What follows.
    pub body: String,
}

impl Page {
    /// What [`Nginx`](crate::workload::Workload::Nginx) says.
    pub fn answer(&self) -> Result<Answer> {
        let (server, caller) = self.body.trim().split_once(' ').with_context(|| format!("{self:?}"))?;
        Ok(Answer { server: server.to_owned(), caller: caller.parse().context("caller's address")? })
    }

    /// A header's value; names are as they are written usually.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

/// Runs `curl`.
pub fn curl(place: impl Fn(&str) -> Command, to: SocketAddr) -> Result<Outcome<Page>> {
    let mut command = place("curl");
    command.args(["--silent", "--show-error", "--include", "--globoff", "--noproxy", "*"]);
    let output =
        command.args(["--max-time", PATIENCE, &format!("http://{to}/")]).output().context("run curl")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(0) => {
            let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("not a page: {text}"))?;
            let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
            let code = code.with_context(|| format!("not a status: {head}"))?;
            Ok(Outcome::Answered(Page { code, head: head.to_owned(), body: body.to_owned() }))
        }
        Some(7) => Ok(Outcome::Refused),
        Some(28) => Ok(Outcome::Silence),
        _ => bail!("curl {to}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}

/// Runs `dig` for [`WHO`], over TCP or UDP; the name of the server.
pub fn dig(place: impl Fn(&str) -> Command, to: SocketAddr, tcp: bool) -> Result<Outcome<String>> {
    let mut command = place("dig");
    command.args([&format!("@{}", to.ip()), "-p", &to.port().to_string(), WHO, "TXT", "+short", "+tries=1"]);
    command.arg(format!("+time={PATIENCE}")).arg(if tcp { "+tcp" } else { "+notcp" });
    let output = command.output().context("run dig")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = |words: &str| text.contains(words);
    match output.status.code() {
        Some(0) if text.starts_with('"') => Ok(Outcome::Answered(text.trim().trim_matches('"').to_owned())),
        Some(9) if said("refused") || said("unreachable") => Ok(Outcome::Refused),
        Some(9) if said("timed out") || said("no servers could be reached") => Ok(Outcome::Silence),
        _ => bail!("dig {to}: {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}

/// Runs `iperf3` for a second; the bytes that the server received. Of datagrams at a rate that every path has, nine of ten
/// arrive.
pub fn iperf3(place: impl Fn(&str) -> Command, to: SocketAddr, udp: bool) -> Result<u64> {
    let mut command = place("iperf3");
    command.args(["--client", &to.ip().to_string(), "--port", &to.port().to_string(), "--json"]);
    command.args(["--time", "1", "--connect-timeout", "3000"]);
    if udp {
        command.args(["--udp", "--bitrate", "20M"]);
    }
    let text = command.text()?;
    let report: Value = serde_json::from_str(&text).context("iperf3's report")?;
    // Over UDP, the server's count of what it missed is part of the one sum.
    let sum = &report["end"][if udp { "sum" } else { "sum_received" }];
    let received = sum["bytes"].as_u64().with_context(|| format!("no bytes in {report}"))?;
    let lost = sum["lost_percent"].as_f64().unwrap_or_default();
    ensure!(received > 0 && lost < 10.0, "too little arrived: {sum}");
    Ok(received)
}

/// Both families' addresses with a port.
pub fn at(addresses: [IpAddr; 2], port: u16) -> [SocketAddr; 2] {
    addresses.map(|address| SocketAddr::new(address, port))
}
