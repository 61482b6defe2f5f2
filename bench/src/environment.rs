//! What a figure depends on beside the code: printed with each one, because without it the figure says nothing.
//!
//! Read on the machine itself: inside a sandbox some of it cannot be seen.

use std::fs;

/// Prints one line for each thing that matters.
pub(crate) fn print() {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> = processors
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim())
        .collect();
    println!("- kernel: {}", read("/proc/sys/kernel/osrelease"));
    println!("- processors: {} × {}", models.len(), models.first().unwrap_or(&"unknown"));
    println!("- spectre_v2: {}", read("/sys/devices/system/cpu/vulnerabilities/spectre_v2"));
    println!("- BPF JIT: {}", read("/proc/sys/net/core/bpf_jit_enable"));
    println!("- BPF JIT hardening: {}", read("/proc/sys/net/core/bpf_jit_harden"));
    println!("- BPF statistics: {}", read("/proc/sys/kernel/bpf_stats_enabled"));
    println!("- {}\n", load());
}

/// How busy the machine has been.
pub(crate) fn load() -> String {
    format!("load average: {}", read("/proc/loadavg"))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
