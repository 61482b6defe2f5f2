//! Links: attached once, replaced in place, found again by the next agent.

use std::io::Write;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use quilla_datapath::{FilterChanges, LinkStatus, Mechanism, Options};

use crate::support::{Bpffs, Cgroup, Namespace, counted, eventually, frame, open, packet_socket, send};

fn ids(links: &[LinkStatus]) -> Vec<(String, u32)> {
    links.iter().map(|link| (link.name.clone(), link.id)).collect()
}

/// Design, promise 2: agents are killed and started under traffic, and every packet meets exactly one program.
#[test]
fn agents_killed_under_traffic_lose_no_packet() {
    const KILLS: u32 = 5;
    if let Some(bpffs) = std::env::var_os(AGENT) {
        let pods = if std::env::var_os(BY_LINKS).is_some() { Mechanism::Tcx } else { Mechanism::Clsact };
        return be_an_agent(&Options {
            bpffs: bpffs.into(),
            flow_capacity: 1024,
            pods,
            ..Options::default()
        });
    }
    for mechanism in [Mechanism::Clsact, Mechanism::Tcx] {
        let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
        namespace.quiet_pair("near", "far");
        kill_an_agent(&bpffs, &namespace, mechanism);
        let before = bpffs.open().links().expect("links");
        assert_eq!(before.len(), if mechanism == Mechanism::Tcx { 2 } else { 0 }, "{before:?}");

        let done = AtomicBool::new(false);
        let sent = thread::scope(|scope| {
            let flood = scope.spawn(|| namespace.run(|| flood(&packet_socket("far"), &done)));
            for _ in 0..KILLS {
                kill_an_agent(&bpffs, &namespace, mechanism);
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
}

/// In the environment of a process that is to be an agent: its BPF file system.
const AGENT: &str = "QUILLA_TEST_AGENT";
/// Besides it, if that agent is to attach by tcx.
const BY_LINKS: &str = "QUILLA_TEST_BY_LINKS";

/// This very test in another process. It kills itself the moment everything is attached, with all it has open.
fn kill_an_agent(bpffs: &Bpffs, namespace: &Namespace, mechanism: Mechanism) {
    let executable = std::env::current_exe().expect("this executable");
    let mut command = Command::new(executable);
    command.args(["--exact", "links::agents_killed_under_traffic_lose_no_packet"]);
    command.env(AGENT, bpffs.options().bpffs).stdout(Stdio::null());
    if mechanism == Mechanism::Tcx {
        command.env(BY_LINKS, "");
    }
    let status = namespace.run(|| command.status());
    assert_eq!(status.expect("run an agent").signal(), Some(libc::SIGKILL), "it ends by nothing else");
}

fn be_an_agent(options: &Options) {
    open(options).attach_pod("near", None).expect("attach");
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
        namespace.run(|| datapath.attach_pod(near, Some(Mechanism::Tcx))).expect("attach");
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
        datapath.attach_pod("pod", Some(Mechanism::Tcx)).expect("attach");
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
        namespace.run(|| datapath.attach_pod("near", Some(Mechanism::Tcx))).expect("attach");
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

/// What `tc` shows of the filters of `near`.
fn filters(namespace: &Namespace, side: &str) -> String {
    namespace.command("tc", &format!("filter show dev near {side}"))
}

/// Attached twice is attached once, and the filter outlives the agent.
#[test]
fn clsact_filters_are_replaced_and_outlive_us() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    namespace.quiet_pair("near", "far");
    for _ in 0..2 {
        let datapath = bpffs.open();
        namespace.run(|| datapath.attach_pod("near", None)).expect("attach");
    }
    assert!(namespace.run(|| send(&packet_socket("far"), &frame())));
    let datapath = bpffs.open();
    assert_eq!(counted(&datapath), 1);
    for _ in 0..2 {
        namespace.run(|| datapath.detach_pod("near")).expect("detach");
    }
    assert!(namespace.run(|| send(&packet_socket("far"), &frame())));
    assert_eq!(counted(&datapath), 1);
}

/// A kernel before 6.6 has filters for all, whatever is asked for.
#[test]
fn without_tcx_everything_is_a_filter() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    let datapath = open(&Options { tcx: false, pods: Mechanism::Tcx, ..bpffs.options() });
    assert!(!datapath.status().tcx && datapath.status().pods == Mechanism::Clsact);
    for (device, far) in [("near", "far"), ("uplink", "world"), ("tunnel", "end")] {
        namespace.quiet_pair(device, far);
    }
    namespace.run(|| {
        datapath.attach_pod("near", Some(Mechanism::Tcx)).expect("attach");
        datapath.attach_uplink("uplink").expect("attach");
        datapath.attach_overlay("tunnel").expect("attach");
        assert_eq!(datapath.pod_mechanism("near").expect("look"), Some(Mechanism::Clsact));
        for far in ["far", "world", "end"] {
            assert!(send(&packet_socket(far), &frame()));
        }
    });
    assert_eq!(counted(&datapath), 3);
    assert!(datapath.links().expect("links").is_empty());
}

/// The operator chose the other mechanism: whichever came before, it leaves nothing.
#[test]
fn either_mechanism_takes_the_place_of_the_other() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    namespace.quiet_pair("near", "far");
    for (pods, links) in [(Mechanism::Tcx, 2), (Mechanism::Clsact, 0), (Mechanism::Tcx, 2)] {
        let datapath = open(&Options { pods, ..bpffs.options() });
        namespace.run(|| datapath.attach_pod("near", None)).expect("attach");
        assert_eq!(namespace.run(|| datapath.pod_mechanism("near")).expect("look"), Some(pods));
        assert_eq!(datapath.links().expect("links").len(), links);
        for side in ["ingress", "egress"] {
            assert_eq!(filters(&namespace, side).is_empty(), links > 0, "{side}");
        }
    }
}

/// CNI-13: what another plugin of a chain has at the device stays, with its filters; ours is a link then.
#[test]
fn where_another_has_the_place_of_a_filter_it_is_a_link() {
    let another = "u32 match u32 0 0 flowid 1:1";
    for (occupied, kept) in
        [("qdisc add dev near ingress", "ingress"), ("qdisc add dev near clsact", "clsact")]
    {
        let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
        namespace.quiet_pair("near", "far");
        namespace.command("tc", occupied);
        namespace.command("tc", &format!("filter add dev near ingress prio 1 protocol ip {another}"));
        let before = filters(&namespace, "ingress");
        let datapath = bpffs.open();
        // The second agent finds a link and the place taken as before.
        for _ in 0..2 {
            namespace.run(|| datapath.attach_pod("near", None)).expect("attach");
            assert_eq!(
                namespace.run(|| datapath.pod_mechanism("near")).expect("look"),
                Some(Mechanism::Tcx),
                "{occupied}"
            );
        }
        assert!(namespace.run(|| send(&packet_socket("far"), &frame())));
        assert_eq!(counted(&datapath), 1, "{occupied}");
        namespace.run(|| datapath.detach_pod("near")).expect("detach");
        assert_eq!(filters(&namespace, "ingress"), before, "{occupied}");
        assert!(namespace.command("tc", "qdisc show dev near").contains(kept));
        assert_eq!(namespace.run(|| datapath.pod_mechanism("near")).expect("look"), None);
    }
}

/// A filter of another with a priority of its own is left in peace, and ours runs before it.
#[test]
fn a_filter_of_another_hides_nothing_from_ours() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    namespace.quiet_pair("near", "far");
    namespace.command("tc", "qdisc add dev near clsact");
    namespace.command("tc", "filter add dev near ingress prio 2 u32 match u32 0 0 flowid 1:1");
    let datapath = bpffs.open();
    namespace.run(|| datapath.attach_pod("near", None)).expect("attach");
    assert_eq!(namespace.run(|| datapath.pod_mechanism("near")).expect("look"), Some(Mechanism::Clsact));
    assert!(namespace.run(|| send(&packet_socket("far"), &frame())));
    assert_eq!(counted(&datapath), 1);
    assert!(filters(&namespace, "ingress").contains("u32"));
}

/// E19: a filter of another of the same priority runs before ours, which is a link then, and on a kernel without links an
/// error.
#[test]
fn e19_where_another_runs_before_ours_it_is_a_link() {
    let bytecode = pass_all();
    let before_ours =
        format!("filter add dev near ingress prio 1 bpf da bytecode-file {}", bytecode.path().display());
    for tcx in [true, false] {
        let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
        namespace.quiet_pair("near", "far");
        let datapath = open(&Options { tcx, ..bpffs.options() });
        let mechanism = || namespace.run(|| datapath.pod_mechanism("near")).expect("look");
        namespace.run(|| datapath.attach_pod("near", None)).expect("attach");
        assert_eq!(mechanism(), Some(Mechanism::Clsact));
        namespace.command("tc", &before_ours);
        assert_eq!(mechanism(), None, "ours is hidden");
        let attached = namespace.run(|| datapath.attach_pod("near", None));
        if tcx {
            attached.expect("attach");
            assert_eq!(mechanism(), Some(Mechanism::Tcx));
            assert!(namespace.run(|| send(&packet_socket("far"), &frame())));
            assert_eq!(counted(&datapath), 1);
        } else {
            let error = attached.expect_err("no links");
            assert!(error.to_string().contains("a filter before ours"), "{error}");
        }
        namespace.run(|| datapath.detach_pod("near")).expect("detach");
        let left = filters(&namespace, "ingress");
        assert!(left.contains("bytecode") && !left.contains("from_pod"), "{left}");
    }
}

/// A classic program that says of each packet that it may go on to the stack.
fn pass_all() -> tempfile::NamedTempFile {
    let mut bytecode = tempfile::NamedTempFile::new().expect("a file");
    bytecode.write_all(b"1,6 0 0 0").expect("write");
    bytecode
}

/// E19: whoever takes a filter away is heard, however he does it; what we do ourselves is no news.
#[test]
fn what_others_take_away_is_heard_and_seen() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    namespace.quiet_pair("near", "far");
    let datapath = bpffs.open();
    let mut changes = namespace.run(FilterChanges::open).expect("listen");
    let bytecode = pass_all();
    let in_our_place = format!(
        "filter replace dev near ingress prio 1 handle 1 bpf bytecode-file {}",
        bytecode.path().display()
    );
    let ways = [
        "qdisc del dev near clsact",
        "filter del dev near ingress",
        "filter del dev near egress prio 1",
        "chain del dev near ingress chain 0",
        &in_our_place,
    ];
    for way in ways {
        let ifindex = namespace.run(|| datapath.attach_pod("near", None)).expect("attach");
        assert!(namespace.run(|| datapath.pod_mechanism("near")).expect("look").is_some(), "{way}");
        let mut heard = |limit| changes.wait(limit).expect("listen");
        assert_eq!(heard(Duration::from_millis(50)), None, "before {way}");
        namespace.command("tc", way);
        let touched = heard(Duration::from_secs(10)).unwrap_or_else(|| panic!("{way} was not heard"));
        assert!(touched.contains(ifindex) && !touched.contains(ifindex + 1), "{way}: {touched:?}");
        assert_eq!(namespace.run(|| datapath.pod_mechanism("near")).expect("look"), None, "{way}");
        if way == in_our_place {
            namespace.run(|| datapath.detach_pod("near")).expect("detach");
            namespace.ip("link del near");
            namespace.quiet_pair("near", "far");
        }
        while changes.wait(Duration::from_millis(50)).expect("listen").is_some() {}
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
