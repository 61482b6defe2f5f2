//! The object file: what is taken out before it is committed, and what must hold before a kernel sees it.
//!
//! Each check is about a fault that is otherwise silent, or that a kernel reports with a message about something else.

use anyhow::{Context, Result, bail, ensure};
use object::build::elf::{Builder, SectionData};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, elf};

/// What no loader reads: DWARF, from which bpf-linker has made BTF, and relocations of BTF, whose values are in place
/// already because they refer to the begin of sections.
const DEAD: [&str; 3] = [".debug_", ".rel.debug_", ".rel.BTF"];

/// Removes the dead sections: most of the file, which is committed.
pub(super) fn strip(linked: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(linked).context("read the linked object")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        if DEAD.iter().any(|dead| name.starts_with(dead)) {
            section.delete = true;
        }
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and symbols in one table; the writer wants two.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = elf::SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("write the stripped object")?;
    Ok(stripped)
}

pub(super) fn inspect(bytes: &[u8]) -> Result<()> {
    let object: ElfFile64 = ElfFile64::parse(bytes).context("parse the object")?;
    for symbol in object.symbols() {
        let name = symbol.name().context("name of a symbol")?;
        ensure!(
            !symbol.is_undefined() || name.is_empty(),
            "undefined symbol `{name}`: a panic is reachable, or a function is missing; a kernel would say only \
             \"last insn is not an exit or jmp\""
        );
        ensure!(!name.starts_with("AYA_LOG"), "`{name}`: aya-log belongs in debug objects only");
    }
    ensure!(
        object.section_by_name("license").is_some(),
        "no licence section: the kernel would refuse its helpers"
    );
    let btf =
        object.section_by_name(".BTF").context("no .BTF section: map-in-map and line information need it")?;
    inspect_btf(btf.data().context("content of .BTF")?)
}

const HEADER: usize = 24;
const MAGIC: u16 = 0xeb9f;

/// A kernel refuses all of an object's BTF for one name that is not an identifier, and aya then goes on without BTF.
fn inspect_btf(btf: &[u8]) -> Result<()> {
    ensure!(btf.get(..2) == Some(&MAGIC.to_le_bytes()), "bad magic number in .BTF");
    let word = |at: usize| -> Result<usize> {
        let bytes = btf.get(at..at + 4).context(".BTF is cut short")?;
        Ok(u32::from_le_bytes(bytes.try_into().context(".BTF is cut short")?) as usize)
    };
    let body = word(4)?;
    ensure!(body >= HEADER, "bad header length in .BTF");
    let (types, types_end) = (body + word(8)?, body + word(8)? + word(12)?);
    let strings = btf.get(body + word(16)?..body + word(16)? + word(20)?).context(".BTF is cut short")?;

    let mut at = types;
    while at < types_end {
        let (name, info) = (word(at)?, word(at + 4)?);
        let kind = (info >> 24) & 0x1f;
        let name = strings.get(name..).and_then(|rest| rest.split(|byte| *byte == 0).next());
        let name = name.context("a name outside of .BTF's strings")?;
        if names_a_type(kind) && !is_identifier(name) {
            bail!("BTF type `{}` is not an identifier: no kernel loads it", String::from_utf8_lossy(name));
        }
        at += 12 + trailer(kind, info & 0xffff).with_context(|| format!("unknown BTF kind {kind}"))?;
    }
    Ok(())
}

/// Struct, union, enum, fwd, typedef, enum64.
fn names_a_type(kind: usize) -> bool {
    matches!(kind, 4..=8 | 19)
}

/// Anonymous types are fine; so is the dot that newer kernels allow.
fn is_identifier(name: &[u8]) -> bool {
    !name.first().is_some_and(u8::is_ascii_digit)
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
}

/// Bytes that follow the 12 common ones, by kind and `vlen`.
fn trailer(kind: usize, entries: usize) -> Option<usize> {
    Some(match kind {
        2 | 7..=12 | 16 | 18 => 0,
        1 | 14 | 17 => 4,
        3 => 12,
        6 | 13 => 8 * entries,
        4 | 5 | 15 | 19 => 12 * entries,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One struct with this name.
    fn btf(name: &str) -> Vec<u8> {
        let strings = format!("\0{name}\0");
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, 12, 12, u32::try_from(strings.len()).unwrap(), 1, 4 << 24, 0] {
            bytes.extend(u32::to_le_bytes(word));
        }
        bytes.extend(strings.as_bytes());
        bytes
    }

    #[test]
    fn btf_with_an_identifier_passes() {
        inspect_btf(&btf("flow_key")).unwrap();
    }

    #[test]
    fn btf_with_a_generic_name_fails() {
        let error = inspect_btf(&btf("MaybeUninit<u8>")).unwrap_err().to_string();
        assert!(error.contains("MaybeUninit<u8>"), "{error}");
    }

    #[test]
    fn truncated_btf_is_an_error() {
        let whole = btf("flow_key");
        for length in 0..whole.len() - 1 {
            assert!(inspect_btf(&whole[..length]).is_err(), "{length} bytes passed");
        }
    }
}
