//! Every program of the committed object passes the verifier within its budget (design §3.7).
//!
//! The budget is what the program needs today and some room; a jump is a reason to look, not to raise it.

mod object;

use quilla_abi::program;

use crate::object::{Switches, load, verify};

/// Verified instructions that a program may need.
fn budget(name: &str) -> u32 {
    match name {
        program::CLOCK => 100,
        program::SOCK_RELEASE => 500,
        name if program::SOCK_ADDR.contains(&name) => 6_500,
        // Two pipelines: what other nodes send, in tunnels and plainly, and what comes from the world.
        program::FROM_UPLINK => 155_000,
        // With the ways out of the cluster, and what a connection keeps when they change.
        program::FROM_POD => 105_000,
        // Of these, 20,000 are what can be answered, to either end and in either family.
        _ => 90_000,
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    let single = [program::SOCK_RELEASE, program::CLOCK];
    program::TC.into_iter().chain(program::SOCK_ADDR).chain(single)
}

#[test]
fn programs_stay_within_their_budgets() {
    let mut ebpf = load(Switches::default()).expect("load");
    let mut over = Vec::new();
    for name in names() {
        let budget = budget(name);
        let info = match verify(&mut ebpf, name) {
            Ok(info) => info,
            Err(error) => {
                over.push(format!("{name}: {error:#}"));
                continue;
            }
        };
        let verified = info.verified_instruction_count().expect("the kernel counts since 5.16");
        println!("{name:20} {verified:7} of {budget}");
        if verified > budget {
            over.push(format!("{name}: {verified} instructions, budget {budget}"));
        }
        assert!(info.btf_id().is_some(), "{name} lost its type information");
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}
