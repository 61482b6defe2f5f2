use std::collections::BTreeMap;
use std::net::IpAddr;

use quilla_model::{ObjectName, Reason};

use super::{Layout, MAX_SERVICES};
use crate::desired::{BackendKey, Desired, Frontend, FrontendKey};

fn desired(frontends: u32, backends: u32) -> Desired {
    let backend = |number: u32| BackendKey {
        address: IpAddr::V4((0x0b00_0000 + number).into()),
        port: 8080,
        protocol: 6,
    };
    let backends: Vec<_> = (0..backends).map(backend).collect();
    let frontend = |number: u32| {
        let address = IpAddr::V4((0x0a60_0000 + number).into());
        let frontend = Frontend {
            service: ObjectName::new("test", number.to_string()),
            port_name: String::new(),
            backends: backends.clone(),
            affinity_seconds: 0,
            flags: 0,
        };
        (FrontendKey { address, port: 80, protocol: 6, scope: 0 }, frontend)
    };
    let frontends: BTreeMap<_, _> = (0..frontends).map(frontend).collect();
    Desired { frontends, backends, ..Desired::default() }
}

#[test]
fn what_finds_no_room_is_left_out_and_named_and_the_rest_works() {
    let too_many = u32::try_from(MAX_SERVICES).unwrap() + 3;
    let (tables, problems) = Layout::default().lay_out(&desired(too_many, 1));
    assert_eq!(tables.v4.services.len(), MAX_SERVICES);
    assert_eq!(problems.len(), 3);
    assert!(problems.iter().all(|problem| problem.reason == Reason::Capacity));

    let (tables, problems) = Layout::default().lay_out(&desired(1, 140_000));
    let laid = tables.v4.services.values().next().unwrap();
    assert_eq!((laid.slots.len(), problems.len()), (131_071, 1), "what has an id is served");
}

#[test]
fn a_service_of_a_hundred_thousand_endpoints_can_change_every_round() {
    let mut layout = Layout::default();
    for round in 0..20 {
        let (_, problems) = layout.lay_out(&desired(1, 100_000 + round % 2));
        assert_eq!(problems, [], "round {round}: freed ranges come back in time");
    }
}
