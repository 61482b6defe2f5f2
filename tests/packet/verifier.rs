//! Every program of the committed object passes the verifier within its budget (design §3.7).
//!
//! The budget is what the program needs today and some room; a jump is a reason to look, not to raise it.

mod object;

use quilla_abi::program;

use crate::object::{Switches, load, verify};

/// Verified instructions that a program may need.
const BUDGET: [(&str, u32); 7] = [
    (program::FROM_POD, 100_000),
    (program::TO_POD, 100_000),
    (program::FROM_UPLINK, 100_000),
    (program::TO_UPLINK, 100_000),
    (program::FROM_OVERLAY, 100_000),
    (program::TO_OVERLAY, 100_000),
    (program::CLOCK, 100),
];

#[test]
fn programs_stay_within_their_budgets() {
    let mut ebpf = load(Switches::default()).expect("load");
    let mut table = String::new();
    let mut over = Vec::new();
    for (name, budget) in BUDGET {
        let info = match verify(&mut ebpf, name) {
            Ok(info) => info,
            Err(error) => {
                over.push(format!("{name}: {error:#}"));
                continue;
            }
        };
        let verified = info.verified_instruction_count().expect("the kernel counts since 5.16");
        table += &format!("{name:20} {verified:7} of {budget}\n");
        if verified > budget {
            over.push(format!("{name}: {verified} instructions, budget {budget}"));
        }
        assert!(info.btf_id().is_some(), "{name} lost its type information");
    }
    println!("{table}");
    assert!(over.is_empty(), "{}", over.join("\n"));
}
