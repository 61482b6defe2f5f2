use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use quilla_abi::address::v4_mapped;
use quilla_abi::affinity::MemberKey;
use quilla_abi::config::{Config, flag};
use quilla_abi::epoch;
use quilla_abi::service::SourceRangeKey;
use quilla_abi::version::SCHEMA;
use quilla_model::{Family, ObjectName, ObjectRef, Reason, TrafficPolicy};

use quilla_abi::map::capacity;

use super::Layout;
use super::row::{backend_row, service_key};
use super::set::usable;
use crate::desired::{
    BackendKey, BackendSet, Desired, Frontend, FrontendKey, FrontendKind, Member, SetKey, Target, Tunnel,
};
use crate::maglev::FULL_DENSITY;
use crate::routing::{Path, Why};
use crate::tables::Tables;

fn desired(frontends: u32, backends: u32) -> Desired {
    same_backends(frontends, 0..backends, false)
}

/// Frontends that all have these backends, each a set of its own.
fn same_backends(frontends: u32, backends: Range<u32>, maglev: bool) -> Desired {
    let backend = |number: u32| BackendKey {
        address: IpAddr::V4((0x0b00_0000 + number).into()),
        port: 8080,
        protocol: 6,
    };
    let members: Vec<_> = backends.map(backend).map(|backend| Member { backend, weight: 1 }).collect();
    let backends = members.iter().map(|member| (member.backend, 1)).collect();
    let contents = Arc::new(BackendSet { members, ..BackendSet::default() });
    let frontend = |number: u32| {
        let address = IpAddr::V4((0x0a60_0000 + number).into());
        let set = Arc::new(SetKey {
            owner: ObjectRef::new("Service", &ObjectName::new("test", number.to_string())),
            port_name: "".into(),
            protocol: 6,
            family: Family::V4,
            policy: TrafficPolicy::Cluster,
            maglev,
        });
        let frontend = Frontend { set: Arc::clone(&set), kind: FrontendKind::NodePort, flags: 0 };
        let key = FrontendKey { address, port: 80, protocol: 6, scope: 0 };
        ((key, frontend), (set, Arc::clone(&contents)))
    };
    let (frontends, sets) = (0..frontends).map(frontend).unzip();
    Desired { frontends, sets, backends, maglev_density: FULL_DENSITY, ..Desired::default() }
}

/// Each frontend has a row, and each of its slots a backend of its set, which is the same for all. How many rows are not
/// as the set says.
fn stale(desired: &Desired, tables: &Tables) -> usize {
    assert_eq!(tables.v4.services.len(), desired.frontends.len(), "each frontend has its row");
    let (key, set) = desired.sets.iter().next().unwrap();
    let indices = set.slots(key.maglev, desired.maglev_density);
    let id = |member: &Member| tables.v4.backend_ids[&backend_row(&member.backend).unwrap()];
    let members: Vec<u32> = set.members.iter().map(id).collect();
    let wanted: Vec<u32> = indices.into_iter().map(|index| members[index as usize]).collect();
    let members: HashSet<u32> = members.into_iter().collect();
    let stale = |key: &&FrontendKey| {
        let row = &tables.v4.services[&service_key(key).unwrap()];
        let found = tables.slots_of(row).expect("a range of its own");
        assert!(found.iter().all(|id| members.contains(id)), "nobody who is gone");
        *found != wanted
    };
    desired.frontends.keys().filter(stale).count()
}

#[test]
fn what_finds_no_room_is_left_out_and_named_and_the_rest_works() {
    let most = usable(capacity::SERVICES);
    let too_many = u32::try_from(most).unwrap() + 3;
    let (tables, problems) = Layout::default().lay_out(&desired(too_many, 1));
    assert_eq!(tables.v4.services.len(), most);
    assert_eq!(problems.len(), 3);
    assert!(problems.iter().all(|problem| problem.reason == Reason::Capacity));

    let (tables, problems) = Layout::default().lay_out(&desired(1, epoch::MAX_BACKENDS + 8_000));
    let row = tables.v4.services.values().next().unwrap();
    let ids = epoch::MAX_BACKENDS as usize - 1;
    assert_eq!((tables.slots_of(row).unwrap().len(), problems.len()), (ids, 1), "what has an id is served");
}

#[test]
fn a_service_of_a_hundred_thousand_endpoints_can_change_every_round() {
    let mut layout = Layout::default();
    for round in 0..20 {
        let (_, problems) = layout.lay_out(&desired(1, 100_000 + round % 2));
        assert_eq!(problems, [], "round {round}: freed ranges come back in time");
    }
}

#[test]
fn a_node_port_of_five_thousand_endpoints_can_change_every_round() {
    let mut layout = Layout::default();
    for round in 0..20 {
        let desired = same_backends(1, round..5_000 + round, true);
        let (tables, problems) = layout.lay_out(&desired);
        assert_eq!(problems, [], "round {round}");
        assert_eq!(stale(&desired, &tables), 0, "round {round}");
    }
}

/// S17: a member that leaves takes its slots with it, also where slots and members are as many by chance: with weights,
/// and in a Maglev table of one slot each. Whoever stays keeps the id.
#[test]
fn s17_who_stays_keeps_the_id_whatever_the_slots_are() {
    let weighted = |set: &BackendSet, weights: &[_]| {
        let weigh = |(member, &weight): (&Member, _)| Member { weight, ..*member };
        let members = set.members.iter().zip(weights).map(weigh).collect();
        Arc::new(BackendSet { members, ..set.clone() })
    };
    for maglev in [false, true] {
        let mut layout = Layout::default();
        let mut before = Tables::default();
        for (members, of) in [(0..7, [1; 7]), (1..7, [2, 1, 1, 3, 1, 1, 1]), (2..7, [1, 2, 1, 1, 1, 1, 1])] {
            let mut desired = same_backends(2, members.clone(), maglev);
            desired.maglev_density = 1;
            desired.sets =
                desired.sets.iter().map(|(key, set)| (Arc::clone(key), weighted(set, &of))).collect();
            let (tables, problems) = layout.lay_out(&desired);
            assert_eq!((problems.len(), stale(&desired, &tables)), (0, 0), "{members:?}, Maglev: {maglev}");
            let kept =
                |(backend, id): (_, &u32)| before.v4.backend_ids.get(backend).is_none_or(|old| old == id);
            assert!(tables.v4.backend_ids.iter().all(kept), "{members:?}");
            before = Tables::clone(&tables);
        }
    }
}

/// More tables change at once than there is room for beside the old ones, and as often as not to another size.
#[test]
fn what_changes_without_room_keeps_its_row_and_is_current_once_there_is_room() {
    let mut layout = Layout::default();
    let mut crowded = 0;
    for round in 0..6 {
        let members = if round % 2 == 0 { 1_300 } else { 1_320 };
        let desired = same_backends(4, round * 50..round * 50 + members, true);
        let (tables, problems) = layout.lay_out(&desired);
        let stale = stale(&desired, &tables);
        assert_eq!(problems.len(), stale, "round {round}: what is not current is named");
        assert!(problems.iter().all(|problem| problem.reason == Reason::Capacity));
        assert_eq!(layout.awaits_room(), stale > 0);
        crowded += stale;
    }
    assert!(crowded > 0, "there was room for everything: nothing is shown");
    let desired = same_backends(4, 250..1_570, true);
    let rounds = (0..20).take_while(|_| {
        layout.lay_out(&desired);
        layout.awaits_room()
    });
    assert!(rounds.count() <= 5, "freed ranges come back");
    let (tables, problems) = layout.lay_out(&desired);
    assert_eq!((problems.len(), stale(&desired, &tables)), (0, 0));
}

/// Without room a table of the same size is written over: nothing waits.
#[test]
fn tables_that_keep_their_size_are_current_without_room() {
    let mut layout = Layout::default();
    for round in 0..4 {
        let desired = same_backends(5, round..1_400 + round, true);
        let (tables, problems) = layout.lay_out(&desired);
        assert_eq!((problems.len(), stale(&desired, &tables)), (0, 0), "round {round}");
    }
}

/// E16: the uplinks go on to look at the ports and the answers of connections whose Service changed its type, after a
/// restart too; rows of another schema say nothing.
#[test]
fn e16_what_the_uplinks_look_at_only_becomes_more() {
    let with = |frontend_port_min, frontend_port_max, flags| {
        let config =
            Config { schema: SCHEMA, frontend_port_min, frontend_port_max, flags, ..Config::default() };
        Desired { config, ..Desired::default() }
    };
    let seen = |config: Config| (config.frontend_port_min, config.frontend_port_max, config.flags);
    let both = flag::NODE_BACKENDS | flag::MASQUERADE_V4;
    let mut layout = Layout::default();
    let mut after = |desired| seen(layout.lay_out(&desired).0.config);
    assert_eq!(after(with(1, 0, 0)), (1, 0, 0));
    assert_eq!(after(with(30_080, 30_090, both)), (30_080, 30_090, both));
    assert_eq!(after(with(30_085, 30_100, 0)), (30_080, 30_100, flag::NODE_BACKENDS));
    assert_eq!(after(with(1, 0, 0)), (30_080, 30_100, flag::NODE_BACKENDS));

    let mut tables = Tables::clone(layout.tables());
    let (restarted, _) = Layout::recover(&tables).lay_out(&with(80, 80, 0));
    assert_eq!(seen(restarted.config), (80, 30_100, flag::NODE_BACKENDS));
    tables.config.schema += 1;
    let (replaced, _) = Layout::recover(&tables).lay_out(&with(80, 80, 0));
    assert_eq!(seen(replaced.config), (80, 80, 0));
}

/// S24: a row of a run that died must not let its clients into another Service.
#[test]
fn s24_an_id_that_only_source_ranges_or_members_mention_is_not_given_out() {
    let mut found = Tables::default();
    let range = |id: u32| SourceRangeKey { prefix_len: 32, id: id.to_be_bytes(), addr: [0; 4] };
    found.v4.source_ranges.insert(range(1), 1);
    found.v4.source_ranges.insert(range(u32::MAX - 1), 1);
    found.affinity_members.insert(MemberKey { service: 2, backend: 7 }, 1);
    let mut layout = Layout::recover(&found);
    let (tables, problems) = layout.lay_out(&desired(5, 1));
    let ids: BTreeSet<u32> = tables.v4.services.values().map(|row| row.id).collect();
    assert_eq!((ids, problems.len()), ((3..8).collect(), 0));
}

/// A node with two Pod CIDRs for each pair of numbers, at the addresses with these last bytes.
fn nodes(ends: &[[u8; 2]]) -> Desired {
    let mut desired = Desired::default();
    for (number, [v4, v6]) in (0_u8..).zip(ends.iter().copied()) {
        let name = format!("node-{number}");
        for range in [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")] {
            desired.routes.insert(range.parse().unwrap(), Target::RemotePods(name.clone()));
        }
        let mut ipv6 = [0; 16];
        (ipv6[0], ipv6[15]) = (0xfd, v6);
        let tunnel = Tunnel {
            ipv4: Some([192, 0, 2, v4].into()),
            ipv6: Some(ipv6.into()),
            mac: [2, 0, 0, 0, 0, number],
            path_ipv4: Path::Overlay(Why::Chosen),
            path_ipv6: Path::Overlay(Why::Chosen),
        };
        desired.tunnels.insert(name, tunnel);
    }
    desired
}

/// E20: nodes exchange their addresses between two snapshots. Each Pod CIDR leads to where its node is now, and who speaks
/// from there is believed.
#[test]
fn e20_nodes_may_exchange_addresses() {
    let mut layout = Layout::default();
    let stories: [&[[u8; 2]]; 6] = [
        &[[1, 1], [2, 2], [3, 3]],
        &[[2, 2], [1, 1], [3, 3]],
        &[[1, 2], [2, 1], [3, 3]],
        &[[3, 3], [1, 1], [2, 2]],
        &[[3, 1], [1, 2], [2, 3]],
        &[[3, 1], [1, 2], [2, 3]],
    ];
    // The planner makes them anew only where a node's Pod CIDRs change.
    let routes = nodes(stories[0]).routes;
    for ends in stories {
        let desired = Desired { routes: routes.clone(), ..nodes(ends) };
        let (tables, problems) = layout.lay_out(&desired);
        assert_eq!((problems.len(), tables.nodes.len()), (0, 3));
        for (number, [v4, v6]) in (0_u8..).zip(ends.iter().copied()) {
            let slot = |rows: Vec<u16>| u32::from(*rows.first().expect("a route"));
            let to_v4 = tables.v4.routes.iter().filter(|(key, _)| key.addr == [10, 244, number, 0]);
            let to_v6 = tables.v6.routes.iter().filter(|(key, _)| key.addr[7] == number);
            let slots = [
                slot(to_v4.map(|(_, row)| row.node_slot).collect()),
                slot(to_v6.map(|(_, row)| row.node_slot).collect()),
            ];
            assert_eq!(slots[0], slots[1]);
            let row = &tables.nodes[&slots[0]];
            assert_eq!((row.ipv4[3], row.ipv6[15], row.vtep_mac[5]), (v4, v6, number), "{ends:?}");
            for address in [v4_mapped(row.ipv4), row.ipv6] {
                assert_eq!(tables.node_slots[&address], slots[0], "{ends:?}");
            }
        }
    }
}
