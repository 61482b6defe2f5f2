//! Side-by-side measurements against the real alternatives.

#![forbid(unsafe_code)]

fn main() {}
