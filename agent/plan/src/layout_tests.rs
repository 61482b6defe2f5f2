use std::net::IpAddr;
use std::sync::Arc;

use quilla_abi::epoch;
use quilla_model::{Family, ObjectName, ObjectRef, Reason, TrafficPolicy};

use quilla_abi::map::capacity;

use super::Layout;
use super::set::usable;
use crate::desired::{BackendKey, BackendSet, Desired, Frontend, FrontendKey, FrontendKind, Member, SetKey};

fn desired(frontends: u32, backends: u32) -> Desired {
    let backend = |number: u32| BackendKey {
        address: IpAddr::V4((0x0b00_0000 + number).into()),
        port: 8080,
        protocol: 6,
    };
    let members: Vec<_> = (0..backends).map(backend).map(|backend| Member { backend, weight: 1 }).collect();
    let backends = members.iter().map(|member| (member.backend, 1)).collect();
    let contents = Arc::new(BackendSet { members, ..BackendSet::default() });
    let frontend = |number: u32| {
        let address = IpAddr::V4((0x0a60_0000 + number).into());
        let set = Arc::new(SetKey {
            owner: ObjectRef::new("Service", &ObjectName::new("test", number.to_string())),
            port_name: String::new(),
            protocol: 6,
            family: Family::V4,
            policy: TrafficPolicy::Cluster,
            maglev: false,
        });
        let frontend = Frontend { set: Arc::clone(&set), kind: FrontendKind::ClusterIp, flags: 0 };
        let key = FrontendKey { address, port: 80, protocol: 6, scope: 0 };
        ((key, frontend), (set, Arc::clone(&contents)))
    };
    let (frontends, sets) = (0..frontends).map(frontend).unzip();
    Desired { frontends, sets, backends, ..Desired::default() }
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
