//! Packet stories: one frame at a time through the loaded programs, in both families.
//!
//! Each story says what must become of the frame: the verdict, every byte, and which counter moved. Nothing here needs
//! a network: redirects are not executed, the devices only lend their numbers.
//!
//! What a test run of the kernel cannot show is left to the scenarios in `tests/`: a packet with a partial checksum (E7),
//! because a test run's frame always carries a whole one, with or without the sum of all its bytes that a network card
//! gives; a client in the host's network (E13), because its Services are resolved in its socket; and a row that user
//! space replaces while a program reads it, because nothing can stop a program between two instructions.

mod answers;
mod choice;
mod cost;
mod edges;
mod ends;
mod headers;
mod led;
mod life;
mod matrix;
mod nat;
mod outside;
mod overlay;
mod plain;
mod rig;
mod silence;
mod sockets;
mod spoof;
mod strangers;
mod unconcerned;
mod ways;

#[expect(clippy::too_many_lines, reason = "a list, with a line for each story")]
fn main() -> std::process::ExitCode {
    quilla_tests::suite::main(quilla_tests::tests![
        answers::refused,
        answers::dead_connections,
        answers::too_big,
        answers::too_big_for_the_world,
        answers::segments_count_one_by_one,
        answers::not_without_end,
        choice::affinity,
        choice::members_only,
        choice::source_ranges,
        choice::maglev,
        choice::least_connections,
        choice::cleared_backends,
        choice::slow_start,
        cost::an_established_packet_costs_one_lookup,
        cost::sums_come_out_right,
        edges::nobody,
        edges::strangers,
        edges::loopback,
        edges::no_endpoints,
        edges::fragments,
        edges::errors_from_backends,
        edges::errors_about_answers,
        ends::inside,
        ends::by_any_packet,
        ends::outside_and_host,
        headers::lies_are_dropped,
        headers::truncation_at_every_byte,
        headers::options_and_extensions,
        headers::fragments,
        led::connections,
        led::lost_entries,
        life::hop_limits,
        life::two_frontends,
        life::port_reuse,
        life::resets_and_late_packets,
        life::lost_replies,
        life::lost_datagram_replies,
        life::lost_forward_entries,
        life::epochs,
        life::gone_backends,
        life::strays,
        life::made_again,
        matrix::local_pods,
        matrix::packets,
        matrix::sockets,
        nat::echo,
        nat::udp_without_checksum,
        nat::hairpin,
        nat::masquerade,
        nat::masquerade_behind_the_stack,
        nat::exhausted_ports,
        nat::identifiers_of_echoes,
        nat::settings_change_under_connections,
        nat::masquerade_switched_off,
        nat::a_name_is_given_back,
        nat::begun_in_the_world,
        nat::masquerade_under_a_new_name,
        nat::errors_about_translated_flows,
        nat::errors_about_stale_flows,
        outside::local_pods,
        outside::other_nodes,
        outside::this_node,
        outside::the_world,
        outside::two_uplinks,
        outside::two_frontends,
        outside::exhausted_ports,
        outside::forged_clients,
        outside::lost_entries,
        outside::lost_datagram_entries,
        outside::gone_backends,
        overlay::both_ways,
        overlay::an_established_packet_costs_one_lookup,
        overlay::left_to_the_device,
        overlay::both_ends_choose_the_family,
        overlay::both_ends_choose_the_device_s_family,
        overlay::to_the_stack,
        overlay::answers,
        overlay::ends,
        overlay::errors,
        overlay::too_big,
        overlay::congestion,
        overlay::routes_say_what_fits,
        overlay::routers_say_what_fits,
        overlay::another_node_in_the_slot_is_another_way,
        overlay::from_nobody,
        overlay::malformed,
        overlay::not_ours,
        plain::both_ways,
        plain::paths_change_under_flows,
        plain::strangers,
        plain::the_world_s,
        plain::to_the_stack,
        plain::errors_and_answers,
        plain::by_other_nodes,
        plain::as_large_as_the_uplink,
        plain::an_established_packet_costs_one_lookup,
        silence::late_answers,
        silence::one_way_masquerade,
        silence::recovered_ports,
        silence::downloads,
        sockets::connect,
        sockets::policies,
        sockets::led_before,
        spoof::sources,
        spoof::neighbours,
        spoof::overlay,
        spoof::tags,
        strangers::groups,
        strangers::without_ports,
        strangers::shapes,
        strangers::full_flow_table,
        unconcerned::connections,
        ways::pod_to_pod,
        ways::services,
        ways::overlay,
        ways::host,
        ways::nowhere,
    ])
}
