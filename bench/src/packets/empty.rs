//! The program that does nothing, which every other one is compared with: what a run costs before any code of ours.
//!
//! Two instructions in an object made here, because a compiler is a lot to ask for them. It returns what our programs
//! return for a packet that is not theirs.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::SchedClassifier;
use object::write::{Object, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};
use quilla_datapath::TestRunner;

const NAME: &str = "empty";

/// `r0 = -1` and `exit`.
const CODE: [u8; 16] = [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x95, 0, 0, 0, 0, 0, 0, 0];

pub(super) fn load() -> Result<TestRunner> {
    let mut loaded = Ebpf::load(&object()?).context("read the empty program")?;
    let program = loaded.program_mut(NAME).context("find the empty program")?;
    let program: &mut SchedClassifier = program.try_into().context("the kind of the empty program")?;
    program.load().context("load the empty program")?;
    let fd = program.fd().context("the empty program")?.try_clone().context("keep the empty program")?;
    Ok(TestRunner::from_fd(NAME, std::os::fd::AsFd::as_fd(&fd))?)
}

fn object() -> Result<Vec<u8>> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let section = object.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
    object.append_section_data(section, &CODE, 8);
    object.add_symbol(Symbol {
        name: NAME.as_bytes().to_vec(),
        value: 0,
        size: CODE.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    object.write().context("write the empty program")
}
