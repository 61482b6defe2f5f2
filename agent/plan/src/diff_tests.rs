use quilla_abi::config::{Config, flag};
use quilla_abi::epoch;
use quilla_abi::route::{Route, RouteKey, kind};

use super::diff;
use crate::step::Step;
use crate::tables::Tables;

/// Whether all flows look again after a change between two states, in either direction.
fn bumps_all(one: &Tables, other: &Tables) -> bool {
    let bumps = |old, new| {
        let steps = diff(old, new);
        assert!(steps.iter().any(|step| !matches!(step, Step::Bump(_))), "nothing changed");
        steps.iter().any(|step| matches!(step, Step::Bump(indices) if indices.contains(&epoch::GLOBAL)))
    };
    assert_eq!(bumps(one, other), bumps(other, one), "the way back is the same");
    bumps(one, other)
}

fn with_route(prefix_len: u32, kind: u8) -> Tables {
    let mut tables = Tables::default();
    tables
        .v4
        .routes
        .insert(RouteKey { prefix_len, addr: [203, 0, 113, 0] }, Route { kind, pad: 0, node_slot: 0 });
    tables
}

/// A load balancer address that comes and goes costs the flows of the node nothing.
#[test]
fn only_routes_that_flows_were_computed_from_make_them_look_again() {
    let without = Tables::default();
    assert!(!bumps_all(&without, &with_route(32, kind::SERVICES)));
    assert!(bumps_all(&without, &with_route(24, kind::SERVICES)), "a network of Services");
    assert!(bumps_all(&without, &with_route(32, kind::HOST)));
    assert!(bumps_all(&with_route(32, kind::HOST), &with_route(32, kind::SERVICES)));
    let mut tables = Tables::default();
    let route = Route { kind: kind::SERVICES, pad: 0, node_slot: 0 };
    tables.v6.routes.insert(RouteKey { prefix_len: 128, addr: [0xfd; 16] }, route);
    assert!(!bumps_all(&without, &tables));
    tables.v6.routes.insert(RouteKey { prefix_len: 32, addr: [0xfc; 16] }, route);
    assert!(bumps_all(&without, &tables));
}

#[test]
fn what_the_uplinks_look_at_is_in_no_flow() {
    let with = |config| Tables { config, ..Tables::default() };
    let before = Config { frontend_port_min: 1, ..Config::default() };
    let ports = Config { frontend_port_min: 80, frontend_port_max: 90, flags: flag::NODE_BACKENDS, ..before };
    assert!(!bumps_all(&with(before), &with(ports)));
    let masquerade = Config { flags: flag::NODE_BACKENDS | flag::MASQUERADE_V4, ..ports };
    assert!(bumps_all(&with(ports), &with(masquerade)));
    assert!(bumps_all(&with(before), &with(Config { uplink_ifindex: 3, ..before })));
}
