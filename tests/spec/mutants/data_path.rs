//! Broken kernel programs: each is built like the real object, and run against the model in this process.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use quilla_datapath::Object;

use super::{Mutant, Sources, told};
use crate::explore::explore;
use crate::{files, namespace};

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "checksums forget the addresses",
        file: "ebpf/core/src/connection.rs",
        from: "rewrite.addr_delta = delta(addresses(old), addresses(new));",
        to: "rewrite.addr_delta = 0;",
    },
    Mutant {
        name: "an established flow trusts any Ethernet source",
        file: "ebpf/src/hook/pod.rs",
        from: "&& skb.is_from(&ingress.mac)",
        to: "",
    },
    Mutant {
        name: "the last hop is not noticed",
        file: "ebpf/src/pipeline.rs",
        from: "headers.hop_limit <= 1",
        to: "headers.hop_limit == 0",
    },
    Mutant {
        name: "an established overlay flow trusts any node",
        file: "ebpf/src/hook/overlay.rs",
        from: "helper::row(&NODES, slot).is_some_and(|node| route::is_node_at(node, origin))",
        to: "origin.len() == 16",
    },
    Mutant {
        name: "a SYN never reopens a closed connection",
        file: "ebpf/src/service.rs",
        from: "(opening && is_over(entry.state))",
        to: "(opening && is_over(entry.state) && false)",
    },
    Mutant {
        name: "a flow outlives its backend",
        file: "ebpf/src/service.rs",
        from: "if !flow::holds(&entry.deps[dep::BACKEND]) {",
        to: "if !flow::holds(&entry.deps[dep::BACKEND]) && entry.packets == u64::MAX {",
    },
    Mutant {
        name: "nobody notes that a client was told of its backend's end",
        file: "ebpf/src/flow.rs",
        from: "let tcp = if *ends != 0 { tcp::RST } else { headers.tcp };",
        to: "let tcp = headers.tcp;",
    },
    Mutant {
        name: "a client is told of its backend's end with another number",
        file: "ebpf/core/src/answer.rs",
        from: "let ahead = u32::from(payload == 0 &&",
        to: "let ahead = u32::from(payload != 0 &&",
    },
    Mutant {
        name: "a Pod may answer itself past us",
        file: "ebpf/src/nat.rs",
        from: "scratch.flow.backend != 0 && scratch.out.dst == headers.key.src",
        to: "false && scratch.out.dst == headers.key.src",
    },
    Mutant {
        name: "two connections share a tuple",
        file: "ebpf/src/flow.rs",
        from: "if !ours && !is_abandoned::<F>(holder, scratch) {",
        to: "if false && !ours && !is_abandoned::<F>(holder, scratch) {",
    },
    Mutant {
        name: "a slot beyond the Service's range",
        file: "ebpf/core/src/service.rs",
        from: "Some(service.slot_base.wrapping_add(offset as u32))",
        to: "Some((service.slot_base + 1).wrapping_add(offset as u32))",
    },
    Mutant {
        name: "drops are counted as another reason",
        file: "ebpf/src/verdict.rs",
        from: "count(&DROPS, reason as u32, skb);",
        to: "count(&DROPS, reason as u32 + 1, skb);",
    },
    Mutant {
        name: "UDP without a checksum gets one",
        file: "ebpf/src/nat.rs",
        from: "rewrite, u64::from(BPF_F_MARK_MANGLED_0), true)?;",
        to: "rewrite, u64::from(BPF_F_MARK_MANGLED_0) & 0, true)?;",
    },
    Mutant {
        name: "a client returns to an endpoint that left the set",
        file: "ebpf/src/selection.rs",
        from: "|| helper::find(&AFFINITY_MEMBERS, &member).is_none()",
        to: "",
    },
    Mutant {
        name: "source ranges are for everybody",
        file: "ebpf/src/service.rs",
        from: "flags & flag::SOURCE_RANGES != 0 &&",
        to: "false && flags & flag::SOURCE_RANGES != 0 &&",
    },
    Mutant {
        name: "an empty Local set is refused aloud",
        file: "ebpf/src/selection.rs",
        from: "choice.service.flags & flag::DROP_WHEN_EMPTY != 0",
        to: "choice.service.flags & flag::DROP_WHEN_EMPTY == 0",
    },
    Mutant {
        name: "clients outside reach other nodes under their own address",
        file: "ebpf/src/nat.rs",
        from: "|| (scratch.from.action == action::UPLINK && scratch.to.action == action::OVERLAY)",
        to: "",
    },
    Mutant {
        name: "clients outside lose their address",
        file: "ebpf/src/nat.rs",
        from: "scratch.from.action == action::UPLINK && scratch.to.action == action::OVERLAY)",
        to: "scratch.from.action == action::UPLINK)",
    },
    Mutant {
        name: "every node has a table of its own",
        file: "ebpf/src/service.rs",
        from: "F::hash(key, MAGLEV_SEED)",
        to: "*hash",
    },
    Mutant {
        name: "another port of a Service's address is nobody's",
        file: "ebpf/src/service.rs",
        from: "if has_ports && helper::find(F::services(), &marker).is_some()",
        to: "if has_ports && helper::find(F::services(), &marker).is_none()",
    },
    Mutant {
        name: "the cluster's own addresses come in by the uplink",
        file: "ebpf/src/service.rs",
        from: "if is_outside(route::find::<F>(*client)) {",
        to: "if is_outside(route::find::<F>(*client)) || F::BITS != 0 {",
    },
    Mutant {
        name: "a node speaks for the Pods of another",
        file: "ebpf/src/hook/overlay.rs",
        from: "kind::REMOTE_PODS && u32::from(route.node_slot) == slot =>",
        to: "kind::REMOTE_PODS && u32::from(route.node_slot) >= slot =>",
    },
    Mutant {
        name: "tunnels of any network are opened",
        file: "ebpf/src/decap.rs",
        from: "if vni != vni_word(config.vni) {",
        to: "if vni != vni_word(config.vni) && vni == 0 {",
    },
    Mutant {
        name: "tunnels with any flags are opened",
        file: "ebpf/src/decap.rs",
        from: "part.word::<8>() != VXLAN_FLAGS.to_be() || ",
        to: "",
    },
    Mutant {
        name: "a tunnel's datagram may be longer than its packet",
        file: "ebpf/src/decap.rs",
        from: "length > outer.payload || ",
        to: "",
    },
    Mutant {
        name: "congestion in a tunnel is forgotten",
        file: "ebpf/src/decap.rs",
        from: "if outer.congested && ",
        to: "if false && outer.congested && ",
    },
    Mutant {
        name: "congestion before a tunnel is met in it",
        file: "ebpf/core/src/tunnel.rs",
        from: "if inner & 3 == CE { ECT0 } else { inner & 3 }",
        to: "inner & 3",
    },
    Mutant {
        name: "a tunnel over IPv4 says another length",
        file: "ebpf/src/encap.rs",
        from: "let length = inner.length + OVERHEAD_V4;",
        to: "let length = inner.length + OVERHEAD_V6;",
    },
    Mutant {
        name: "a tunnel over IPv6 says another length",
        file: "ebpf/src/encap.rs",
        from: "inner.length + OVERHEAD_V6 - V6::HEADER",
        to: "inner.length + OVERHEAD_V6",
    },
    Mutant {
        name: "errors leave in tunnels without a source port",
        file: "ebpf/src/icmp.rs",
        from: "scratch.flow.tunnel_port = entry.tunnel_port;",
        to: "",
    },
    Mutant {
        name: "a reset that is not cut has another checksum",
        file: "ebpf/src/answer.rs",
        from: "checksum::difference(old, words(&new))",
        to: "checksum::difference(words(&new), old)",
    },
    Mutant {
        name: "a node's own addresses come in by the uplink",
        file: "ebpf/src/plain.rs",
        from: "kind::LOCAL_PODS | kind::HOST => Err(DropReason::SpoofedAddress),",
        to: "kind::LOCAL_PODS | kind::HOST => Ok(0),",
    },
    Mutant {
        name: "whoever sends a plain packet is believed",
        file: "ebpf/src/plain.rs",
        from: "hop.direct != skb.ifindex() || skb.is_from(&hop.dmac)",
        to: "hop.direct != skb.ifindex() || hop.of == owner",
    },
    Mutant {
        name: "a node that sends by another uplink is a stranger",
        file: "ebpf/src/plain.rs",
        from: "hop.direct == 0 || hop.direct != skb.ifindex() || ",
        to: "hop.direct == 0 || ",
    },
    Mutant {
        name: "a router is taken for the node behind it",
        file: "ebpf/src/plain.rs",
        from: "if next == wanted {",
        to: "if next != [0; 4] {",
    },
    Mutant {
        name: "a next hop outlives its node",
        file: "ebpf/src/plain.rs",
        from: "self.of == owner && self.epoch == flow::epoch(epoch::NODES.wrapping_add(slot))",
        to: "self.of == owner && slot != 0",
    },
    Mutant {
        name: "a plain packet keeps its Ethernet source",
        file: "ebpf/src/plain.rs",
        from: "skb.write(6, hop.smac)?;",
        to: "",
    },
    Mutant {
        name: "a plain packet leaves without our mark",
        file: "ebpf/src/plain.rs",
        from: "skb.set_mark(SENT_MARK);",
        to: "",
    },
    Mutant {
        name: "pieces of nothing known are never the host's",
        file: "ebpf/src/plain.rs",
        from: "                | DropReason::Fragment\n",
        to: "",
    },
    Mutant {
        name: "an established plain flow trusts any Ethernet source",
        file: "ebpf/src/hook/overlay.rs",
        from: "return slot != 0 && plain::is_from::<F>(skb, slot);",
        to: "return slot != 0;",
    },
    Mutant {
        name: "errors about plain flows come from nodes only",
        file: "ebpf/src/hook/overlay.rs",
        from: "if DIRECT && plain::is_plain(origin) { Ok(()) } else {",
        to: "if false && DIRECT && plain::is_plain(origin) { Ok(()) } else {",
    },
    Mutant {
        name: "both families go as IPv4 or IPv6 does",
        file: "ebpf/src/route.rs",
        from: "side.native = if row.flags & native != 0 {",
        to: "side.native = if row.flags >> 2 != 0 && native != 0 {",
    },
    Mutant {
        name: "a flow stays plain when its node is in tunnels again",
        file: "ebpf/src/flow.rs",
        from: "entry.flags = (entry.flags & !flag::NATIVE) | to.native as u8;",
        to: "entry.flags |= to.native as u8;",
    },
    Mutant {
        name: "errors about plain flows leave in tunnels",
        file: "ebpf/src/icmp.rs",
        from: "entry.flags & (flag::ROUTED | flag::NATIVE);",
        to: "entry.flags & flag::ROUTED;",
    },
    Mutant {
        name: "what must be cut leaves plainly",
        file: "ebpf/src/pipeline.rs",
        from: "if flow.flags & flag::NATIVE != 0 && whole && !H::EGRESS {",
        to: "if flow.flags & flag::NATIVE != 0 && !H::EGRESS {",
    },
    Mutant {
        name: "what may be cut is refused as too big",
        file: "ebpf/src/pipeline.rs",
        from: "is_none_or(|[flags]: [u8; 1]| flags & 0x40 != 0)",
        to: "is_none_or(|[flags]: [u8; 1]| flags & 0x40 == 0)",
    },
    Mutant {
        name: "plain packets are counted as the overlay's",
        file: "ebpf/src/pipeline.rs",
        from: "verdict.exit = Exit::Plain;",
        to: "verdict.exit = Exit::Tunnel;",
    },
];

/// The specification proves its worth: each mutant of the programs disagrees with it.
pub(crate) fn each_is_caught() -> Result<()> {
    let members = ["abi", "ebpf", "ebpf/core"];
    let sources = Sources::copy(&["abi", "ebpf"], &members)?;
    sources.each_is_caught(MUTANTS, |sources, name, packets| {
        let object = compile(sources)?;
        told(namespace(name)?.run(|| explore(&files(name), &Object::from_bytes(&object), 1, packets))?)
    })
}

fn compile(sources: &Sources) -> Result<Vec<u8>> {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--quiet", "--package", "quilla-ebpf", "--target", "bpfel-unknown-none"])
        .args(["-Z", "build-std=core", "--profile", "bpf"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Clinker=bpf-linker -Ctarget-cpu=v3 -Clink-arg=--btf -Awarnings");
    let object = sources.build(cargo, Path::new("bpfel-unknown-none/bpf/quilla-ebpf"))?;
    std::fs::read(object).context("read the mutant")
}
