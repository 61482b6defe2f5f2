//! Between the planner's tables and the kernel's maps: carries steps out, reads the maps back, recounts connections.
//!
//! Called by the reconciler only. Invariant: steps are carried out in the order given, and the first failure ends it.

mod apply;
mod dump;
mod recount;

use quilla_abi::Address;
use quilla_abi::backend::Backend;
use quilla_abi::endpoint::Endpoint;
use quilla_abi::load::Load;
use quilla_abi::route::{Route, RouteKey};
use quilla_abi::service::{Service, ServiceKey, SourceRangeKey};
use quilla_datapath::{ArrayTable, Maps, Table};

pub use apply::apply;
pub use dump::{dump, dump_services};
pub use recount::recount;

/// The maps of one family.
struct FamilyMaps<'a, A: Address> {
    services: &'a Table<ServiceKey<A>, Service>,
    source_ranges: &'a Table<SourceRangeKey<A>, u32>,
    loads: &'a ArrayTable<Load>,
    backends: &'a ArrayTable<Backend<A>>,
    backend_ids: &'a Table<Backend<A>, u32>,
    endpoints: &'a Table<A, Endpoint>,
    routes: &'a Table<RouteKey<A>, Route>,
}

fn v4(maps: &Maps) -> FamilyMaps<'_, [u8; 4]> {
    FamilyMaps {
        services: &maps.services_v4,
        source_ranges: &maps.source_ranges_v4,
        loads: &maps.loads_v4,
        backends: &maps.backends_v4,
        backend_ids: &maps.backend_ids_v4,
        endpoints: &maps.endpoints_v4,
        routes: &maps.routes_v4,
    }
}

fn v6(maps: &Maps) -> FamilyMaps<'_, [u8; 16]> {
    FamilyMaps {
        services: &maps.services_v6,
        source_ranges: &maps.source_ranges_v6,
        loads: &maps.loads_v6,
        backends: &maps.backends_v6,
        backend_ids: &maps.backend_ids_v6,
        endpoints: &maps.endpoints_v6,
        routes: &maps.routes_v6,
    }
}

/// How full the maps of intent and of flows are: name, rows, capacity.
pub fn fill(maps: &Maps) -> quilla_datapath::Result<Vec<(&'static str, usize, u32)>> {
    use quilla_abi::map;
    Ok(vec![
        (map::FLOWS_V4, maps.flows_v4.len()?, maps.flows_v4.capacity()),
        (map::FLOWS_V6, maps.flows_v6.len()?, maps.flows_v6.capacity()),
        (map::SERVICES_V4, maps.services_v4.len()?, maps.services_v4.capacity()),
        (map::SERVICES_V6, maps.services_v6.len()?, maps.services_v6.capacity()),
        (map::BACKEND_IDS_V4, maps.backend_ids_v4.len()?, maps.backend_ids_v4.capacity()),
        (map::BACKEND_IDS_V6, maps.backend_ids_v6.len()?, maps.backend_ids_v6.capacity()),
        (map::ENDPOINTS_V4, maps.endpoints_v4.len()?, maps.endpoints_v4.capacity()),
        (map::ENDPOINTS_V6, maps.endpoints_v6.len()?, maps.endpoints_v6.capacity()),
        (map::INTERFACES, maps.interfaces.len()?, maps.interfaces.capacity()),
        (map::NODE_SLOTS, maps.node_slots.len()?, maps.node_slots.capacity()),
        (map::ROUTES_V4, maps.routes_v4.len()?, maps.routes_v4.capacity()),
        (map::ROUTES_V6, maps.routes_v6.len()?, maps.routes_v6.capacity()),
        (map::SOURCE_RANGES_V4, maps.source_ranges_v4.len()?, maps.source_ranges_v4.capacity()),
        (map::SOURCE_RANGES_V6, maps.source_ranges_v6.len()?, maps.source_ranges_v6.capacity()),
        (map::AFFINITY_V4, maps.affinity_v4.len()?, maps.affinity_v4.capacity()),
        (map::AFFINITY_V6, maps.affinity_v6.len()?, maps.affinity_v6.capacity()),
        (map::AFFINITY_MEMBERS, maps.affinity_members.len()?, maps.affinity_members.capacity()),
        (map::FRAGMENTS_V4, maps.fragments_v4.len()?, maps.fragments_v4.capacity()),
        (map::FRAGMENTS_V6, maps.fragments_v6.len()?, maps.fragments_v6.capacity()),
        (map::SOCKETS_V4, maps.sockets_v4.len()?, maps.sockets_v4.capacity()),
        (map::SOCKETS_V6, maps.sockets_v6.len()?, maps.sockets_v6.capacity()),
    ])
}
