use quilla_model::{Hints, TrafficPolicy};

use super::{Candidate, Place, choose, has_any};
use crate::desired::{BackendKey, Member};

const HERE: Place<'_> = Place { node: "here", zone: Some("z1") };

/// What an endpoint is, in letters: `r`eady, `s`erving, `t`erminating, `l`ocal; then its hints.
fn candidates<'a>(endpoints: &[(&str, Option<&'a Hints>)]) -> Vec<Candidate<'a>> {
    let each = |(index, (letters, hints)): (usize, &(&str, Option<&'a Hints>))| Candidate {
        key: BackendKey { address: [10, 0, 0, u8::try_from(index).unwrap()].into(), port: 80, protocol: 6 },
        ready: letters.contains('r'),
        serving: letters.contains('s'),
        terminating: letters.contains('t'),
        local: letters.contains('l'),
        hints: *hints,
        weight: 1,
    };
    endpoints.iter().enumerate().map(each).collect()
}

fn chosen(candidates: &[Candidate<'_>], policy: TrafficPolicy, place: Place<'_>) -> Vec<usize> {
    let position =
        |member: Member| candidates.iter().position(|candidate| candidate.key == member.backend).unwrap();
    choose(candidates, policy, place).into_iter().map(position).collect()
}

fn hints(nodes: &[&str], zones: &[&str]) -> Hints {
    let strings = |names: &[&str]| names.iter().map(|&name| name.into()).collect();
    Hints { nodes: strings(nodes), zones: strings(zones) }
}

#[test]
fn s10_s11_ready_first_then_serving_and_terminating_then_none() {
    for (endpoints, cluster, local, any) in [
        (&["rs", "rsl"][..], &[0, 1][..], &[1][..], true),
        (&["st", "rs", "stl"], &[1], &[2], true),
        (&["st", "s", "t", "stl"], &[0, 3], &[3], true),
        (&["s", "t", "sl"], &[], &[], false),
        (&["rs", "tl"], &[0], &[], true),
        (&[], &[], &[], false),
    ] {
        let list: Vec<_> = endpoints.iter().map(|&letters| (letters, None)).collect();
        let list = candidates(&list);
        assert_eq!(chosen(&list, TrafficPolicy::Cluster, HERE), cluster, "cluster {endpoints:?}");
        assert_eq!(chosen(&list, TrafficPolicy::Local, HERE), local, "local {endpoints:?}");
        assert_eq!(has_any(&list), any, "S12 {endpoints:?}");
    }
}

#[test]
fn s14_same_node_wins_over_same_zone() {
    let (mine, other) = (hints(&["here"], &["z1"]), hints(&["there"], &["z1"]));
    let list = candidates(&[("rs", Some(&mine)), ("rs", Some(&other))]);
    assert_eq!(chosen(&list, TrafficPolicy::Cluster, HERE), [0]);
    let elsewhere = Place { node: "third", zone: Some("z1") };
    assert_eq!(chosen(&list, TrafficPolicy::Cluster, elsewhere), [0, 1], "no node hint names it: zone");
    let stranger = Place { node: "third", zone: Some("z9") };
    assert_eq!(chosen(&list, TrafficPolicy::Cluster, stranger), [0, 1], "no hint names it: everywhere");
    let nowhere = Place { node: "third", zone: None };
    assert_eq!(chosen(&list, TrafficPolicy::Cluster, nowhere), [0, 1]);
}

#[test]
fn s14_one_ready_endpoint_without_a_hint_disables_the_mode() {
    let (near, far) = (hints(&[], &["z1"]), hints(&[], &["z2"]));
    let zoned = [("rs", Some(&near)), ("rs", Some(&far))];
    assert_eq!(chosen(&candidates(&zoned), TrafficPolicy::Cluster, HERE), [0]);
    let one_without = [zoned[0], zoned[1], ("rs", None)];
    assert_eq!(chosen(&candidates(&one_without), TrafficPolicy::Cluster, HERE), [0, 1, 2]);
    let unready_without = [zoned[0], zoned[1], ("s", None)];
    assert_eq!(
        chosen(&candidates(&unready_without), TrafficPolicy::Cluster, HERE),
        [0],
        "only ready ones count"
    );
}

#[test]
fn s10_the_fallback_ignores_topology_and_s15_local_ignores_hints() {
    let far = hints(&["there"], &["z2"]);
    let terminating = candidates(&[("st", Some(&far)), ("st", None)]);
    assert_eq!(chosen(&terminating, TrafficPolicy::Cluster, HERE), [0, 1]);
    let local = candidates(&[("rsl", Some(&far)), ("rs", None)]);
    assert_eq!(chosen(&local, TrafficPolicy::Local, HERE), [0]);
}
