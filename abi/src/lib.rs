//! The bytes that the kernel programs and user space agree on.
