//! Services at socket time: the socket connects to a backend and believes it talks to the Service.
//!
//! An accelerator: a packet to a Service that passes by here untranslated is translated at the Pod's device. Called by
//! the `cgroup/sock_addr` programs of `entry`. Invariant: what was asked for is remembered whenever it was changed.

use core::ptr;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use quilla_abi::backend::Backend;
use quilla_abi::route::kind;
use quilla_abi::service::{ServiceKey, flag, scope};
use quilla_abi::socket::flag::COUNTED;
use quilla_abi::socket::{Frontend, SocketKey};
use quilla_abi::{Address, Be16, DropReason};
use quilla_ebpf_core::hash::jhash;
use quilla_ebpf_core::protocol::ip;
use quilla_ebpf_core::{Family, V4, V6};

use crate::helper::{self, ANY};
use crate::maps::Maps;
use crate::pipeline::Pipeline;
use crate::scratch::Choice;
use crate::{load, route, service};

/// Let the call go on.
pub(crate) const ALLOW: i32 = 1;
/// Let it fail with the error that was set.
const REFUSE: i32 = 0;

const EPERM: i32 = 1;
const ECONNREFUSED: i32 = 111;

/// The first three words of an IPv4-mapped IPv6 address.
const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// The context of a `sock_addr` program, and the address that it may change.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    raw: *mut bpf_sock_addr,
}

macro_rules! field {
    ($name:expr, $($field:tt)+) => {
        // SAFETY: the context is valid for the whole run of the program; volatile, because the verifier wants every
        // access with its own size at its own offset.
        unsafe { ptr::read_volatile(&raw const (*$name.raw).$($field)+) }
    };
}

macro_rules! set_field {
    ($name:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: as in `field`; the hooks that call this may write the field.
        unsafe { ptr::write_volatile(&raw mut (*$name.raw).$($field)+, $value) }
    };
}

impl Name {
    pub(crate) fn new(raw: *mut bpf_sock_addr) -> Self {
        Self { raw }
    }

    #[inline(always)]
    fn proto(self) -> Option<u8> {
        match field!(self, protocol) as u8 {
            proto @ (ip::TCP | ip::UDP) => Some(proto),
            _ => None,
        }
    }

    #[inline(always)]
    fn port(self) -> Be16 {
        Be16::from_wire(field!(self, user_port) as u16)
    }

    #[inline(always)]
    fn set_port(self, port: Be16) {
        set_field!(self, u32::from(port.wire()), user_port);
    }

    #[inline(always)]
    fn is_mapped(self) -> bool {
        [field!(self, user_ip6[0]), field!(self, user_ip6[1]), field!(self, user_ip6[2])] == MAPPED
    }

    #[inline(always)]
    fn cookie(self) -> [u32; 2] {
        helper::cookie(self.raw.cast())
    }

    /// Of the network namespace of the socket.
    #[inline(always)]
    fn netns_cookie(self) -> [u32; 2] {
        helper::netns_cookie(self.raw.cast())
    }
}

/// How an address stands in the context.
pub(crate) trait Place {
    type F: Pipeline;
    fn get(name: Name) -> <Self::F as Family>::Addr;
    fn set(name: Name, addr: <Self::F as Family>::Addr);
}

/// An IPv4 address of an IPv4 socket.
pub(crate) struct Ipv4;
/// An IPv4 address of an IPv6 socket.
struct MappedIpv4;
/// An IPv6 address.
struct Ipv6;

impl Place for Ipv4 {
    type F = V4;

    #[inline(always)]
    fn get(name: Name) -> [u8; 4] {
        field!(name, user_ip4).to_ne_bytes()
    }

    #[inline(always)]
    fn set(name: Name, addr: [u8; 4]) {
        set_field!(name, u32::from_ne_bytes(addr), user_ip4);
    }
}

impl Place for MappedIpv4 {
    type F = V4;

    #[inline(always)]
    fn get(name: Name) -> [u8; 4] {
        field!(name, user_ip6[3]).to_ne_bytes()
    }

    #[inline(always)]
    fn set(name: Name, addr: [u8; 4]) {
        set_field!(name, u32::from_ne_bytes(addr), user_ip6[3]);
    }
}

impl Place for Ipv6 {
    type F = V6;

    #[inline(always)]
    fn get(name: Name) -> [u8; 16] {
        V6::of_words([
            field!(name, user_ip6[0]),
            field!(name, user_ip6[1]),
            field!(name, user_ip6[2]),
            field!(name, user_ip6[3]),
        ])
    }

    #[inline(always)]
    fn set(name: Name, addr: [u8; 16]) {
        let [a, b, c, d] = V6::words(&addr);
        set_field!(name, a, user_ip6[0]);
        set_field!(name, b, user_ip6[1]);
        set_field!(name, c, user_ip6[2]);
        set_field!(name, d, user_ip6[3]);
    }
}

/// `connect` and `sendmsg` of an IPv6 socket.
#[inline(always)]
pub(crate) fn forward6(name: Name) -> i32 {
    if name.is_mapped() { forward::<MappedIpv4>(name) } else { forward::<Ipv6>(name) }
}

/// `recvmsg` and `getpeername` of an IPv6 socket.
#[inline(always)]
pub(crate) fn reverse6(name: Name) -> i32 {
    if name.is_mapped() { reverse::<MappedIpv4>(name) } else { reverse::<Ipv6>(name) }
}

/// Replaces a Service by one of its backends.
#[inline(always)]
pub(crate) fn forward<P: Place>(name: Name) -> i32 {
    let Some(proto) = name.proto() else { return ALLOW };
    let Ok(config) = route::config() else { return ALLOW };
    let of_node = name.netns_cookie() == config.netns_cookie;
    let (addr, port) = (P::get(name), name.port());
    // A Pod's datagrams are translated one by one at its device, where they find another backend at once; and its
    // loopback addresses are its own.
    if !of_node && (proto == ip::UDP || <P::F as Family>::is_loopback(addr)) {
        return ALLOW;
    }
    let mut choice =
        Choice { frontend: ServiceKey { addr, port, proto, scope: scope::INTERNAL }, ..Choice::default() };
    if !service::read::<P::F>(&choice.frontend, &mut choice.service) {
        if proto == ip::TCP {
            outlived::<P::F>(&socket_key(name.cookie(), addr, port, proto));
        }
        return if of_node { elsewhere::<P::F>(addr) } else { ALLOW };
    }
    let flags = choice.service.flags;
    if of_node && flags & (flag::SOURCE_RANGES | flag::NODE_ALLOWED) == flag::SOURCE_RANGES {
        return refuse(EPERM);
    }
    // What depends on the client's address is left to where it is known.
    let by_client = flags & (flag::SOURCE_RANGES | flag::LEAST_CONNECTIONS) != 0;
    if !of_node && (by_client || choice.service.affinity_seconds != 0) {
        return ALLOW;
    }
    let cookie = name.cookie();
    // One socket stays with one backend, so that the datagrams of a socket that is not connected stay together.
    let words = [cookie[0], cookie[1], P::F::sum(&addr), u32::from(port.wire()) | u32::from(proto) << 16];
    choice.hash = jhash(&words, config.hash_seed);
    match P::F::choose(&mut choice) {
        Ok(()) => {}
        // The Pod's packets are dropped at its device, without an answer (S21).
        Err(DropReason::NoLocalBackend | DropReason::BackendGone) if !of_node => return ALLOW,
        Err(_) => return refuse(ECONNREFUSED),
    }
    let key = socket_key(cookie, choice.addr, choice.port, proto);
    let counts = proto == ip::TCP && flags & flag::LEAST_CONNECTIONS != 0;
    // A socket that tried before, and failed, counts already.
    let joins = counts && !is_counted::<P::F>(&key);
    let frontend = Frontend { addr, port, flags: if counts { COUNTED } else { 0 } };
    if helper::insert(P::F::sockets(), &key, &frontend, ANY).is_ok() {
        if joins {
            load::join::<P::F>(choice.backend);
        }
        P::set(name, choice.addr);
        name.set_port(choice.port);
    }
    ALLOW
}

/// What a process of the node gets that asks for an address which is no frontend: nobody at addresses that only Services
/// have. Its packets would leave by the default route (S22, E8).
#[inline(always)]
fn elsewhere<F: Maps>(addr: F::Addr) -> i32 {
    match route::find::<F>(addr) {
        Some(route) if route.kind == kind::SERVICES => refuse(ECONNREFUSED),
        _ => ALLOW,
    }
}

#[inline(always)]
fn refuse(error: i32) -> i32 {
    helper::fail_with(error);
    REFUSE
}

/// A stream socket that now asks for the backend itself was led there before, in vain: what is remembered of that is no
/// longer true. A datagram socket may speak with the Service and with the backend at once.
#[inline(always)]
fn outlived<F: Maps>(key: &SocketKey<F::Addr>) {
    if helper::find_recent(F::sockets(), key).is_some() {
        forget::<F>(key);
    }
}

/// Shows the Service where the socket would see the backend.
#[inline(always)]
pub(crate) fn reverse<P: Place>(name: Name) -> i32 {
    if let Some(proto) = name.proto() {
        let key = socket_key(name.cookie(), P::get(name), name.port(), proto);
        if let Some(frontend) = helper::find_recent(P::F::sockets(), &key) {
            P::set(name, frontend.addr);
            name.set_port(frontend.port);
        }
    }
    ALLOW
}

#[inline(always)]
fn socket_key<A: Address>(cookie: [u32; 2], addr: A, port: Be16, proto: u8) -> SocketKey<A> {
    SocketKey { cookie, addr, port, proto, pad: 0 }
}

/// Forgets what a connected socket was translated to.
#[inline(always)]
pub(crate) fn release(sock: *mut bpf_sock) -> i32 {
    macro_rules! peer {
        ($($field:tt)+) => {
            // SAFETY: the context is valid for the whole run of the program.
            unsafe { ptr::read_volatile(&raw const (*sock).$($field)+) }
        };
    }
    let proto = peer!(protocol) as u8;
    let port = Be16::from_wire(peer!(dst_port));
    if port == Be16::default() || !matches!(proto, ip::TCP | ip::UDP) {
        return ALLOW;
    }
    let cookie = helper::cookie(sock.cast());
    let words = [peer!(dst_ip6[0]), peer!(dst_ip6[1]), peer!(dst_ip6[2]), peer!(dst_ip6[3])];
    if peer!(family) == u32::from(V4::AF) {
        let addr = peer!(dst_ip4).to_ne_bytes();
        forget::<V4>(&socket_key(cookie, addr, port, proto));
    } else if words[..3] == MAPPED {
        forget::<V4>(&socket_key(cookie, words[3].to_ne_bytes(), port, proto));
    } else {
        forget::<V6>(&socket_key(cookie, V6::of_words(words), port, proto));
    }
    ALLOW
}

/// Whether a socket counts for the backend.
#[inline(always)]
fn is_counted<F: Maps>(key: &SocketKey<F::Addr>) -> bool {
    helper::find_recent(F::sockets(), key).is_some_and(|frontend| frontend.flags & COUNTED != 0)
}

/// Forgets a socket and its backend, for which it no longer counts.
#[inline(never)]
fn forget<F: Maps>(key: &SocketKey<F::Addr>) -> i32 {
    if is_counted::<F>(key) {
        let backend = Backend { addr: key.addr, port: key.port, proto: key.proto, pad: 0 };
        if let Some(id) = helper::find(F::backend_ids(), &backend) {
            load::leave::<F>(*id);
        }
    }
    helper::remove(F::sockets(), key);
    0
}
