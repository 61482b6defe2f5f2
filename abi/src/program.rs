//! Names of the programs in the object, and of their pinned links.

/// tcx ingress on the host side of a Pod's veth: what the Pod sends.
pub const FROM_POD: &str = "from_pod";
/// tcx egress on the host side of a Pod's veth: what the host's stack sends to the Pod.
pub const TO_POD: &str = "to_pod";
/// tcx ingress on the uplink.
pub const FROM_UPLINK: &str = "from_uplink";
/// tcx egress on the uplink.
pub const TO_UPLINK: &str = "to_uplink";
/// tcx ingress on the overlay device: decapsulated packets of other nodes.
pub const FROM_OVERLAY: &str = "from_overlay";
/// tcx egress on the overlay device: what the host's stack sends to Pods of other nodes.
pub const TO_OVERLAY: &str = "to_overlay";
/// All tc programs.
pub const TC: [&str; 6] = [FROM_POD, TO_POD, FROM_UPLINK, TO_UPLINK, FROM_OVERLAY, TO_OVERLAY];

/// All `cgroup/sock_addr` programs.
pub const SOCK_ADDR: [&str; 8] = [
    "sock_connect4",
    "sock_connect6",
    "sock_sendmsg4",
    "sock_sendmsg6",
    "sock_recvmsg4",
    "sock_recvmsg6",
    "sock_getpeername4",
    "sock_getpeername6",
];
/// `cgroup/sock_release`: forgets what the socket was translated to.
pub const SOCK_RELEASE: &str = "sock_release";

/// tc program that does nothing but return `jiffies64` (low 32 bits) as its verdict; run by `BPF_PROG_TEST_RUN` to
/// learn the kernel's HZ.
pub const CLOCK: &str = "clock";

/// Read-only data that the loader sets.
pub mod rodata {
    /// `u32`: jiffies per second.
    pub const HZ: &str = "HZ";
    /// `u32`: flag for `bpf_l4_csum_replace` on IPv6 packets: `BPF_F_IPV6` (128) where the kernel has it (6.16), else
    /// 0. With it a complete checksum from the NIC stays valid through a translation.
    pub const IPV6_CHECKSUM_FLAG: &str = "IPV6_CHECKSUM_FLAG";
    /// `u32`: not 0 = write the verdict into `__sk_buff.cb`; see [`crate::trace`].
    pub const TRACE: &str = "TRACE";
    /// `u32`: not 0 = count helper calls into `helpers`.
    pub const COUNT_HELPERS: &str = "COUNT_HELPERS";
}

/// `skb->mark` of packets that our own programs sent on: the hook on the way out of the device lets them pass. Neither mark has
/// the bits by which kube-proxy's rules masquerade (0x4000) or drop (0x8000): they may have been left behind.
pub const SENT_MARK: u32 = 0x0051_2c41;

/// `skb->mark` of the agent's own packets that ask for direct encapsulation, whatever the configuration says: how it finds
/// out whether that works.
pub const PROBE_MARK: u32 = 0x0051_2c50;

const _: () = assert!((SENT_MARK | PROBE_MARK) & 0xc000 == 0);
