//! Real container runtimes on a node of a whole cluster: containerd over CRI, and podman with its CNI back end.
//!
//! Each has its files in the sandbox, cgroups below the node's, and an image that the test makes of a static busybox;
//! nothing is fetched. Numbers like `CNI-18` are those of the checklist in `docs/cni.md`.

mod containerd;
mod cri;
mod image;
mod install;
mod place;
mod podman;

use std::process::ExitCode;

fn main() -> ExitCode {
    quilla_tests::suite::main(quilla_tests::tests![
        containerd::two_containers_of_a_pod,
        containerd::agent_dead,
        containerd::host_port,
        install::over_the_life_of_a_pod,
        podman::two_containers_of_a_pod,
    ])
}
