//! The rows of the kernel's maps, as the planner means them or as they were read back.
//!
//! Ordered maps, so that two states are compared in one walk. `slots` has no map of its own here: only the ranges that
//! Service rows name mean anything, and they are kept with their row.

use std::collections::BTreeMap;
use std::sync::Arc;

use quilla_abi::backend::Backend;
use quilla_abi::config::Config;
use quilla_abi::endpoint::{Endpoint, Interface};
use quilla_abi::node::{Node, UnderlayAddress};
use quilla_abi::route::{Route, RouteKey};
use quilla_abi::service::{Service, ServiceKey};

/// All intent in the kernel. Epochs are not part of it: they say that something changed, not what it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    /// The maps of IPv4.
    pub v4: FamilyTables<[u8; 4]>,
    /// The maps of IPv6.
    pub v6: FamilyTables<[u8; 16]>,
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
    /// `services_*` with their slots.
    pub services: BTreeMap<ServiceKey<A>, LaidService>,
    /// `backends_*` that are not free, by id.
    pub backends: BTreeMap<u32, Backend<A>>,
    /// `backend_ids_*`
    pub backend_ids: BTreeMap<Backend<A>, u32>,
    /// `endpoints_*`
    pub endpoints: BTreeMap<A, Endpoint>,
    /// `routes_*`
    pub routes: BTreeMap<RouteKey<A>, Route>,
}

impl<A> Default for FamilyTables<A> {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            backend_ids: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            routes: BTreeMap::new(),
        }
    }
}

/// A Service row and the contents of the slots it names. Invariant: `slots.len() == row.slot_count`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaidService {
    /// The row.
    pub row: Service,
    /// Backend ids.
    pub slots: Arc<[u32]>,
}
