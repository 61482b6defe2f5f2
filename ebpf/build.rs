//! Flags of the link that belong to this crate's code.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        // The linker's default turns every memset and memmove, however small, into a call of a loop: slow to run, and
        // the verifier follows each turn of it.
        println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
