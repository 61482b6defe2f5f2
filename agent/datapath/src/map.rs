//! The maps, typed: one field per name of [`quilla_abi::map`].
//!
//! The agent turns a plan's steps into calls on these fields. A field's type is the contract with the kernel's side:
//! a map of another shape is refused when [`Maps`] is made.

mod array;
mod counters;
mod raw;
mod table;

use std::os::fd::OwnedFd;

use quilla_abi::affinity::{Affinity, AffinityKey, MemberKey};
use quilla_abi::backend::Backend;
use quilla_abi::config::Config;
use quilla_abi::counter::Counter;
use quilla_abi::endpoint::{Endpoint, Interface};
use quilla_abi::flow::{Flow, FlowKey};
use quilla_abi::fragment::{Fragment, FragmentKey};
use quilla_abi::load::Load;
use quilla_abi::map as name;
use quilla_abi::node::{Node, UnderlayAddress};
use quilla_abi::route::{Route, RouteKey};
use quilla_abi::service::{Service, ServiceKey, SourceRangeKey};
use quilla_abi::socket::{Frontend, SocketKey};

pub use array::ArrayTable;
pub use counters::{Counters, Sum};
pub(crate) use raw::bytes_mut;
pub use table::Table;

use crate::error::Result;

type Ipv4 = [u8; 4];
type Ipv6 = [u8; 16];

/// Declares the struct, the list of names and the constructor from one table.
macro_rules! maps {
    ($($(#[$doc:meta])* $field:ident: $table:ident<$($row:ty),+> = $name:expr,)+) => {
        /// Every pinned map. The private ones of a loaded object are not among them.
        #[derive(Debug)]
        #[allow(missing_docs, reason = "the ABI documents each map under the same name")]
        pub struct Maps {
            $($(#[$doc])* pub $field: $table<$($row),+>,)+
        }

        /// Names of the pinned maps.
        pub(crate) const PINNED: &[&str] = &[$($name),+];

        impl Maps {
            pub(crate) fn new(mut open: impl FnMut(&'static str) -> Result<OwnedFd>) -> Result<Self> {
                Ok(Self { $($field: $table::new($name, open($name)?)?,)+ })
            }
        }
    };
}

maps! {
    flows_v4: Table<FlowKey<Ipv4>, Flow<Ipv4>> = name::FLOWS_V4,
    flows_v6: Table<FlowKey<Ipv6>, Flow<Ipv6>> = name::FLOWS_V6,
    services_v4: Table<ServiceKey<Ipv4>, Service> = name::SERVICES_V4,
    services_v6: Table<ServiceKey<Ipv6>, Service> = name::SERVICES_V6,
    source_ranges_v4: Table<SourceRangeKey<Ipv4>, u32> = name::SOURCE_RANGES_V4,
    source_ranges_v6: Table<SourceRangeKey<Ipv6>, u32> = name::SOURCE_RANGES_V6,
    affinity_v4: Table<AffinityKey<Ipv4>, Affinity> = name::AFFINITY_V4,
    affinity_v6: Table<AffinityKey<Ipv6>, Affinity> = name::AFFINITY_V6,
    affinity_members: Table<MemberKey, u32> = name::AFFINITY_MEMBERS,
    loads_v4: ArrayTable<Load> = name::LOADS_V4,
    loads_v6: ArrayTable<Load> = name::LOADS_V6,
    slots: ArrayTable<u32> = name::SLOTS,
    backends_v4: ArrayTable<Backend<Ipv4>> = name::BACKENDS_V4,
    backends_v6: ArrayTable<Backend<Ipv6>> = name::BACKENDS_V6,
    backend_ids_v4: Table<Backend<Ipv4>, u32> = name::BACKEND_IDS_V4,
    backend_ids_v6: Table<Backend<Ipv6>, u32> = name::BACKEND_IDS_V6,
    endpoints_v4: Table<Ipv4, Endpoint> = name::ENDPOINTS_V4,
    endpoints_v6: Table<Ipv6, Endpoint> = name::ENDPOINTS_V6,
    interfaces: Table<u32, Interface> = name::INTERFACES,
    nodes: ArrayTable<Node> = name::NODES,
    node_slots: Table<UnderlayAddress, u32> = name::NODE_SLOTS,
    routes_v4: Table<RouteKey<Ipv4>, Route> = name::ROUTES_V4,
    routes_v6: Table<RouteKey<Ipv6>, Route> = name::ROUTES_V6,
    epochs: ArrayTable<u32> = name::EPOCHS,
    config: ArrayTable<Config> = name::CONFIG,
    drops: Counters<Counter> = name::DROPS,
    forwards: Counters<Counter> = name::FORWARDS,
    helpers: Counters<u64> = name::HELPERS,
    fragments_v4: Table<FragmentKey<Ipv4>, Fragment> = name::FRAGMENTS_V4,
    fragments_v6: Table<FragmentKey<Ipv6>, Fragment> = name::FRAGMENTS_V6,
    sockets_v4: Table<SocketKey<Ipv4>, Frontend<Ipv4>> = name::SOCKETS_V4,
    sockets_v6: Table<SocketKey<Ipv6>, Frontend<Ipv6>> = name::SOCKETS_V6,
}
