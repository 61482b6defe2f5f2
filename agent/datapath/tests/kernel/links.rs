//! Links: attached once, replaced in place, found again by the next agent.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use quilla_datapath::{LinkStatus, Options};

use crate::support::{Bpffs, Cgroup, Namespace, counted, eventually, frame, open, packet_socket, send};

fn ids(links: &[LinkStatus]) -> Vec<(String, u32)> {
    links.iter().map(|link| (link.name.clone(), link.id)).collect()
}

/// Design, promise 2: agents are killed and started under traffic, and every packet meets exactly one program.
#[test]
fn agents_killed_under_traffic_lose_no_packet() {
    const KILLS: u32 = 10;
    if let Some(bpffs) = std::env::var_os(AGENT) {
        return be_an_agent(&Options { bpffs: bpffs.into(), flow_capacity: 1024, ..Options::default() });
    }
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    namespace.quiet_pair("near", "far");
    kill_an_agent(&bpffs, &namespace);
    let before = bpffs.open().links().expect("links");
    assert_eq!(before.len(), 2, "{before:?}");

    let done = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let flood = scope.spawn(|| namespace.run(|| flood(&packet_socket("far"), &done)));
        for _ in 0..KILLS {
            kill_an_agent(&bpffs, &namespace);
        }
        done.store(true, Ordering::Relaxed);
        flood.join().expect("flood")
    });
    let last = bpffs.open();
    let after = last.links().expect("links");
    assert_eq!(ids(&after), ids(&before), "the links are the same ones");
    assert!(
        after.iter().zip(&before).all(|(new, old)| new.program != old.program),
        "the programs are new ones"
    );
    assert!(sent > 1000, "traffic ran all the while: {sent}");
    eventually("packets counted", &sent, || counted(&last));
}

/// In the environment of a process that is to be an agent: its BPF file system.
const AGENT: &str = "QUILLA_TEST_AGENT";

/// This very test in another process. It kills itself the moment everything is attached, with all it has open.
fn kill_an_agent(bpffs: &Bpffs, namespace: &Namespace) {
    let executable = std::env::current_exe().expect("this executable");
    let status = namespace.run(|| {
        Command::new(executable)
            .args(["--exact", "links::agents_killed_under_traffic_lose_no_packet"])
            .env(AGENT, bpffs.options().bpffs)
            .stdout(Stdio::null())
            .status()
    });
    assert_eq!(status.expect("run an agent").signal(), Some(libc::SIGKILL), "it ends by nothing else");
}

fn be_an_agent(options: &Options) {
    open(options).attach_pod("near").expect("attach");
    // SAFETY: no addresses are passed. Nothing is dropped or flushed, as when somebody else kills us.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

fn flood(socket: &OwnedFd, done: &AtomicBool) -> u64 {
    let frame = frame();
    let mut sent = 0;
    while !done.load(Ordering::Relaxed) {
        sent += u64::from(send(socket, &frame));
    }
    sent
}

#[test]
fn links_of_vanished_devices_are_pruned() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    let datapath = bpffs.open();
    for (near, far) in [("gone.1", "far1"), ("stays", "far2")] {
        namespace.quiet_pair(near, far);
        namespace.run(|| datapath.attach_pod(near)).expect("attach");
    }
    namespace.ip("link del gone.1");
    assert_eq!(datapath.prune_links().expect("prune"), ["from_pod-gone:1", "to_pod-gone:1"]);
    let names: Vec<_> = datapath.links().expect("links").into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["from_pod-stays", "to_pod-stays"]);
    datapath.detach_pod("stays").expect("detach");
    datapath.detach_pod("stays").expect("detach again");
    assert!(datapath.links().expect("links").is_empty());
}

/// The operator chose other uplinks: a former one is a device like any other again, and the Pods' stay.
#[test]
fn a_former_uplink_is_let_go() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    let datapath = bpffs.open();
    for device in ["old.1", "new.1", "second", "overlay", "pod"] {
        namespace.quiet_pair(device, &format!("far-{device}"));
    }
    namespace.run(|| {
        datapath.attach_uplink("old.1").expect("attach");
        datapath.attach_overlay("old.1").expect("attach");
        datapath.attach_uplink("new.1").expect("attach");
        datapath.attach_uplink("second").expect("attach");
        datapath.attach_overlay("overlay").expect("attach");
        datapath.attach_pod("pod").expect("attach");
    });
    let uplinks = ["new.1", "second"].map(str::to_owned);
    let gone = datapath.detach_others(&uplinks, "overlay").expect("detach");
    assert_eq!(gone, ["from_overlay-old:1", "from_uplink-old:1", "to_overlay-old:1", "to_uplink-old:1"]);
    let names: Vec<_> = datapath.links().expect("links").into_iter().map(|link| link.name).collect();
    let kept = [
        "from_overlay-overlay",
        "from_pod-pod",
        "from_uplink-new:1",
        "from_uplink-second",
        "to_overlay-overlay",
        "to_pod-pod",
        "to_uplink-new:1",
        "to_uplink-second",
    ];
    assert_eq!(names, kept);
    assert!(datapath.detach_others(&uplinks, "overlay").expect("detach again").is_empty());
}

/// A device that has gone and come back under its name is another device: the old link is of no use.
#[test]
fn a_device_made_anew_is_attached_anew() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    let datapath = bpffs.open();
    for _ in 0..2 {
        namespace.quiet_pair("near", "far");
        namespace.run(|| datapath.attach_pod("near")).expect("attach");
        assert!(datapath.links().expect("links").iter().all(|link| !link.defunct));
        assert!(namespace.run(|| send(&packet_socket("far"), &frame())));
        namespace.ip("link del near");
    }
    assert_eq!(counted(&datapath), 2);
}

#[test]
fn a_missing_device_is_named() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    let error = namespace.run(|| bpffs.open().attach_uplink("nowhere")).expect_err("no such device");
    assert_eq!(error.to_string(), "no device nowhere");
}

/// The way of kernels before 6.6: attached twice is attached once, and the filter outlives the agent.
#[test]
fn clsact_filters_are_replaced_and_outlive_us() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    namespace.quiet_pair("near", "far");
    for _ in 0..2 {
        let datapath = open(&Options { clsact: true, ..bpffs.options() });
        assert!(!datapath.status().tcx);
        namespace.run(|| datapath.attach_pod("near")).expect("attach");
    }
    assert!(namespace.run(|| send(&packet_socket("far"), &frame())));
    let datapath = open(&Options { clsact: true, ..bpffs.options() });
    assert_eq!(counted(&datapath), 1);
    for _ in 0..2 {
        namespace.run(|| datapath.detach_pod("near")).expect("detach");
    }
    assert!(namespace.run(|| send(&packet_socket("far"), &frame())));
    assert_eq!(counted(&datapath), 1);
}

/// The operator chose the other way: whichever came before, it leaves nothing.
#[test]
fn either_way_to_attach_takes_the_place_of_the_other() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    namespace.quiet_pair("near", "far");
    let filters = || {
        let list = || Command::new("tc").args(["filter", "show", "dev", "near", "ingress"]).output();
        String::from_utf8(namespace.run(list).expect("list filters").stdout).expect("text").lines().count()
    };
    for (clsact, links) in [(false, 2), (true, 0), (false, 2)] {
        let datapath = open(&Options { clsact, ..bpffs.options() });
        namespace.run(|| datapath.attach_pod("near")).expect("attach");
        assert_eq!(datapath.links().expect("links").len(), links);
        assert_eq!(filters() > 0, clsact);
    }
}

#[test]
fn socket_programs_keep_their_links_and_follow_the_operator_to_another_group() {
    let bpffs = Bpffs::new();
    let (first_group, second_group) = (Cgroup::new("first"), Cgroup::new("second"));
    let first = bpffs.open();
    first.attach_sockets(first_group.path()).expect("attach");
    let before = first.links().expect("links");
    assert_eq!(before.len(), 9);
    drop(first);

    let second = bpffs.open();
    second.attach_sockets(first_group.path()).expect("attach");
    let after = second.links().expect("links");
    assert_eq!(ids(&after), ids(&before));
    assert!(after.iter().zip(&before).all(|(new, old)| new.program != old.program));

    second.attach_sockets(second_group.path()).expect("attach elsewhere");
    let moved = second.links().expect("links");
    assert!(moved.iter().zip(&after).all(|(new, old)| new.name == old.name && new.id != old.id));
    drop(second_group);
    // The kernel lets go of a removed group's links a little later.
    let mut pruned = 0;
    eventually("links pruned", &9, || {
        pruned += second.prune_links().expect("prune").len();
        pruned
    });
}

#[test]
fn a_directory_that_is_no_group_is_refused() {
    let bpffs = Bpffs::new();
    let error = bpffs.open().attach_sockets(&PathBuf::from("/proc")).expect_err("not a control group");
    assert_eq!(error.to_string(), "/proc is not on a cgroup2 file system");
}

/// The programs run for sockets of the group, and for no others: this process is not in it.
#[test]
fn socket_programs_see_the_group_and_nothing_else() {
    let (bpffs, group) = (Bpffs::new(), Cgroup::new("seen"));
    let datapath = bpffs.open();
    datapath.attach_sockets(group.path()).expect("attach");
    let listener = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    let join = format!(
        "echo 0 > {}/cgroup.procs; exec 3<>/dev/udp/127.0.0.1/{port}; echo hello >&3",
        group.path().display()
    );
    assert!(Command::new("bash").args(["-c", &join]).status().expect("bash").success());
    let mut buffer = [0; 16];
    let (len, _) = listener.recv_from(&mut buffer).expect("a datagram that no Service translates");
    assert_eq!(&buffer[..len], b"hello\n");
}
