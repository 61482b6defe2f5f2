//! Named network namespaces that end with their owner.
//!
//! They live under the sandbox's private `/run/netns`, so that `ip netns exec` and CNI paths work inside the sandbox
//! and nothing of them is seen outside. Invariant: a namespace is created only inside a sandbox.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::Run;
use crate::sandbox::Sandbox;

/// A network namespace; removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
}

impl Netns {
    /// Creates it, with its loopback up and nothing else.
    pub fn create(name: &str) -> Result<Self> {
        Sandbox::current()?;
        Command::new("ip").args(["netns", "add", name]).text()?;
        let netns = Self { name: name.to_owned(), path: Path::new("/run/netns").join(name) };
        netns.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        netns.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        inside(&self.path, program)
    }

    /// Runs several `ip` commands inside, one a line.
    pub fn ip(&self, batch: &str) -> Result<String> {
        self.command("ip").args(["-batch", "-"]).text_from(batch)
    }

    /// Sets a sysctl inside.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        self.run(|| fs::write(&path, value))?.with_context(|| format!("set {name} to {value}"))
    }

    /// Runs `work` on a thread of its own that is inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        run_inside(&self.path, work)
    }
}

/// Runs `work` on a thread of its own that is in the network namespace of `path`.
pub fn run_inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("enter {}", path.display()))?;
            Ok(work())
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A command that will run in the network namespace of `path`.
pub fn inside(path: &Path, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path.display())).args(["--", program]);
    command
}

/// The namespaces whose names begin so.
pub fn names(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Removes all namespaces whose names begin so, for owners that did not live to do it.
pub(crate) fn remove_all(prefix: &str) {
    for name in names(prefix) {
        remove(&name);
    }
}

fn remove(name: &str) {
    if let Err(error) = Command::new("ip").args(["netns", "del", name]).text() {
        eprintln!("{error:#}");
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}
