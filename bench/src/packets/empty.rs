//! The program that does nothing, which every other one is compared with: what a run costs before any code of ours.
//!
//! Two instructions; it returns what our programs return for a packet that is not theirs.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use quilla_datapath::TestRunner;

use crate::program::{self, Instruction};

const NAME: &str = "empty";

/// `r0 = -1` and `exit`.
const CODE: [Instruction; 2] = [[0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [0x95, 0, 0, 0, 0, 0, 0, 0]];

pub(super) fn load() -> Result<TestRunner> {
    behind(&[])
}

/// The same behind instructions that prepare the packet.
pub(super) fn behind(instructions: &[u64]) -> Result<TestRunner> {
    let mut loaded = program::load(NAME, &CODE)?;
    let fd = program::get(&mut loaded, NAME)?.fd().context("the empty program")?.as_fd();
    Ok(if instructions.is_empty() {
        TestRunner::from_fd(NAME, fd)?
    } else {
        TestRunner::behind(NAME, fd, instructions)?
    })
}
