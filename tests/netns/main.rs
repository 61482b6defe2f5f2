//! Real veths, real sockets: topologies of namespaces, first the harness itself.

mod bulk;
mod churn;
mod clients;
mod external;
mod guard;
mod harness;
mod led;
mod lifecycle;
mod mtu;
mod node;
mod overlay;
mod paths;
mod restart;
mod routing;
mod services;
mod soak;
mod traffic;
mod uplinks;

fn main() -> std::process::ExitCode {
    quilla_tests::suite::main(quilla_tests::tests![
        harness::namespaces_are_isolated,
        harness::nothing_reaches_outside,
        harness::the_underlay_connects_nodes,
        harness::a_panic_leaves_nothing,
        harness::a_panic_leaves_nothing_of_a_cluster,
        harness::a_killed_sandbox_leaves_nothing,
        paths::pods_reach_pods,
        paths::large_transfers_fit_the_path,
        paths::hosts_and_pods_reach_each_other,
        paths::the_outside_sees_the_node,
        paths::containers_share_the_pod,
        services::cluster_ips_reach_every_backend,
        services::a_pod_reaches_itself_through_its_service,
        services::backends_leave_and_come,
        clients::curl_reaches_nginx_by_every_address,
        clients::dig_asks_over_udp_and_tcp,
        clients::iperf3_streams_and_datagrams,
        external::local_policy_keeps_the_caller_s_address,
        external::without_endpoints_clients_are_refused,
        external::source_ranges_guard_the_balancer_s_address,
        external::clients_come_back_to_their_server,
        external::balancers_see_which_node_has_endpoints,
        external::sessions_survive_an_agent_s_restart,
        external::a_weight_of_zero_drains_a_pod,
        node::connected_sockets_end_with_their_backend,
        node::the_node_s_own_packets_for_services_go_nowhere,
        node::connections_led_at_the_socket_have_a_service,
        node::a_node_that_is_leaving_says_so_to_load_balancers,
        led::connections_end_with_their_backend,
        led::where_nobody_listens_clients_are_refused,
        overlay::pods_of_two_nodes_need_no_device,
        overlay::modes_mix_and_change,
        overlay::a_plain_vxlan_device_is_a_node,
        overlay::the_agent_finds_out,
        overlay::pods_reach_no_tunnel_by_any_address,
        routing::everybody_reaches_everybody_in_each_mode,
        routing::modes_mix_behind_strict_filters,
        routing::modes_change_under_flows,
        routing::routes_are_kept_exactly,
        routing::next_hops_are_as_the_host_has_them,
        routing::exceptions_are_followed,
        routing::an_address_that_is_not_there_costs_a_tunnel,
        uplinks::each_uplink_answers_its_own_clients,
        mtu::pods_follow_the_uplink,
        mtu::a_narrow_link_between_nodes,
        mtu::the_way_to_the_world_narrows,
        lifecycle::another_node_takes_the_pod_cidrs,
        lifecycle::an_address_changes_hands,
        lifecycle::uplinks_are_renamed_made_anew_and_added,
        traffic::a_planted_misdelivery_is_seen,
        soak::everything_changes_and_nothing_goes_astray,
        churn::a_type_that_flaps_breaks_no_flow,
        churn::endpoints_come_and_go_under_load,
        guard::programs_that_somebody_removes_come_back_at_once,
        restart::a_killed_agent_loses_nothing,
        restart::the_kernel_needs_no_agent,
        restart::drift_is_repaired,
    ])
}
