//! All of it together, with faults: what an operator does and what happens to clusters.

mod control_plane;
mod demo;
mod kubectl;
mod operator;

fn main() -> std::process::ExitCode {
    quilla_tests::suite::main(quilla_tests::tests![
        demo::the_demo_keeps_its_word,
        control_plane::what_was_acknowledged_survives_a_crash,
        control_plane::traffic_needs_no_control_plane,
        control_plane::agents_restart_one_after_the_other,
        kubectl::a_session_with_kubectl,
        kubectl::bad_objects_harm_nobody_else,
        kubectl::a_port_changes_its_protocol,
        operator::what_an_operator_sees_has_one_form_and_is_true,
    ])
}
