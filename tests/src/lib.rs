//! Test harness: clusters of network namespaces on one machine.
