//! Somebody else's programs on a hook of ours. They let every packet go on, and count it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use quilla_datapath::LinkStatus;

use crate::support::{Bpffs, Namespace, counted, eventually, frame, packet_socket, send};

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP: u32 = 1;
const PROG_LOAD: u32 = 5;
const PROG_QUERY: u32 = 16;
const LINK_CREATE: u32 = 28;

const ARRAY: u32 = 2;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;

/// Another eBPF user's program on a device's ingress. It goes with this value.
struct Stranger {
    link: OwnedFd,
    counter: OwnedFd,
}

impl Stranger {
    /// Attaches it behind what is there already, as the kernel does when nobody says where.
    fn attach(ifindex: u32) -> Self {
        let counter = owned(bpf(MAP_CREATE, &mut [ARRAY, 4, 8, 1]));
        let program = load(counter.as_raw_fd());
        let link =
            bpf(LINK_CREATE, &mut [unsigned(program.as_raw_fd()), ifindex, TCX_INGRESS, 0, 0, 0, 0, 0]);
        Self { link: owned(link), counter }
    }

    /// Packets that it has seen.
    fn seen(&self) -> u64 {
        let (key, mut value) = (0_u32, 0_u64);
        let [key, value_at] = [(&raw const key) as u64, (&raw mut value) as u64];
        bpf(MAP_LOOKUP, &mut [u64::from(unsigned(self.counter.as_raw_fd())), key, value_at, 0]);
        value
    }
}

/// `atomic_add(&counter[0], 1); return TCX_NEXT;`
fn load(counter: RawFd) -> OwnedFd {
    // Opcode, registers, offset and immediate, as the kernel's `struct bpf_insn` in little endian.
    let instruction = |code: u64, registers: u64, immediate: i32| {
        code | registers << 8 | u64::from(immediate.cast_unsigned()) << 32
    };
    let instructions = [
        // r1 = address of the array's first value
        instruction(0x18, 0x21, counter),
        0,
        // r2 = 1
        instruction(0xb7, 0x02, 1),
        // lock *(u64 *)(r1 + 0) += r2
        instruction(0xdb, 0x21, 0),
        // r0 = -1
        instruction(0xb7, 0x00, -1),
        // exit
        instruction(0x95, 0, 0),
    ];
    let count = u64::try_from(instructions.len()).expect("few");
    let license = c"GPL";
    let first = u64::from(SCHED_CLS) | count << 32;
    owned(bpf(PROG_LOAD, &mut [first, instructions.as_ptr() as u64, license.as_ptr() as u64, 0, 0, 0]))
}

/// Issues a command that must succeed.
fn bpf<T, const N: usize>(command: u32, attributes: &mut [T; N]) -> i32 {
    let size = size_of_val(attributes);
    // SAFETY: the callers fill the attributes of their command, and what their addresses name outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) };
    assert!(result >= 0, "bpf command {command}: {}", io::Error::last_os_error());
    i32::try_from(result).expect("a descriptor")
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made the descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn unsigned(fd: RawFd) -> u32 {
    fd.cast_unsigned()
}

/// The links on a device's ingress in the order in which they run.
fn order(ifindex: u32) -> Vec<u32> {
    let mut links = [0_u32; 8];
    // target, attach type | query flags, attach flags, (program ids), count, -, -, link ids, -, revision
    let kind = u64::from(ifindex) | u64::from(TCX_INGRESS) << 32;
    let mut programs = [0_u32; 8];
    let count = u64::try_from(links.len()).expect("few");
    let mut attributes = [kind, 0, programs.as_mut_ptr() as u64, count, 0, links.as_mut_ptr() as u64, 0, 0];
    bpf(PROG_QUERY, &mut attributes);
    let found = usize::try_from(attributes[3] & 0xffff_ffff).expect("few");
    links[..found].to_vec()
}

fn id(link: &OwnedFd) -> u32 {
    let path = format!("/proc/self/fdinfo/{}", link.as_raw_fd());
    let text = std::fs::read_to_string(path).expect("the link's description");
    let line = text.lines().find_map(|line| line.strip_prefix("link_id:")).expect("its id");
    line.trim().parse().expect("a number")
}

fn ours(links: &[LinkStatus]) -> u32 {
    links.iter().find(|link| link.name.starts_with("from_uplink")).expect("our link").id
}

/// E25: programs run in the order in which they were attached. Ours joins at the end, keeps its place when another agent
/// takes over, removes nobody's when it comes, stays or goes, and hides no packet that is not its own from those behind.
#[test]
fn e25_another_user_s_programs_keep_their_places_and_run() {
    let (bpffs, namespace) = (Bpffs::new(), Namespace::new());
    namespace.quiet_pair("near", "far");
    namespace.run(|| {
        // SAFETY: the name is a C string.
        let ifindex = unsafe { libc::if_nametoindex(c"near".as_ptr()) };
        let before = Stranger::attach(ifindex);
        let datapath = bpffs.open();
        assert!(datapath.status().tcx, "this kernel has no tcx, and no order to keep");
        datapath.attach_uplink("near").expect("attach");
        let after = Stranger::attach(ifindex);
        let expected = [id(&before.link), ours(&datapath.links().expect("links")), id(&after.link)];
        assert_eq!(order(ifindex), expected);

        let socket = packet_socket("far");
        assert!(send(&socket, &frame()));
        eventually("all three saw it", &(1, 1, 1), || (before.seen(), counted(&datapath), after.seen()));
        drop(datapath);

        let next = bpffs.open();
        next.attach_uplink("near").expect("attach again");
        assert_eq!(order(ifindex), expected, "another agent's program takes the place of the last");
        assert!(send(&socket, &frame()));
        eventually("all three saw it", &(2, 2, 2), || (before.seen(), counted(&next), after.seen()));

        next.detach_others(&[], "none").expect("detach");
        assert_eq!(order(ifindex), [id(&before.link), id(&after.link)]);
        assert!(send(&socket, &frame()));
        eventually("both saw it", &(3, 2, 3), || (before.seen(), counted(&next), after.seen()));
    });
}
