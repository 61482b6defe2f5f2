//! The C library's allocator, told to give memory back. Called by the agent: once before it has threads, and
//! by the reconciler after what needs much memory for a moment.
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

/// Gives back the pages in the middle of the heap that nothing is on any more. It looks at every free piece, for some
/// milliseconds in which nobody gets memory: for when much was freed.
#[cfg(target_env = "gnu")]
pub fn give_free_pages_back() {
    // SAFETY: works on the allocator's own state, under its own lock.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators are left as they are.
#[cfg(not(target_env = "gnu"))]
pub fn give_free_pages_back() {}

/// Other allocators are left as they are.
#[cfg(not(target_env = "gnu"))]
pub fn give_memory_back() {}
