//! The rows of the kernel's maps, as the planner means them or as they were read back.
//!
//! What there may be many of is in maps that are shared between two states, so that comparing them costs what differs.
//! `slots` is here by ranges: only those that Service rows name mean anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use quilla_abi::affinity::MemberKey;
use quilla_abi::backend::Backend;
use quilla_abi::config::Config;
use quilla_abi::endpoint::{Endpoint, Interface};
use quilla_abi::node::{Node, UnderlayAddress};
use quilla_abi::route::{Route, RouteKey};
use quilla_abi::service::{Service, ServiceKey, SourceRangeKey};
use quilla_model::SharedMap;

/// All intent in the kernel. Epochs are not part of it: they say that something changed, not what it is; nor are
/// `loads_*`, which say what happened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    /// The maps of IPv4.
    pub v4: FamilyTables<[u8; 4]>,
    /// The maps of IPv6.
    pub v6: FamilyTables<[u8; 16]>,
    /// `slots`: the ranges that Service rows name, by their first slot; their contents are backend ids.
    pub slots: SharedMap<u32, Arc<[u32]>>,
    /// `affinity_members`
    pub affinity_members: SharedMap<MemberKey, u32>,
    /// `interfaces`, by ifindex.
    pub interfaces: BTreeMap<u32, Interface>,
    /// `nodes` that are not free, by slot.
    pub nodes: BTreeMap<u32, Node>,
    /// `node_slots`
    pub node_slots: BTreeMap<UnderlayAddress, u32>,
    /// `config`
    pub config: Config,
}

/// The maps of one family.
#[derive(Clone, Debug, PartialEq)]
pub struct FamilyTables<A> {
    /// `services_*`
    pub services: SharedMap<ServiceKey<A>, Service>,
    /// `source_ranges_*`
    pub source_ranges: SharedMap<SourceRangeKey<A>, u32>,
    /// `backends_*` that are not free, by id.
    pub backends: SharedMap<u32, Backend<A>>,
    /// `backend_ids_*`
    pub backend_ids: SharedMap<Backend<A>, u32>,
    /// `endpoints_*`
    pub endpoints: BTreeMap<A, Endpoint>,
    /// `routes_*`
    pub routes: SharedMap<RouteKey<A>, Route>,
}

impl<A> Default for FamilyTables<A> {
    fn default() -> Self {
        Self {
            services: SharedMap::new(),
            source_ranges: SharedMap::new(),
            backends: SharedMap::new(),
            backend_ids: SharedMap::new(),
            endpoints: BTreeMap::new(),
            routes: SharedMap::new(),
        }
    }
}

impl Tables {
    /// The backend ids in the slots of a Service row; `None` if the row does not name a whole range.
    pub fn slots_of(&self, row: &Service) -> Option<Arc<[u32]>> {
        if row.slot_count == 0 {
            return Some([].into());
        }
        let count = usize::try_from(row.slot_count).ok()?;
        self.slots.get(&row.slot_base).filter(|slots| slots.len() == count).cloned()
    }
}
