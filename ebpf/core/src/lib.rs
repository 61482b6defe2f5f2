//! Data path decisions as pure functions, run in the kernel and tested on the host.
