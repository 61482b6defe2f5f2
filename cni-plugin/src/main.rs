//! The CNI plugin: wires the network namespace of a Pod.

fn main() {}
