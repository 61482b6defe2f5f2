//! The node agent: watches the apiserver and programs the kernel.
#![forbid(unsafe_code)]

pub mod cni;
