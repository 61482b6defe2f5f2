//! A limit on what a link receives: an nftables chain at the link's ingress that drops what is too much.
//!
//! Packets for a Pod come by `bpf_redirect_peer`, past the queue of the host side; the ingress of the Pod's side is the
//! first place that they all pass. Attributes are those of `linux/netfilter/nf_tables.h`.

use std::io;
use std::ops::Range;

use rustix::fd::OwnedFd;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

use super::{NetlinkError, RECEIVE_BYTES, TIMEOUT, attributes};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

const GET_RULE: u16 = SUBSYSTEM << 8 | 7;

/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// `struct nlmsghdr`.
const HEADER: usize = 16;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const DUMP: u16 = 0x300;
const NESTED: u16 = 0x8000;

/// `NFPROTO_NETDEV`: tables of single devices.
const NETDEV: u8 = 5;

const CHAIN: &str = "received";

/// Limits what the link receives, in place of an earlier limit. The table is of the calling thread's namespace.
pub(crate) fn limit(ifname: &str, bytes_per_second: u64, burst_bytes: u32) -> Result<(), NetlinkError> {
    let table = table(ifname);
    transact(
        "limit what is received by",
        ifname,
        &[
            (NEW_TABLE, CREATE, text(1, &table)),
            (DELETE_TABLE, 0, text(1, &table)),
            (NEW_TABLE, CREATE, text(1, &table)),
            (NEW_CHAIN, CREATE, chain(&table, ifname)),
            (NEW_RULE, CREATE | APPEND, rule(&table, bytes_per_second, burst_bytes)),
        ],
    )
}

/// Takes the limit away again, if there is one.
pub(crate) fn lift(ifname: &str) -> Result<(), NetlinkError> {
    let table = table(ifname);
    transact(
        "lift the limit of",
        ifname,
        &[(NEW_TABLE, CREATE, text(1, &table)), (DELETE_TABLE, 0, text(1, &table))],
    )
}

/// What the limit of the link lets pass, in bytes per second; `None` without one.
pub(crate) fn limited(ifname: &str) -> Result<Option<u64>, NetlinkError> {
    let failed =
        |source| NetlinkError { operation: "look for the limit of", object: ifname.to_owned(), source };
    let wanted = [text(1, &table(ifname)), text(2, CHAIN)].concat();
    let request = message(GET_RULE, DUMP, 1, NETDEV, 0, &wanted);
    let rules = dump(&request).map_err(failed)?;
    Ok(rules.iter().find_map(|rule| rate(rule)))
}

/// The rate of the first `limit` among a rule's expressions.
fn rate(rule: &[u8]) -> Option<u64> {
    let expressions = attributes(rule).find(|(kind, _)| *kind == 4)?.1;
    let limit = attributes(expressions).find_map(|(_, expression)| {
        let named = attributes(expression).any(|(kind, value)| kind == 1 && value == b"limit\0");
        let data = attributes(expression).find(|(kind, _)| *kind == 2);
        data.filter(|_| named).map(|(_, data)| data)
    })?;
    let rate = attributes(limit).find(|(kind, _)| *kind == 1)?.1;
    rate.try_into().ok().map(u64::from_be_bytes)
}

fn table(ifname: &str) -> String {
    format!("quilla-{ifname}")
}

/// A base chain at the ingress of the device, before whatever else is there; it goes with the device.
fn chain(table: &str, ifname: &str) -> Vec<u8> {
    let ingress = 0_u32;
    let hook = [number(1, ingress), number(2, i32::MIN.cast_unsigned()), text(3, ifname)].concat();
    [text(1, table), text(3, CHAIN), nest(4, &hook), text(7, "filter")].concat()
}

/// `limit rate over … bytes/second burst … bytes drop`.
fn rule(table: &str, bytes_per_second: u64, burst_bytes: u32) -> Vec<u8> {
    let (seconds, of_bytes, over) = (1_u64, 1, 1);
    let limit = [
        attribute(1, &bytes_per_second.to_be_bytes()),
        attribute(2, &seconds.to_be_bytes()),
        number(3, burst_bytes),
        number(4, of_bytes),
        number(5, over),
    ];
    let (verdict_register, drop) = (0, 0);
    let verdict = nest(2, &nest(2, &number(1, drop)));
    let drop = [number(1, verdict_register), verdict].concat();
    let expressions = [expression("limit", &limit.concat()), expression("immediate", &drop)].concat();
    [text(1, table), text(2, CHAIN), nest(4, &expressions)].concat()
}

fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    nest(1, &[text(1, name), nest(2, data)].concat())
}

fn nest(kind: u16, content: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, content)
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // The longest value is a rule of some hundred bytes.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// All messages, or none of them.
fn transact(
    operation: &'static str,
    object: &str,
    messages: &[(u16, u16, Vec<u8>)],
) -> Result<(), NetlinkError> {
    let mut bytes = message(BATCH_BEGIN, 0, 0, 0, SUBSYSTEM, &[]);
    for ((kind, flags, content), sequence) in messages.iter().zip(1..) {
        bytes.extend(message(*kind, flags | ACKNOWLEDGE, sequence, NETDEV, 0, content));
    }
    let last = u32::try_from(messages.len()).unwrap_or(u32::MAX);
    bytes.extend(message(BATCH_END, 0, last + 1, 0, SUBSYSTEM, &[]));
    exchange(&bytes, last).map_err(|source| NetlinkError { operation, object: object.to_owned(), source })
}

/// A netlink header, `struct nfgenmsg`, and attributes.
fn message(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + content.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend([kind.to_ne_bytes(), (flags | REQUEST).to_ne_bytes()].concat());
    bytes.extend([sequence.to_ne_bytes(), [0; 4]].concat());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(content);
    bytes
}

/// Sends the batch and reads the acknowledgements up to the last, or the first refusal.
fn exchange(batch: &[u8], last: u32) -> io::Result<()> {
    let mut answers = Answers::to(batch)?;
    loop {
        let Answer { kind, sequence, content } = answers.next()?;
        if kind != ERROR {
            continue;
        }
        refusal(&content)?;
        if sequence == last {
            return Ok(());
        }
    }
}

/// The contents of all answers to a question, without `struct nfgenmsg`; none for a table that does not exist.
fn dump(request: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut answers = Answers::to(request)?;
    let mut contents = Vec::new();
    loop {
        let Answer { kind, content, .. } = answers.next()?;
        match kind {
            DONE => return Ok(contents),
            ERROR => match refusal(&content) {
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                    return Ok(contents);
                }
                refused => return refused.map(|()| contents),
            },
            _ => contents.push(content.get(4..).unwrap_or_default().to_vec()),
        }
    }
}

/// `struct nlmsgerr` begins with a negative error number, or 0.
fn refusal(content: &[u8]) -> io::Result<()> {
    let number = content.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if number == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-number)) }
}

/// What the kernel says to a request.
struct Answers {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// Of the buffer, what was not looked at yet.
    rest: Range<usize>,
}

/// A netlink message.
struct Answer {
    kind: u16,
    sequence: u32,
    content: Vec<u8>,
}

impl Answers {
    fn to(request: &[u8]) -> io::Result<Self> {
        let protocol = Some(netlink::NETFILTER);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        sendto(&socket, request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, buffer: vec![0; RECEIVE_BYTES], rest: 0..0 })
    }

    /// The next message, waited for.
    fn next(&mut self) -> io::Result<Answer> {
        if self.rest.is_empty() {
            let buffer = self.buffer.as_mut_slice();
            let (received, _) = retry_on_intr(|| recv(&self.socket, &mut *buffer, RecvFlags::empty()))?;
            self.rest = 0..received;
        }
        let bytes = &self.buffer[self.rest.clone()];
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let kind = |bytes: &[u8]| Some(u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?));
        let answer = word(0).zip(word(8)).zip(kind(bytes)).and_then(|((length, sequence), kind)| {
            let content = bytes.get(HEADER..length as usize)?.to_vec();
            Some((length as usize, Answer { kind, sequence, content }))
        });
        let (length, answer) = answer.ok_or_else(|| io::Error::other("a malformed netlink message"))?;
        self.rest.start = (self.rest.start + length.next_multiple_of(4)).min(self.rest.end);
        Ok(answer)
    }
}
