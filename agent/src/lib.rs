//! The node agent: watches the apiserver and programs the kernel.
