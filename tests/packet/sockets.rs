//! S20 at socket time: without a backend `connect` fails at once, with one it goes there.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use quilla_tests::cgroup::Cgroup;
use quilla_tests::sandbox::Sandbox;

use crate::rig::{Family, Rig, TCP, Who, namespace};

/// The kernel has no test run for these programs: real sockets of a process in a cgroup of its own.
pub(crate) fn connect() -> Result<()> {
    let netns = namespace("sockets")?;
    let cgroup = Cgroup::create(&Sandbox::current()?.cgroup().join("sockets"))?;
    netns.run(|| {
        let mut rig = Rig::load("sockets", false)?;
        rig.datapath.attach_sockets(cgroup.path())?;
        for (family, loopback) in [(Family::V4, "127.0.0.1:0"), (Family::V6, "[::1]:0")] {
            let service = family.ip(Who::Service(16));
            let refused = dial(&cgroup, &service.to_string())?;
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            ensure!(!refused.status.success() && said.contains("refused"), "{family:?}: {said}");
            let listener = TcpListener::bind(loopback)?;
            rig.set_service(family, 16, TCP, &[listener.local_addr()?])?;
            let connected = dial(&cgroup, &service.to_string())?;
            let said = String::from_utf8_lossy(&connected.stderr).into_owned();
            ensure!(connected.status.success(), "{family:?}: {said}");
            listener.accept().context("the connection arrived")?;
            // The socket is gone, and so is what was remembered of it.
            let maps = rig.datapath.maps();
            ensure!(
                maps.sockets_v4.entries()?.is_empty() && maps.sockets_v6.entries()?.is_empty(),
                "not released"
            );
        }
        rig.datapath.detach_sockets()?;
        Ok(())
    })?
}

/// Connects to port 80 from inside the cgroup.
fn dial(cgroup: &Cgroup, address: &str) -> Result<Output> {
    let members = cgroup.path().join("cgroup.procs");
    ensure!(fs::exists(&members)?, "no {}", members.display());
    let script = format!("echo $$ > {} && exec 3<>/dev/tcp/{address}/80", members.display());
    Command::new("bash").args(["-c", &script]).output().context("run bash")
}
