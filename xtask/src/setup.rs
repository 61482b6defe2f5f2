//! `setup`: what a fresh Debian machine lacks. Commands call the part they need, so nobody has to run it first.
//!
//! Every step looks before it acts and says what it does; on a machine that has everything it is silent and offline.

mod apt;
mod cargo_tool;
mod rust_src;
mod wheel;

use anyhow::Result;

use crate::workspace::Workspace;

pub(crate) use apt::missing;
pub(crate) use rust_src::present as has_rust_src;

/// 0.10 carries its own LLVM; later ones want the system's, in the compiler's version.
pub(crate) const BPF_LINKER: &str = "0.10.0";
const CARGO_MACHETE: &str = "0.9.2";
const CARGO_DENY: &str = "0.20.2";
/// Spelling and TOML formatting come as wheels with the binaries inside: seconds, where compiling them takes minutes.
const WHEELS: [(&str, &str); 2] = [("typos", "1.52.0"), ("taplo", "0.9.3")];

pub(crate) fn setup(workspace: &Workspace) -> Result<()> {
    commands(workspace)?;
    bpf_toolchain(workspace)?;
    linters(workspace)?;
    println!("everything is here");
    Ok(())
}

/// What tests and demos run: iproute2, kubectl, ...
pub(crate) fn commands(workspace: &Workspace) -> Result<()> {
    apt::ensure(workspace)?;
    apt::ensure_kubectl(workspace)?;
    apt::ensure_nginx(workspace)
}

pub(crate) fn bpf_toolchain(workspace: &Workspace) -> Result<()> {
    rust_src::ensure(workspace)?;
    cargo_tool::ensure(workspace, "bpf-linker", BPF_LINKER)
}

pub(crate) fn linters(workspace: &Workspace) -> Result<()> {
    wheel::ensure(workspace, &WHEELS)?;
    cargo_tool::ensure(workspace, "cargo-machete", CARGO_MACHETE)?;
    cargo_tool::ensure(workspace, "cargo-deny", CARGO_DENY)
}
