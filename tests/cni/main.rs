//! The CNI plugin as a runtime sees it: the real binary, in real namespaces, against the agent's CNI server with a
//! recorder in place of the data path. Numbers like `CNI-18` are those of the checklist in `docs/cni.md`.

mod add;
mod agent;
mod capabilities;
mod chain;
mod del;
mod delegate;
mod disk;
mod effective;
mod faults;
mod foreign;
mod gc;
mod input;
mod mechanism;
mod node;
mod pods;
mod prev_result;
mod process;
mod rollback;
mod site;
mod static_address;
mod storm;
mod timing;
mod told;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The tests start this binary again as a process of a Pod.
    if let Some(role) = process::role() {
        return process::run(&role);
    }
    quilla_tests::suite::main(quilla_tests::tests![
        add::every_version,
        add::nothing_remains_after_del,
        add::what_the_pod_gets,
        add::what_the_host_gets,
        add::twice_is_one_address,
        add::the_agent_is_asked_before_the_answer,
        add::one_family_only,
        add::ipv6_off_by_default,
        add::in_parallel,
        capabilities::host_ports,
        capabilities::host_ports_are_given_back,
        capabilities::addresses_and_mac,
        capabilities::names_and_nonsense,
        capabilities::bandwidth,
        capabilities::check_misses_limits,
        chain::add_keeps_what_came_before,
        chain::check_accepts_the_result,
        chain::check_finds_a_pod_that_is_cut_off,
        chain::check_finds_each_difference,
        chain::check_needs_a_version_and_a_result,
        del::any_number_of_times,
        del::with_the_namespace_gone,
        del::with_the_agent_dead,
        del::with_the_agent_stuck,
        del::with_a_corrupt_result,
        del::recorded_release_before_the_next_add,
        faults::every_point,
        faults::not_in_the_product,
        delegate::host_local_gives_and_takes,
        delegate::host_local_is_undone,
        delegate::every_verb_is_passed_on,
        delegate::useless_answers,
        foreign::ours_first,
        foreign::ours_after_another,
        foreign::a_list_with_ours_last,
        foreign::an_unusable_result_is_refused,
        disk::full,
        disk::read_only,
        effective::first_packet_reaches_a_service,
        gc::keeps_what_the_runtime_knows,
        gc::namespaces_may_be_gone,
        gc::waits_for_its_turn,
        gc::a_missing_list_is_an_error,
        gc::status_follows_the_agent,
        input::environment,
        input::standard_input,
        input::versions,
        input::version_verb,
        input::namespaces,
        input::log_file,
        mechanism::bandwidth_behind_ours,
        mechanism::ours_behind_bandwidth,
        mechanism::what_the_network_says_outlives_the_agent,
        pods::two_pods_reach_each_other,
        pods::two_processes_of_one_pod,
        prev_result::in_every_wrong_shape,
        prev_result::with_the_list_changed_or_gone,
        rollback::interface_exists,
        rollback::address_refused_in_the_pod,
        rollback::route_exists_on_the_host,
        rollback::agent_refuses,
        rollback::agent_hangs,
        rollback::agent_answers_late,
        rollback::agent_absent,
        rollback::plugin_killed,
        rollback::pool_exhausted,
        rollback::agent_restarts_with_its_endpoints,
        static_address::by_annotation,
        storm::agent_stopped,
        storm::of_kills,
        timing::start_to_exit,
        told::pods_that_come_together,
        told::a_plugin_killed_with_its_answer,
    ])
}
