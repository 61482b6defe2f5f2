//! The C library's allocator, told to give memory back. Called once by the agent, before it has threads.
//!
//! By itself glibc raises the size from which a piece is mapped on its own to that of the largest piece that was ever
//! freed, up to 32 MiB. What a start reads, the kernel's maps and the lists of the apiserver, so stays in the process for
//! good: tens of megabytes. Invariant: nothing but speed depends on this.

/// Large pieces go back to the kernel when they are freed, and all threads share one heap: the agent's seldom want
/// memory at the same time, and what one of them frees another can use.
#[cfg(target_env = "gnu")]
pub fn give_memory_back() {
    /// A piece of so many bytes is mapped on its own; as many free bytes at the end of the heap are given back, too.
    const LARGE: i32 = 128 * 1024;
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE), (libc::M_ARENA_MAX, 1)]
    {
        // SAFETY: sets a number that the allocator reads under its own lock.
        if unsafe { libc::mallopt(parameter, value) } != 1 {
            tracing::warn!(parameter, value, "the allocator takes no advice");
        }
    }
}

/// Other allocators are left as they are.
#[cfg(not(target_env = "gnu"))]
pub fn give_memory_back() {}
