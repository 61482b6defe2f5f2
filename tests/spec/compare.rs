//! One packet through the specification and through the programs: verdict, target, every byte, counters.

use std::collections::BTreeMap;

use quilla_abi::DropReason;
use quilla_abi::counter::path;
use quilla_abi::trace;
use quilla_datapath::Outcome;

use crate::answer::{self, Answer};
use crate::coverage::{self, Coverage};
use crate::generate::{Carriage, Continuation, Stimulus, hook_of};
use crate::model::{Expect, Hook, Model, Seen, Target};
use crate::plain::{self, Sender};
use crate::report::Subject;
use crate::tunnel::{self, Fate};
use crate::way::{Way, addressed, known, way};
use crate::wire::{
    Echo, Frame, ICMP, ICMPV6, Part, TCP, Tuple, UDP, ip_checksum_error, read, transport_checksum_error,
    without_checksums,
};
use crate::world::{Place, World};

const NEXT: i32 = -1;
pub(crate) const OK: i32 = 0;
const SHOT: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

/// Packets and bytes that must have been counted, by row.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub drops: BTreeMap<u32, (u64, u64)>,
    pub forwards: BTreeMap<u32, (u64, u64)>,
}

impl Tally {
    /// What was counted after `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let rows = |now: &BTreeMap<u32, (u64, u64)>, then: &BTreeMap<u32, (u64, u64)>| {
            now.iter()
                .map(|(row, (packets, bytes))| {
                    let (old_packets, old_bytes) = then.get(row).copied().unwrap_or_default();
                    (*row, (packets - old_packets, bytes - old_bytes))
                })
                .filter(|(_, count)| *count != (0, 0))
                .collect()
        };
        Self { drops: rows(&self.drops, &earlier.drops), forwards: rows(&self.forwards, &earlier.forwards) }
    }

    fn count(&mut self, expect: &Expect, way: Option<Way<'_>>, bytes: usize) {
        let (rows, row) = match (expect, way) {
            (Expect::Drop(reason), _) => (&mut self.drops, *reason as u32),
            (_, Some(way)) => (&mut self.forwards, way.path()),
            (_, None) => (&mut self.forwards, path::PASSED),
        };
        let (packets, counted) = rows.entry(row).or_default();
        *packets += 1;
        *counted += bytes as u64;
    }
}

impl Tally {
    fn answer(&mut self, packet: &[u8]) {
        let (packets, bytes) = self.forwards.entry(path::ANSWERED).or_default();
        *packets += 1;
        *bytes += packet.len() as u64;
    }
}

/// Compares, and says what may follow this packet. `slots` are those of the peers.
///
/// What the programs themselves take out of its tunnel, or put into one, is compared as the packet inside.
pub(crate) fn judge(
    model: &mut Model,
    slots: &[u32],
    stimulus: &Stimulus,
    seen: &Outcome<'_>,
    tally: &mut Tally,
) -> Result<Vec<Continuation>, String> {
    let mut arrived = Arrived {
        hook: stimulus.hook,
        frame: stimulus.frame.clone(),
        ifindex: model.world.uplink,
        opened: false,
        marked: false,
        plain: false,
    };
    match stimulus.carriage {
        Carriage::Tunnel(outer) => {
            outer.meet(&mut model.coverage, &model.world);
            arrived.frame = outer.wrap(&model.world, stimulus.hook, &stimulus.frame);
            arrived.hook = Hook::FromUplink;
            arrived.marked = outer.marked;
        }
        Carriage::Plain(plain) => {
            arrived.frame = plain.wrap(&stimulus.frame);
            arrived.hook = Hook::FromUplink;
            arrived.ifindex = plain.ifindex;
        }
        Carriage::None => {}
    }
    if arrived.hook != Hook::FromUplink {
        return inside(model, slots, &arrived, seen, tally);
    }
    if model.world.tunnels.is_none() {
        return untunnelled(model, slots, arrived, seen, tally);
    }
    let fate = tunnel::arrive(&model.world, &arrived.frame);
    tunnel::meet(&mut model.coverage, &arrived.frame, &fate);
    match fate {
        Fate::Opened(hook, frame) => {
            let arrived = Arrived { hook, frame, opened: true, ..arrived };
            inside(model, slots, &arrived, seen, tally)
        }
        Fate::Left => untunnelled(model, slots, arrived, seen, tally),
        Fate::Lost(reason) => lost(model, reason, &arrived.frame, seen, tally),
        Fate::LostInside(reason, frame) => lost(model, reason, &frame, seen, tally),
    }
}

/// A packet on an uplink that is in no tunnel: the world's, or another node's.
fn untunnelled(
    model: &mut Model,
    slots: &[u32],
    arrived: Arrived,
    seen: &Outcome<'_>,
    tally: &mut Tally,
) -> Result<Vec<Continuation>, String> {
    let sender = plain::arrive(model, &arrived.frame, arrived.ifindex);
    if sender != Sender::World {
        let kind = u16::from_be_bytes([arrived.frame[12], arrived.frame[13]]);
        model.coverage.meet(["plain", "came", if kind == 0x0800 { "IPv4" } else { "IPv6" }, ""]);
    }
    match sender {
        Sender::World => inside(model, slots, &arrived, seen, tally),
        Sender::Node(peer) => {
            let hook = Hook::FromOverlay(Some(peer));
            inside(model, slots, &Arrived { hook, plain: true, ..arrived }, seen, tally)
        }
        Sender::Liar => lost(model, DropReason::SpoofedAddress, &arrived.frame, seen, tally),
    }
}

/// A packet as the pipeline gets it.
struct Arrived {
    hook: Hook,
    frame: Vec<u8>,
    /// The device by which it came, if that is an uplink.
    ifindex: u32,
    /// The programs took it out of its tunnel.
    opened: bool,
    /// The kernel takes it for one in a tunnel.
    marked: bool,
    /// Another node sent it without a tunnel.
    plain: bool,
}

/// A frame whose tunnel is not as it should be, or whose sender is somebody else, is dropped, and nobody is told.
fn lost(
    model: &mut Model,
    reason: DropReason,
    frame: &[u8],
    seen: &Outcome<'_>,
    tally: &mut Tally,
) -> Result<Vec<Continuation>, String> {
    tally.count(&Expect::Drop(reason), None, frame.len());
    model.coverage.meet(["drop", reason.label(), "", ""]);
    let said = DropReason::from_number((seen.cb[trace::VERDICT] >> 8 & 0xff) as u8);
    if (seen.verdict, said) == (SHOT, Some(reason)) && seen.packet == frame {
        return Ok(Vec::new());
    }
    Err(format!("verdict {}, {said:?} for {reason:?} of {frame:02x?}: {:02x?}", seen.verdict, seen.packet))
}

/// What was seen, without the tunnel that the programs put it in, and how long that is.
fn unwrapped<'a>(
    model: &mut Model,
    slots: &[u32],
    seen: &Outcome<'a>,
) -> Result<(Outcome<'a>, usize), String> {
    if !tunnel::is_made(&model.world, seen) {
        return Ok((*seen, 0));
    }
    let peer = slots.iter().position(|slot| *slot == seen.cb[trace::NODE_SLOT]);
    let Some(peer) = peer else { return Err("a tunnel to nobody".into()) };
    let (packet, overhead) = tunnel::open(&model.world, &model.world.peers[peer], seen, &mut model.coverage)?;
    Ok((Outcome { packet, ..*seen }, overhead))
}

fn inside(
    model: &mut Model,
    slots: &[u32],
    arrived: &Arrived,
    seen: &Outcome<'_>,
    tally: &mut Tally,
) -> Result<Vec<Continuation>, String> {
    let Arrived { hook, frame, ifindex, opened, marked: whole, plain } = arrived;
    let reason = DropReason::from_number((seen.cb[trace::VERDICT] >> 8 & 0xff) as u8);
    let (seen, overhead) = unwrapped(model, slots, seen)?;
    let expect = model.decide(
        *hook,
        frame,
        Seen { packet: seen.packet, dropped: reason, passed: seen.verdict == NEXT, plain: *plain },
    )?;
    let way = way(&model.world, &expect, frame, *opened, &seen);
    tally.count(
        &expect,
        way,
        overhead + if matches!(expect, Expect::End { .. }) { seen.packet } else { frame }.len(),
    );
    meet(&mut model.coverage, &model.world, arrived, &expect, way, &seen);
    let differs = |what: &str| Err(format!("{what}; expected {expect:?}, dropped for {reason:?}"));
    match &expect {
        Expect::Drop(expected) if seen.cb[trace::PATH] == path::ANSWERED => {
            let Some(due) = answer::due(*hook, frame, *expected) else { return differs("answered") };
            let back = if *plain { Some(*ifindex) } else { None };
            if seen.verdict != REDIRECT
                || reason != Some(*expected)
                || back.is_some_and(|back| seen.cb[trace::IFINDEX] != back)
            {
                return differs("not answered for this reason");
            }
            answer::check(due, *whole, model.limit, frame, seen.packet)?;
            if let Frame::Ip(headers) = read(frame) {
                model.coverage.meet([
                    "answer",
                    if *whole && due == Answer::Reset { "uncut reset" } else { due.word() },
                    coverage::family(headers.tuple.src),
                    "",
                ]);
            }
            tally.answer(seen.packet);
            Ok(Vec::new())
        }
        Expect::Drop(expected) => {
            if seen.verdict != SHOT || reason != Some(*expected) {
                return differs("not dropped for this reason");
            }
            if seen.packet != frame && answer::due(*hook, frame, *expected).is_none() {
                return differs("a dropped packet was changed");
            }
            Ok(Vec::new())
        }
        Expect::Pass => {
            if seen.verdict != NEXT || seen.packet != frame {
                return differs("not passed untouched");
            }
            Ok(Vec::new())
        }
        Expect::Deliver { target, tuple, decrement } => {
            let way = known(way, slots, &seen)?;
            bytes(way, *tuple, *decrement, frame, seen.packet)?;
            Ok(continuations(&model.world, *hook, *target, *tuple, frame))
        }
        Expect::Report { .. } => {
            report(known(way, slots, &seen)?, &expect, frame, seen.packet)?;
            Ok(Vec::new())
        }
        Expect::End { target, tuple, decrement } => {
            let mut addressed_frame = seen.packet.to_vec();
            addressed(&mut addressed_frame, known(way, slots, &seen)?, seen.packet, tuple.src, tuple.dst);
            if addressed_frame != seen.packet {
                return differs("the reset is for somebody else");
            }
            answer::check_end(*tuple, *decrement, *whole, frame, seen.packet)?;
            model.coverage.meet(["answer", "reset of the client", coverage::family(tuple.src), ""]);
            Ok(continuations(&model.world, *hook, *target, *tuple, frame))
        }
    }
}

/// Counts what kind of packet it is, and what must become of it.
fn meet(
    coverage: &mut Coverage,
    world: &World,
    arrived: &Arrived,
    expect: &Expect,
    way: Option<Way<'_>>,
    seen: &Outcome<'_>,
) {
    let Arrived { hook, frame, plain, .. } = arrived;
    if let Frame::Ip(headers) = read(frame) {
        let family = coverage::family(headers.tuple.src);
        coverage.meet(["packet", coverage::hook(*hook), family, ""]);
        if headers.is_error() {
            let known = matches!(expect, Expect::Report { about: Some(_), .. });
            let about = if known { "of a connection" } else { "of nothing known" };
            coverage.meet(["error", about, family, ""]);
        } else {
            let (protocol, part) = (coverage::protocol(&headers), coverage::part(headers.part));
            coverage.meet(["transport", protocol, part, family]);
        }
        if let Hook::FromOverlay(Some(peer)) = *hook {
            let to = match (expect, way) {
                (Expect::Drop(_), _) | (_, None) => "dropped",
                (_, Some(way)) => way.word(),
            };
            plain::meet_in(coverage, world, &world.peers[peer], &headers, *plain, to);
        }
        match way {
            Some(way) => plain::meet_out(coverage, *hook, way, &headers, frame, seen.packet),
            None if *hook == Hook::ToUplink(None)
                && matches!(world.place(headers.tuple.dst), Place::Remote(_)) =>
            {
                coverage.meet(["plain out", "by the node itself", family, ""]);
            }
            None => {}
        }
    }
    coverage.meet(match (expect, way) {
        (Expect::Drop(reason), _) => ["drop", reason.label(), "", ""],
        (_, None) => ["way", "passed", "", ""],
        (_, Some(way)) => ["way", way.word(), "", ""],
    });
}

/// The frame must be the one that came in, with this tuple, these Ethernet addresses and this TTL, and with checksums
/// exactly as right or wrong as they were.
fn bytes(way: Way<'_>, tuple: Tuple, decrement: bool, before: &[u8], after: &[u8]) -> Result<(), String> {
    let Frame::Ip(headers) = read(before) else { return Err("only IP packets are delivered".into()) };
    let mut expected = before.to_vec();
    addressed(&mut expected, way, after, tuple.src, tuple.dst);
    if decrement {
        expected[headers.ttl_at] -= 1;
    }
    let l4 = headers.l4;
    match tuple.proto {
        _ if headers.part == Part::Later => {}
        TCP | UDP => {
            expected[l4..l4 + 2].copy_from_slice(&tuple.sport.to_be_bytes());
            expected[l4 + 2..l4 + 4].copy_from_slice(&tuple.dport.to_be_bytes());
        }
        ICMP | ICMPV6 => match headers.echo {
            Some(Echo::Request) => expected[l4 + 4..l4 + 6].copy_from_slice(&tuple.sport.to_be_bytes()),
            Some(Echo::Reply) => expected[l4 + 4..l4 + 6].copy_from_slice(&tuple.dport.to_be_bytes()),
            None => {}
        },
        _ => {}
    }
    if without_checksums(&expected, &headers) != without_checksums(after, &headers) {
        return Err(format!("other bytes:\nexpected {expected:02x?}\nseen     {after:02x?}"));
    }
    let Frame::Ip(translated) = read(after) else { return Err("came out malformed".into()) };
    if tuple.src.is_ipv4() && ip_checksum_error(before) != ip_checksum_error(after) {
        return Err(format!("the IP checksum is off:\nbefore {before:02x?}\nafter {after:02x?}"));
    }
    if transport_checksum_error(before, &headers) != transport_checksum_error(after, &translated) {
        return Err(format!("the transport checksum is off:\nbefore {before:02x?}\nafter {after:02x?}"));
    }
    Ok(())
}

/// The same for an ICMP error, and for the packet in it.
fn report(way: Way<'_>, expect: &Expect, before: &[u8], after: &[u8]) -> Result<(), String> {
    let &Expect::Report { src, dst, about, decrement, .. } = expect else { return Ok(()) };
    let (Frame::Ip(headers), Frame::Ip(translated)) = (read(before), read(after)) else {
        return Err("came out malformed".into());
    };
    let mut expected = before.to_vec();
    addressed(&mut expected, way, after, src, dst);
    if decrement {
        expected[headers.ttl_at] -= 1;
    }
    let mut seen = without_checksums(after, &translated);
    if let (Some(subject), Some(about)) = (Subject::read(before, &headers), about) {
        if subject.invariants(before, subject.tuple) != subject.invariants(after, about) {
            return Err(format!("a sum in the error is off:\nbefore {before:02x?}\nafter {after:02x?}"));
        }
        subject.rename(&mut expected, about);
        subject.blank(&mut expected);
        subject.blank(&mut seen);
    }
    if without_checksums(&expected, &headers) != seen {
        return Err(format!("{expect:?}: other bytes:\nexpected {expected:02x?}\nseen     {after:02x?}"));
    }
    if src.is_ipv4() && ip_checksum_error(before) != ip_checksum_error(after) {
        return Err(format!("the IP checksum is off:\nbefore {before:02x?}\nafter {after:02x?}"));
    }
    if transport_checksum_error(before, &headers) != transport_checksum_error(after, &translated) {
        return Err(format!("the ICMP checksum is off:\nbefore {before:02x?}\nafter {after:02x?}"));
    }
    Ok(())
}

/// The same again, and the answer from where it went.
fn continuations(world: &World, hook: Hook, target: Target, out: Tuple, frame: &[u8]) -> Vec<Continuation> {
    let Frame::Ip(headers) = read(frame) else { return Vec::new() };
    if headers.part == Part::Later {
        return Vec::new(); // It does not say of what.
    }
    if target == Target::Stack && !world.is_host(out.dst) {
        return Vec::new(); // Its TTL ran out: the answer is an ICMP error.
    }
    let answering = match (hook, target) {
        (Hook::FromUplink, Target::Pod(pod)) => hook_of(pod, out.dport),
        (_, Target::Pod(pod)) | (Hook::ToPod(pod), Target::Onward) => Hook::FromPod(pod),
        (_, Target::Overlay(peer) | Target::OnwardOverlay(peer)) => Hook::FromOverlay(Some(peer)),
        (Hook::FromPod(pod), Target::Stack) => Hook::ToPod(pod),
        (Hook::FromUplink, Target::Stack) => Hook::ToUplink(None),
        // The host's own routes are as the programs are.
        (Hook::FromOverlay(Some(peer)), Target::Stack)
            if world.is_native(&world.peers[peer], crate::world::family(out.dst)) =>
        {
            Hook::ToUplink(None)
        }
        (_, Target::Stack) => Hook::ToOverlay,
        (_, Target::Onward) => return Vec::new(),
        (_, Target::Uplink | Target::OnwardUplink) => Hook::FromUplink,
    };
    vec![Continuation { hook, tuple: headers.tuple }, Continuation { hook: answering, tuple: out.mirrored() }]
}
