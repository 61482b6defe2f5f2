//! What the CNI server asks for, on real devices: programs, rows, and what others do to the programs meanwhile.

use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kube::{Client, Config};
use quilla_agent::cni::{AttachError, AttachedEndpoint, Attacher};
use quilla_agent::endpoint::Endpoints;
use quilla_agent::reconcile::{Command as Order, Handle, View, channel};
use quilla_agent::snapshot::Published;
use quilla_agent::static_address::StaticAddresses;
use quilla_datapath::{Datapath, FilterChanges, Mechanism, Netlink, Options, Touched};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Agent, Machine, endpoint, rounds, snapshot};

const PODS: u8 = 30;

fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status();
    assert!(status.is_ok_and(|status| status.success()), "{program} {arguments}");
}

/// An endpoint with a device.
fn real_endpoint(number: u8) -> AttachedEndpoint {
    let name = format!("quil{number}");
    run("ip", &format!("link add {name} type veth peer name pod{number}"));
    let device = Netlink::open().expect("netlink").device(&name).expect("look").expect("the new device");
    AttachedEndpoint { host_ifindex: device.ifindex, ..endpoint(number, number + 1) }
}

/// As the wiring makes it, but nobody has annotations.
fn endpoints(datapath: &Arc<Datapath>, handle: Handle, view: watch::Receiver<Arc<View>>) -> Endpoints {
    let unreachable = Config::new("http://127.0.0.1:1".parse().expect("an address"));
    let static_addresses = StaticAddresses {
        allowed: false,
        published: watch::channel(None).1,
        view,
        client: Client::try_from(unreachable).expect("a client"),
        notices: mpsc::channel(1).0,
    };
    Endpoints::new(Arc::clone(datapath), handle, static_addresses)
}

/// A handle that keeps orders back until there are so many, and then lets them through at once.
fn in_a_burst(handle: &Handle, orders: usize) -> Handle {
    let (kept, received) = channel();
    let handle = handle.clone();
    thread::spawn(move || {
        let together: Vec<_> = received.iter().take(orders).collect();
        together.into_iter().chain(received).all(|order| handle.tell(order))
    });
    kept
}

/// All at once; whose failed, and how.
async fn attach_all(
    endpoints: &Endpoints,
    pods: impl Iterator<Item = AttachedEndpoint>,
) -> Vec<(String, AttachError)> {
    let mut asking = JoinSet::new();
    for pod in pods {
        let endpoints = endpoints.clone();
        asking.spawn(async move {
            let attached = endpoints.attach(&pod, &CancellationToken::new()).await;
            attached.err().map(|error| (pod.container_id, error))
        });
    }
    asking.join_all().await.into_iter().flatten().collect()
}

fn start() -> (Agent, Runtime) {
    let mut agent = Agent::start(snapshot());
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    agent.first_round(&runtime);
    (agent, runtime)
}

/// CNI-16: Pods that share a round have programs and rows when they are answered, and one that cannot have them
/// costs the others nothing.
#[test]
fn endpoints_that_share_a_round_are_effective_each() {
    let (agent, runtime) = start();
    let Agent { datapath, metrics, handle, seen, .. } = &agent;
    let pods: Vec<_> = (1..=PODS).map(real_endpoint).collect();
    let strangers = [endpoint(100, 100), AttachedEndpoint { host_ifindex: 1, ..real_endpoint(200) }];
    let before = rounds(metrics, datapath);
    runtime.block_on(async {
        let together = endpoints(datapath, in_a_burst(handle, PODS.into()), seen.clone());
        let failed = attach_all(&together, pods.iter().cloned().chain(strangers)).await;
        let mut ids: Vec<_> = failed.iter().map(|(id, _)| id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["c100", "c200"], "without a device, and with another one's number: {failed:?}");

        let left = CancellationToken::new();
        left.cancel();
        let refused = together.attach(&pods[0], &left).await;
        assert!(matches!(refused, Err(AttachError::Abandoned)), "{refused:?}");
    });
    let came = rounds(metrics, datapath) - before;
    assert!(came < u64::from(PODS) / 2, "{came} rounds");
    for pod in &pods {
        assert!(datapath.maps().interfaces.get(&pod.host_ifindex).expect("a map").is_some());
        let attached = datapath.pod_mechanism(&pod.host_ifname).expect("look");
        assert_eq!(attached, Some(Mechanism::Clsact), "{}", pod.host_ifname);
    }

    let all = endpoints_of(&runtime, datapath, handle, seen);
    for pod in &pods {
        runtime.block_on(all.detach(pod)).expect("detach");
        assert_eq!(datapath.pod_mechanism(&pod.host_ifname).expect("look"), None);
    }
    assert_eq!(datapath.maps().interfaces.len().expect("a map"), 0);
    drop(all);
    agent.end();
}

fn endpoints_of(
    runtime: &Runtime,
    datapath: &Arc<Datapath>,
    handle: &Handle,
    seen: &watch::Receiver<Arc<View>>,
) -> Endpoints {
    runtime.block_on(async { endpoints(datapath, handle.clone(), seen.clone()) })
}

/// CNI-16, CNI-23: CHECK misses programs that somebody removed, who says so has them put back, and an ADD whose programs
/// went before it was answered fails.
#[test]
fn programs_that_somebody_removes_are_missed_and_put_back() {
    let (agent, runtime) = start();
    let Agent { datapath, metrics, handle, seen, .. } = &agent;
    let (first, second) = (real_endpoint(1), real_endpoint(2));
    let mut changes = FilterChanges::open().expect("listen");
    let mut removed = |device: &str| {
        run("tc", &format!("qdisc del dev {device} clsact"));
        changes.wait(Duration::from_secs(10)).expect("listen").expect("heard")
    };
    let all = endpoints_of(&runtime, datapath, handle, seen);
    let attached = runtime.block_on(all.attach(&first, &CancellationToken::new()));
    attached.expect("attach");
    let check = || runtime.block_on(all.check(&first)).map_err(|error| format!("{error:?}"));
    assert_eq!(check(), Ok(()));

    let touched = removed("quil1");
    let missed = check().expect_err("its programs are gone");
    assert!(missed.contains("programs of quil1"), "{missed}");
    assert!(handle.tell(Order::ProgramsTouched(touched)));
    assert_eq!(check(), Ok(()));
    let told = metrics.render(datapath, 0).expect("metrics");
    assert!(told.contains("quilla_agent_programs_restored_total 1\n"), "{told}");

    datapath.attach_pod("quil2", None).expect("attach");
    assert!(handle.tell(Order::ProgramsTouched(removed("quil2"))));
    let order = |answer| Order::Attach(Box::new(second.clone()), answer);
    let refused = runtime.block_on(handle.ask(order)).expect_err("no programs");
    assert!(refused.to_string().contains("programs of quil2"), "{refused}");
    drop((all, changes));
    agent.end();
}

/// A filter of another in the place of ours, with which the kernel lets packets go on.
fn take_the_place(device: &str) {
    let mut bytecode = tempfile::NamedTempFile::new().expect("a file");
    bytecode.write_all(b"1,6 0 0 0").expect("write");
    let bytecode = bytecode.path().display();
    run("tc", &format!("filter replace dev {device} ingress prio 1 handle 1 bpf bytecode-file {bytecode}"));
}

/// What the reconciler has to say of `endpoint` after all that it was told before.
fn check(runtime: &Runtime, handle: &Handle, endpoint: &AttachedEndpoint) -> Result<(), String> {
    let order = |answer| Order::Check(Box::new(endpoint.clone()), answer);
    runtime.block_on(handle.ask(order)).map_err(|error| error.to_string())
}

/// E19, CNI-16: without links, a Pod whose place another has taken is a problem of that Pod: the first round succeeds and
/// so do those of others that come, and once the other gives in, it has its programs again.
#[test]
fn a_pod_that_cannot_be_attached_to_keeps_nothing_else_from_it() {
    let machine = Machine::enter();
    let (taken, other, later) = (real_endpoint(1), real_endpoint(2), real_endpoint(3));
    run("tc", "qdisc add dev quil1 clsact");
    take_the_place("quil1");
    let without_links = Options { tcx: false, ..Options::default() };
    let known = vec![taken.clone(), other.clone()];
    let mut agent = Agent::start_on(machine, &without_links, Some(snapshot()), known);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    agent.first_round(&runtime);
    let Agent { datapath, handle, seen, .. } = &agent;
    let problems = || {
        let view = seen.borrow().clone();
        assert_eq!(view.failing, None);
        view.problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let found = problems();
    assert!(found.iter().any(|problem| problem.contains("pod-1") && problem.contains("quil1")), "{found:?}");
    assert!(!found.iter().any(|problem| problem.contains("pod-2")), "{found:?}");
    assert_eq!(check(&runtime, handle, &other), Ok(()));
    assert!(check(&runtime, handle, &taken).is_err());

    let all = endpoints_of(&runtime, datapath, handle, seen);
    runtime.block_on(all.attach(&later, &CancellationToken::new())).expect("another Pod is attached");
    assert!(handle.tell(Order::ProgramsTouched(Touched::any())));
    assert!(check(&runtime, handle, &taken).is_err(), "still taken");
    runtime.block_on(all.detach(&later)).expect("and detached");

    run("tc", "filter del dev quil1 ingress");
    assert!(handle.tell(Order::ProgramsTouched(Touched::any())));
    assert_eq!(check(&runtime, handle, &taken), Ok(()));
    let told = |view: &Arc<View>| !view.problems.iter().any(|problem| problem.to_string().contains("quil1"));
    runtime.block_on(seen.clone().wait_for(told)).expect("the next round tells");
    drop(all);
    agent.end();
}

/// E19: programs are put back although no round has begun, and by an agent without links those of an uplink.
#[test]
fn programs_are_put_back_whether_or_not_rounds_succeed() {
    let machine = Machine::enter();
    let known = real_endpoint(1);
    let mut agent =
        Agent::start_on(machine, &Options { tcx: false, ..Options::default() }, None, vec![known.clone()]);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let Agent { datapath, handle, .. } = &agent;
    datapath.attach_pod("quil1", None).expect("attach");
    run("tc", "qdisc del dev quil1 clsact");
    assert_eq!(datapath.pod_mechanism("quil1").expect("look"), None);
    assert!(handle.tell(Order::ProgramsTouched(Touched::any())));
    let early = check(&runtime, handle, &known).expect_err("no snapshot, no rows");
    assert_eq!(datapath.pod_mechanism("quil1").expect("look"), Some(Mechanism::Clsact), "{early}");

    agent.snapshots.send_replace(Some(Published { snapshot: Arc::new(snapshot()), ..Published::default() }));
    agent.first_round(&runtime);
    let Agent { datapath, handle, metrics, .. } = &agent;
    let before = rounds(metrics, datapath);
    run("tc", "qdisc del dev eth0 clsact");
    assert_eq!(datapath.uplink_mechanism("eth0").expect("look"), None);
    assert!(handle.tell(Order::ProgramsTouched(Touched::any())));
    assert_eq!(check(&runtime, handle, &known), Ok(()));
    assert_eq!(datapath.uplink_mechanism("eth0").expect("look"), Some(Mechanism::Clsact));
    assert_eq!(rounds(metrics, datapath), before, "no round is needed for it");
    agent.end();
}

/// E19: whoever removes filters again and again gets links, which he cannot remove.
#[test]
fn filters_that_somebody_removes_again_and_again_become_links() {
    let (agent, runtime) = start();
    let Agent { datapath, metrics, handle, seen, .. } = &agent;
    let pod = real_endpoint(1);
    let all = endpoints_of(&runtime, datapath, handle, seen);
    runtime.block_on(all.attach(&pod, &CancellationToken::new())).expect("attach");
    let mut repairs = 0;
    while datapath.pod_mechanism("quil1").expect("look") == Some(Mechanism::Clsact) {
        run("tc", "qdisc del dev quil1 clsact");
        assert!(handle.tell(Order::ProgramsTouched(Touched::any())));
        assert_eq!(check(&runtime, handle, &pod), Ok(()), "after repair {repairs}");
        repairs += 1;
        assert!(repairs < 20, "filters for ever");
    }
    assert_eq!(datapath.pod_mechanism("quil1").expect("look"), Some(Mechanism::Tcx));
    let told = metrics.render(datapath, 0).expect("metrics");
    assert!(told.contains(&format!("quilla_agent_programs_restored_total {repairs}\n")), "{told}");
    drop(all);
    agent.end();
}
