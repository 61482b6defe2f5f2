//! What a test needs of the machine: missing means skipped with a counted reason, and failed where `CI` is set.
//!
//! Skips go to the file that `QUILLA_SKIP_LOG` names, a line each, because libtest counts a test that returns as
//! passed. Invariant: no test is skipped without such a line.

use std::env;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The folder of Debian's `containernetworking-plugins`.
pub const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// Something a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// All privileges.
    Root,
    /// The kernel's own type information.
    Btf,
    /// A mounted cgroup2.
    Cgroup2,
    /// `kubectl` in the path.
    Kubectl,
    /// The CNI project's own plugins, where Debian puts them.
    ReferencePlugins,
    /// `containerd` and `runc` in the path.
    Containerd,
    /// `podman` in the path.
    Podman,
    /// A statically linked `busybox` in the path.
    Busybox,
}

impl Need {
    /// Why the machine does not have it.
    pub fn missing(self) -> Option<String> {
        let (present, reason) = match self {
            Self::Root => (rustix::process::geteuid().is_root(), "not root"),
            Self::Btf => (Path::new("/sys/kernel/btf/vmlinux").exists(), "no /sys/kernel/btf/vmlinux"),
            Self::Cgroup2 => (mounted("cgroup2"), "no cgroup2 mounted"),
            Self::Kubectl => (in_path("kubectl"), "no kubectl in PATH"),
            Self::ReferencePlugins => {
                (Path::new(REFERENCE_PLUGINS).join("host-local").is_file(), "no reference CNI plugins")
            }
            Self::Containerd => (in_path("containerd") && in_path("runc"), "no containerd and runc in PATH"),
            Self::Podman => (in_path("podman"), "no podman in PATH"),
            Self::Busybox => (in_path("busybox"), "no busybox in PATH"),
        };
        (!present).then(|| reason.to_owned())
    }
}

fn mounted(kind: &str) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(2) == Some(kind))
}

fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Records the skip of `test`, or panics in CI. Returns whether the test is to be skipped.
pub fn skip(test: &str, needs: &[Need]) -> bool {
    let reasons: Vec<String> = needs.iter().filter_map(|need| need.missing()).collect();
    if reasons.is_empty() {
        return false;
    }
    let line = format!("{test}: {}", reasons.join(", "));
    assert!(env::var_os("CI").is_none(), "CI skips nothing: {line}");
    println!("skipped {line}");
    if let Some(log) = env::var_os("QUILLA_SKIP_LOG") {
        let file = File::options().create(true).append(true).open(&log);
        let written = file.and_then(|mut file| writeln!(file, "{line}"));
        written.unwrap_or_else(|error| panic!("record a skip in {}: {error}", log.display()));
    }
    true
}

/// `require!(Root, Btf)`: returns from the test when the machine lacks one of them.
#[macro_export]
macro_rules! require {
    ($($need:ident),+ $(,)?) => {
        let test = std::thread::current().name().unwrap_or(module_path!()).to_owned();
        if $crate::require::skip(&test, &[$($crate::require::Need::$need),+]) {
            return;
        }
    };
}

#[cfg(test)]
mod tests {
    use super::Need;

    #[test]
    fn root_is_told_from_others() {
        let id = std::fs::read_to_string("/proc/self/status").expect("status");
        let root = id.lines().any(|line| line.starts_with("Uid:\t0\t0"));
        assert_eq!(Need::Root.missing().is_none(), root);
    }
}
