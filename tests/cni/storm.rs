//! ADDs and DELs while plugins and the agent are killed ten times a second (CNI-18, CNI-20, CNI-21, CNI-30): no address
//! is given twice, and once it is quiet nothing is left. The agent is the CNI server in a process of its own.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use quilla_tests::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::node::{Call, Node, Pod, addresses};
use crate::process::{FOLDER, ROLE};

/// ADDs and DELs of all Pods together.
const CALLS: usize = 1000;
const PODS: usize = 8;
/// One kill in so many is the agent's.
const AGENT_EVERY: usize = 4;
const PAUSE: Duration = Duration::from_millis(100);

/// The agent as a process.
struct Server(Child);

impl Server {
    fn start(node: &Node) -> Result<Self> {
        let mut command = Command::new(env::current_exe().context("find this program")?);
        command.env(ROLE, "agent").env(FOLDER, node.files.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("start the agent")?))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.0), signal).context("signal the agent")
    }

    fn kill(&mut self) -> Result<()> {
        self.0.kill().context("kill the agent")?;
        self.0.wait().map(drop).context("wait for the agent")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

/// What the Pods share.
struct Storm<'a> {
    node: &'a Node,
    calls: AtomicUsize,
    over: AtomicBool,
    /// Addresses in use, as the runtime knows.
    held: Mutex<HashSet<String>>,
    /// Plugins at work.
    running: Mutex<Vec<Arc<Mutex<Child>>>>,
}

/// 1,000 calls, ten kills per second.
pub(crate) fn of_kills() -> Result<()> {
    let node = Node::without_agent("storm")?;
    let pods: Vec<Pod> = (0..PODS).map(|index| node.pod(&index.to_string())).collect::<Result<_>>()?;
    let before: Vec<String> = pods.iter().map(|pod| node.state(pod)).collect::<Result<_>>()?;
    let mut server = Server::start(&node)?;
    let storm = Storm {
        node: &node,
        calls: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        held: Mutex::default(),
        running: Mutex::default(),
    };
    let (outcomes, kills) = thread::scope(|scope| {
        let workers: Vec<_> = pods.iter().map(|pod| scope.spawn(|| storm.live(pod))).collect();
        let killer = scope.spawn(|| storm.kill(&mut server));
        let outcomes: Vec<_> =
            workers.into_iter().map(|worker| worker.join().expect("does not panic")).collect();
        storm.over.store(true, Ordering::Relaxed);
        (outcomes, killer.join().expect("does not panic"))
    });
    let adds: usize = outcomes.into_iter().sum::<Result<usize>>()?;
    let (plugins, agents) = kills?;
    ensure!(plugins > 0 && agents > 0 && adds > 0, "{plugins} plugins, {agents} agents killed, {adds} ADDs");

    eventually::becomes("records", || node.record_count(), |count| *count == 0)?;
    for (pod, before) in pods.iter().zip(&before) {
        eventually::becomes("state", || node.state(pod), |state| state == before)?;
    }
    server.kill()?;
    let mut node = node;
    node.start_agent()?;
    let known = node.agent.as_ref().map_or(0, |agent| agent.known_at_start.len());
    ensure!(known == 0, "{known} endpoints leaked");
    let files: Vec<_> = fs::read_dir(node.records()).into_iter().flatten().flatten().collect();
    ensure!(files.is_empty(), "{files:?}");
    println!(
        "{CALLS} calls, {adds} ADDs done; killed: {plugins} plugins, {agents} agents; leaks: 0, duplicates: 0"
    );
    Ok(())
}

impl Storm<'_> {
    /// A Pod that comes and goes until there were enough calls; how often it came.
    fn live(&self, pod: &Pod) -> Result<usize> {
        let mut adds = 0;
        while self.calls.load(Ordering::Relaxed) < CALLS {
            if let Some(result) = self.call(&self.node.call("ADD", pod))? {
                adds += 1;
                let given = given(&result)?;
                for address in &given {
                    ensure!(self.held().insert(address.clone()), "{address} is given twice");
                }
                // CNI-12: once more is the same, whoever died in between.
                if let Some(again) = self.call(&self.node.call("ADD", pod))? {
                    ensure!(self::given(&again)? == given, "{again} after {result}");
                }
                self.held().retain(|held| !given.contains(held));
            }
            // A runtime repeats a DEL that it did not see end.
            while self.call(&self.node.call("DEL", pod))?.is_none() {}
        }
        Ok(adds)
    }

    /// What the plugin said, if it succeeded.
    fn call(&self, call: &Call) -> Result<Option<String>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut child = call.command()?.spawn().context("start the plugin")?;
        let mut input = child.stdin.take().context("standard input")?;
        let mut output = child.stdout.take().context("standard output")?;
        drop(child.stderr.take());
        let child = Arc::new(Mutex::new(child));
        self.running().push(Arc::clone(&child));
        // It may be dead already.
        drop(input.write_all(call.config.to_string().as_bytes()));
        drop(input);
        let mut text = String::new();
        output.read_to_string(&mut text).context("read the answer")?;
        let status = child.lock().unwrap_or_else(PoisonError::into_inner).wait().context("wait")?;
        self.running().retain(|other| !Arc::ptr_eq(other, &child));
        Ok(status.success().then_some(text))
    }

    fn held(&self) -> MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, Vec<Arc<Mutex<Child>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills until it is over; how many plugins and agents.
    fn kill(&self, server: &mut Server) -> Result<(usize, usize)> {
        let (mut plugins, mut agents) = (0, 0);
        for turn in 1.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            // The storm's own rhythm; nothing is waited for.
            thread::sleep(PAUSE);
            if turn % AGENT_EVERY == 0 {
                server.kill()?;
                *server = Server::start(self.node)?;
                agents += 1;
            } else if let Some(child) = self.running().last()
                && let Ok(mut child) = child.try_lock()
            {
                // One that has ended by itself is nobody's loss.
                drop(child.kill());
                plugins += 1;
            }
        }
        Ok((plugins, agents))
    }
}

fn given(result: &str) -> Result<Vec<String>> {
    let result: Value = serde_json::from_str(result).context("result of ADD")?;
    Ok(addresses(&result))
}

/// CNI-16, CNI-18, CNI-28: an agent that is alive and does nothing. ADD answers 11 and STATUS 50 in bounded time, DEL
/// succeeds, and the agent finds out once it goes on.
pub(crate) fn agent_stopped() -> Result<()> {
    let node = Node::without_agent("stopped")?;
    let (pod, other) = (node.pod("pod")?, node.pod("other")?);
    let server = Server::start(&node)?;
    let before = node.state(&pod)?;
    eventually::succeeds("add", || node.add(&pod))?;
    server.signal(Signal::STOP)?;
    let call = |verb, pod| node.call(verb, pod).with("agentTimeoutSeconds", 1).run();
    call("ADD", &other)?.error(11)?;
    call("STATUS", &other)?.error(50)?;
    call("DEL", &pod)?.silence()?;
    ensure!(node.state(&pod)? == before, "something remains");
    // The other's ADD had nothing yet that would have to be given back.
    ensure!(node.record_count()? == 1, "want one record");
    server.signal(Signal::CONT)?;
    eventually::becomes("records", || node.record_count(), |count| *count == 0)?;
    node.add(&other)?;
    node.del(&other)
}
