//! Real veths, real sockets: topologies of namespaces, first the harness itself.

mod harness;

fn main() -> std::process::ExitCode {
    quilla_tests::suite::main(quilla_tests::tests![
        harness::namespaces_are_isolated,
        harness::nothing_reaches_outside,
        harness::the_underlay_connects_nodes,
        harness::a_panic_leaves_nothing,
        harness::a_killed_sandbox_leaves_nothing,
    ])
}
