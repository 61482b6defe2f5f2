//! Steps of an apply: rows grouped by map, so that each is a few batch system calls. Made by [`crate::diff()`], carried
//! out by the agent in the order given.

use quilla_abi::affinity::MemberKey;
use quilla_abi::backend::Backend;
use quilla_abi::config::Config;
use quilla_abi::endpoint::{Endpoint, Interface};
use quilla_abi::node::{Node, UnderlayAddress};
use quilla_abi::route::{Route, RouteKey};
use quilla_abi::service::{Service, ServiceKey, SourceRangeKey};

/// A change of one map. The rows of one step may be written in any order; the steps may not be reordered.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A map of IPv4.
    V4(FamilyStep<[u8; 4]>),
    /// A map of IPv6.
    V6(FamilyStep<[u8; 16]>),
    /// `slots`: index and backend id.
    SetSlots(Vec<(u32, u32)>),
    /// `affinity_members`, with the value 1
    SetMembers(Vec<MemberKey>),
    /// `affinity_members`
    RemoveMembers(Vec<MemberKey>),
    /// `interfaces`
    SetInterfaces(Vec<(u32, Interface)>),
    /// `interfaces`
    RemoveInterfaces(Vec<u32>),
    /// `nodes` by slot; a default row frees the slot.
    SetNodes(Vec<(u32, Node)>),
    /// `node_slots`
    SetNodeSlots(Vec<(UnderlayAddress, u32)>),
    /// `node_slots`
    RemoveNodeSlots(Vec<UnderlayAddress>),
    /// `config`
    SetConfig(Config),
    /// `epochs`: add 2 to each of these counters. Two, because the kernel may add one at the same moment, and one of
    /// two racing additions of one would be lost and with it the change it announced.
    Bump(Vec<u32>),
}

/// A change of a map that exists for each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FamilyStep<A> {
    /// `backends_*` by id; a default row frees the id.
    SetBackends(Vec<(u32, Backend<A>)>),
    /// `backend_ids_*`
    SetBackendIds(Vec<(Backend<A>, u32)>),
    /// `backend_ids_*`
    RemoveBackendIds(Vec<Backend<A>>),
    /// `loads_*` by backend id: the backend appears now, for those who ask how new it is.
    StartLoads(Vec<(u32, Appearance)>),
    /// `source_ranges_*`, with the value 1
    SetSourceRanges(Vec<SourceRangeKey<A>>),
    /// `source_ranges_*`
    RemoveSourceRanges(Vec<SourceRangeKey<A>>),
    /// `services_*`
    SetServices(Vec<(ServiceKey<A>, Service)>),
    /// `services_*`
    RemoveServices(Vec<ServiceKey<A>>),
    /// `endpoints_*`
    SetEndpoints(Vec<(A, Endpoint)>),
    /// `endpoints_*`
    RemoveEndpoints(Vec<A>),
    /// `routes_*`
    SetRoutes(Vec<(RouteKey<A>, Route)>),
    /// `routes_*`
    RemoveRoutes(Vec<RouteKey<A>>),
}

/// How a backend comes to be among those that are chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appearance {
    /// Its id is new, so nobody is connected to it.
    First,
    /// It was there, and may have connections.
    Again,
}

impl Step {
    /// The name of the map it changes.
    pub fn map(&self) -> &'static str {
        use quilla_abi::map;
        match self {
            Self::V4(step) => step.map().0,
            Self::V6(step) => step.map().1,
            Self::SetSlots(_) => map::SLOTS,
            Self::SetMembers(_) | Self::RemoveMembers(_) => map::AFFINITY_MEMBERS,
            Self::SetInterfaces(_) | Self::RemoveInterfaces(_) => map::INTERFACES,
            Self::SetNodes(_) => map::NODES,
            Self::SetNodeSlots(_) | Self::RemoveNodeSlots(_) => map::NODE_SLOTS,
            Self::SetConfig(_) => map::CONFIG,
            Self::Bump(_) => map::EPOCHS,
        }
    }

    /// Whether it says that backends appear.
    pub fn starts_loads(&self) -> bool {
        matches!(self, Self::V4(FamilyStep::StartLoads(_)) | Self::V6(FamilyStep::StartLoads(_)))
    }

    /// How many rows it changes.
    pub fn rows(&self) -> usize {
        match self {
            Self::V4(step) => step.rows(),
            Self::V6(step) => step.rows(),
            Self::SetSlots(rows) => rows.len(),
            Self::SetMembers(keys) | Self::RemoveMembers(keys) => keys.len(),
            Self::SetInterfaces(rows) => rows.len(),
            Self::RemoveInterfaces(keys) | Self::Bump(keys) => keys.len(),
            Self::SetNodes(rows) => rows.len(),
            Self::SetNodeSlots(rows) => rows.len(),
            Self::RemoveNodeSlots(keys) => keys.len(),
            Self::SetConfig(_) => 1,
        }
    }
}

impl<A> FamilyStep<A> {
    fn map(&self) -> (&'static str, &'static str) {
        use quilla_abi::map;
        match self {
            Self::SetBackends(_) => (map::BACKENDS_V4, map::BACKENDS_V6),
            Self::SetBackendIds(_) | Self::RemoveBackendIds(_) => (map::BACKEND_IDS_V4, map::BACKEND_IDS_V6),
            Self::StartLoads(_) => (map::LOADS_V4, map::LOADS_V6),
            Self::SetSourceRanges(_) | Self::RemoveSourceRanges(_) => {
                (map::SOURCE_RANGES_V4, map::SOURCE_RANGES_V6)
            }
            Self::SetServices(_) | Self::RemoveServices(_) => (map::SERVICES_V4, map::SERVICES_V6),
            Self::SetEndpoints(_) | Self::RemoveEndpoints(_) => (map::ENDPOINTS_V4, map::ENDPOINTS_V6),
            Self::SetRoutes(_) | Self::RemoveRoutes(_) => (map::ROUTES_V4, map::ROUTES_V6),
        }
    }

    fn rows(&self) -> usize {
        match self {
            Self::SetBackends(rows) => rows.len(),
            Self::SetBackendIds(rows) => rows.len(),
            Self::RemoveBackendIds(keys) => keys.len(),
            Self::StartLoads(rows) => rows.len(),
            Self::SetSourceRanges(keys) | Self::RemoveSourceRanges(keys) => keys.len(),
            Self::SetServices(rows) => rows.len(),
            Self::RemoveServices(keys) => keys.len(),
            Self::SetEndpoints(rows) => rows.len(),
            Self::RemoveEndpoints(keys) => keys.len(),
            Self::SetRoutes(rows) => rows.len(),
            Self::RemoveRoutes(keys) => keys.len(),
        }
    }
}
