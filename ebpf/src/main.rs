//! The kernel side: entry points and glue (BPF target only).

fn main() {}
