//! Pure planning: from a snapshot and node facts to the rows the kernel reads.
