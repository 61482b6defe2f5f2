//! Programs of a few instructions, in objects made here, because a compiler is a lot to ask for them.
//!
//! They are what ours are compared with: nothing at all, or the one helper call that a packet cannot do without.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::SchedClassifier;
use object::write::{Object, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

/// One instruction as the kernel reads it.
pub(crate) type Instruction = [u8; 8];

/// Loads a program for packets; it lives as long as what is returned, in which [`get`] finds it.
pub(crate) fn load(name: &str, code: &[Instruction]) -> Result<Ebpf> {
    let mut loaded = Ebpf::load(&object(name, &code.concat())?).with_context(|| format!("read {name}"))?;
    get(&mut loaded, name)?.load().with_context(|| format!("load {name}"))?;
    Ok(loaded)
}

/// The program of this name.
pub(crate) fn get<'a>(loaded: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = loaded.program_mut(name).with_context(|| format!("find {name}"))?;
    program.try_into().with_context(|| format!("the kind of {name}"))
}

fn object(name: &str, code: &[u8]) -> Result<Vec<u8>> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let section = object.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
    object.append_section_data(section, code, 8);
    object.add_symbol(Symbol {
        name: name.as_bytes().to_vec(),
        value: 0,
        size: code.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    object.write().with_context(|| format!("write {name}"))
}
