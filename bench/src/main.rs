//! Side-by-side measurements against the real alternatives.

fn main() {}
