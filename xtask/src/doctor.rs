//! `doctor`: what this machine has, and what cannot run here and why. It changes nothing and never fails.

use std::fs;
use std::path::Path;

use crate::ebpf::RUSTC;
use crate::process::read;
use crate::setup::{self, BPF_LINKER};
use crate::workspace::Workspace;

/// Without it: what does not run.
struct Finding {
    what: String,
    fine: bool,
    without: &'static str,
}

pub(crate) fn doctor(workspace: &Workspace) {
    let findings: Vec<Finding> =
        [build_tools(workspace), commands(workspace), kernel(workspace)].into_iter().flatten().collect();
    let mut poor = 0;
    for finding in &findings {
        if finding.fine {
            println!("  ok       {}", finding.what);
        } else {
            poor += 1;
            println!("  missing  {}: {}", finding.what, finding.without);
        }
    }
    if poor == 0 {
        println!("everything runs here");
    } else {
        println!("{poor} missing; `cargo xtask setup` installs what can be installed");
    }
}

fn build_tools(workspace: &Workspace) -> Vec<Finding> {
    let version =
        |tool: &str| read(workspace.command(tool).arg("--version")).unwrap_or_default().trim().to_owned();
    let rustc = version("rustc");
    let linker = if workspace.which("bpf-linker").is_some() { version("bpf-linker") } else { String::new() };
    vec![
        Finding {
            what: format!("rustc {RUSTC} ({rustc})"),
            fine: rustc.contains(RUSTC),
            without: "the kernel object cannot be rebuilt; the committed one is used",
        },
        Finding {
            what: "rust-src".to_owned(),
            fine: setup::has_rust_src(workspace),
            without: "`cargo xtask ebpf` installs it",
        },
        Finding {
            what: format!("bpf-linker {BPF_LINKER}"),
            fine: linker.contains(BPF_LINKER),
            without: "`cargo xtask ebpf` installs it",
        },
    ]
}

fn commands(workspace: &Workspace) -> Vec<Finding> {
    let missing = setup::missing(workspace);
    let kubectl = workspace.which("kubectl").is_some();
    vec![
        Finding {
            what: format!("commands of the tests {}", missing.join(" ")).trim_end().to_owned(),
            fine: missing.is_empty(),
            without: "`cargo xtask test` installs these packages",
        },
        Finding {
            what: "kubectl".to_owned(),
            fine: kubectl,
            without: "`cargo xtask test` unpacks it from Debian",
        },
    ]
}

fn kernel(workspace: &Workspace) -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let at_least = |major: u32, minor: u32| version(&release) >= (major, minor);
    let root = read(workspace.command("id").arg("-u")).unwrap_or_default().trim() == "0";
    vec![
        Finding {
            what: format!("kernel 6.1 or later ({release})"),
            fine: at_least(6, 1),
            without: "the data path is not supported here",
        },
        Finding {
            what: "kernel 6.6 or later".to_owned(),
            fine: at_least(6, 6),
            without: "no tcx: the programs of uplinks are filters of clsact, which other tools may remove",
        },
        Finding {
            what: "root".to_owned(),
            fine: root,
            without: "namespaces and BPF need it: most tiers skip their tests",
        },
        Finding {
            what: "kernel type information (/sys/kernel/btf/vmlinux)".to_owned(),
            fine: Path::new("/sys/kernel/btf/vmlinux").exists(),
            without: "no program can be loaded",
        },
        Finding {
            what: "bpf file system".to_owned(),
            fine: listed("/proc/filesystems", "bpf"),
            without: "nothing can be pinned",
        },
        Finding {
            what: "cgroup v2, mounted".to_owned(),
            fine: listed("/proc/mounts", "cgroup2"),
            without: "Services are translated per packet only, not at the socket",
        },
        Finding {
            what: "veth devices".to_owned(),
            fine: link(workspace, &["type", "veth"]),
            without: "no Pods",
        },
        Finding {
            what: "VXLAN devices".to_owned(),
            fine: link(workspace, &["type", "vxlan", "external", "dstport", "8472"]),
            without: "no overlay: Pods reach Pods of their own node only",
        },
    ]
}

/// Whether one of the lines of a table in `/proc` has this word.
fn listed(table: &str, word: &str) -> bool {
    let table = fs::read_to_string(table).unwrap_or_default();
    table.lines().any(|line| line.split_whitespace().any(|found| found == word))
}

/// Tries to create such a device, in a namespace that ends with the command.
fn link(workspace: &Workspace, kind: &[&str]) -> bool {
    let mut unshare = workspace.command("unshare");
    unshare.args(["--net", "ip", "link", "add", "probe"]).args(kind);
    unshare.output().is_ok_and(|output| output.status.success())
}

/// The two first numbers of a release such as `6.18.44-custom`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn release_strings_of_real_kernels() {
        assert_eq!(version("6.18.44"), (6, 18));
        assert_eq!(version("6.1.0-42-cloud-amd64"), (6, 1));
        assert_eq!(version(""), (0, 0));
    }
}
