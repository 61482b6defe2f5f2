//! How long the runtime waits for ADD, from start to exit. Printed, never asserted: `QUILLA_CNI_RUNS=200` for figures
//! worth quoting, `QUILLA_CNI_PLUGIN` for another build of the plugin.

use std::env;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::node::{Node, Pod};

/// Enough to show that the measurement works.
const RUNS: usize = 10;

pub(crate) fn start_to_exit() -> Result<()> {
    let node = Node::start("timing")?;
    let runs = env::var("QUILLA_CNI_RUNS").ok().map(|runs| runs.parse()).transpose()?.unwrap_or(RUNS);
    let (mut adds, mut dels) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let pod = node.pod("pod")?;
        adds.push(timed(&node, "ADD", &pod)?);
        dels.push(timed(&node, "DEL", &pod)?);
    }
    for (verb, times) in [("ADD", &mut adds), ("DEL", &mut dels)] {
        times.sort_unstable();
        let quantile = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!(
            "{verb} start to exit, {runs} runs: p50 {:?}, p99 {:?}, most {:?}",
            quantile(50),
            quantile(99),
            quantile(100)
        );
    }
    Ok(())
}

/// One call, started from a thread that is on the host, as the runtime is.
fn timed(node: &Node, verb: &str, pod: &Pod) -> Result<Duration> {
    let call = node.call(verb, pod);
    let (mut command, input) = (call.command_on_host()?, call.config.to_string());
    let (elapsed, output) = node.host.run(|| -> Result<_> {
        let start = Instant::now();
        let mut child = command.spawn().context("start the plugin")?;
        child.stdin.take().context("standard input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output().context("wait for the plugin")?;
        Ok((start.elapsed(), output))
    })??;
    ensure!(output.status.success(), "{verb}: {output:?}");
    Ok(elapsed)
}
