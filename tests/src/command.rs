//! Running other programs: with their text as result and everything they said in the error.
//!
//! Used by every part of the harness. Invariant: no program outlives the value that started it.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// A program still running after this is stuck; the slowest ones wait for a condition themselves.
const LIMIT: Duration = Duration::from_mins(2);

/// How often the end of a program is looked for.
const TICK: Duration = Duration::from_millis(2);

/// Running a command to its end.
pub trait Run {
    /// Its standard output; an error when it fails.
    fn text(&mut self) -> Result<String>;

    /// Its standard output, after it has read `input`.
    fn text_from(&mut self, input: &str) -> Result<String>;
}

impl Run for Command {
    fn text(&mut self) -> Result<String> {
        self.text_from("")
    }

    fn text_from(&mut self, input: &str) -> Result<String> {
        let shown = show(self);
        let spawned = self.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| format!("start {shown}"))?;
        let mut stdin = child.stdin.take().context("standard input")?;
        let id = pid(&child);
        let input = input.to_owned();
        // A program may fail before it has read everything; its own message says more than the broken pipe.
        let writer = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let waiter = thread::spawn(move || child.wait_with_output());
        let start = Instant::now();
        while !waiter.is_finished() {
            if start.elapsed() > LIMIT {
                kill_process(id, Signal::KILL).with_context(|| format!("kill {shown}"))?;
                bail!("{shown}: still running after {LIMIT:?}");
            }
            thread::sleep(TICK);
        }
        let output =
            waiter.join().expect("waiting does not panic").with_context(|| format!("run {shown}"))?;
        writer.join().expect("writing does not panic");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{shown}: {}\n{text}{complaint}", output.status);
        Ok(text)
    }
}

/// A command that will run in the cgroup and, if given, in the network namespace.
pub fn in_place(cgroup: &Path, netns: Option<&Path>, program: &str) -> Command {
    let mut command = Command::new("sh");
    // The shell moves itself and becomes the program, which so never runs outside.
    command.args(["-c", r#"echo $$ >"$0" && exec "$@""#]).arg(cgroup.join("cgroup.procs"));
    if let Some(netns) = netns {
        command.args(["nsenter", &format!("--net={}", netns.display()), "--"]);
    }
    command.arg(program);
    command
}

/// The command line, for messages.
fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// A program that runs until told otherwise, its output in a file.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it; what it prints is appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        let errors = file.try_clone().context("share the log")?;
        let spawned = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        let child = spawned.with_context(|| format!("start {name}: {}", show(command)))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error, with the end of its log, when it has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().with_context(|| format!("look after {}", self.name))? {
            bail!("{} ended: {status}\n{}", self.name, self.tail(30));
        }
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(pid(&self.child), signal).with_context(|| format!("send {signal:?} to {}", self.name))
    }

    /// `kill -9`, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// Asks it to end, insists after `patience`.
    pub fn stop(&mut self, patience: Duration) -> Result<()> {
        if self.child.try_wait().with_context(|| format!("look after {}", self.name))?.is_some() {
            return Ok(());
        }
        self.signal(Signal::TERM)?;
        let start = Instant::now();
        while start.elapsed() < patience {
            if self.child.try_wait().with_context(|| format!("look after {}", self.name))?.is_some() {
                return Ok(());
            }
            thread::sleep(TICK);
        }
        self.kill()
    }

    /// The last lines that it printed.
    pub fn tail(&self, lines: usize) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.id())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already dead is what is wanted.
        drop(self.kill());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_carry_what_was_said() {
        let error = Command::new("sh").args(["-c", "echo no >&2; exit 3"]).text().expect_err("fails");
        assert!(error.to_string().contains("no") && error.to_string().contains('3'), "{error}");
    }

    #[test]
    fn input_is_read() {
        assert_eq!(Command::new("cat").text_from("words").expect("runs"), "words");
    }

    #[test]
    fn daemons_end_with_their_owner() {
        let folder = tempfile::tempdir().expect("folder");
        let mut command = Command::new("sleep");
        let daemon = Daemon::start("sleep", command.arg("60"), &folder.path().join("log")).expect("starts");
        let process = PathBuf::from(format!("/proc/{}", daemon.id()));
        assert!(process.exists());
        drop(daemon);
        assert!(!process.exists());
    }
}
