//! Names of the maps: the names in the object, of the pins, and in every tool's output.

/// [`crate::flow`], LRU hash.
pub const FLOWS_V4: &str = "flows_v4";
/// [`crate::flow`], LRU hash.
pub const FLOWS_V6: &str = "flows_v6";
/// [`crate::service`], hash.
pub const SERVICES_V4: &str = "services_v4";
/// [`crate::service`], hash.
pub const SERVICES_V6: &str = "services_v6";
/// [`crate::service::SourceRangeKey`] to 1 (`u32`), longest prefix match.
pub const SOURCE_RANGES_V4: &str = "source_ranges_v4";
/// [`crate::service::SourceRangeKey`] to 1 (`u32`), longest prefix match.
pub const SOURCE_RANGES_V6: &str = "source_ranges_v6";
/// [`crate::affinity`], LRU hash.
pub const AFFINITY_V4: &str = "affinity_v4";
/// [`crate::affinity`], LRU hash.
pub const AFFINITY_V6: &str = "affinity_v6";
/// [`crate::affinity::MemberKey`] to 1 (`u32`), hash, shared by both families.
pub const AFFINITY_MEMBERS: &str = "affinity_members";
/// Array of backend ids (`u32`), shared by both families.
pub const SLOTS: &str = "slots";
/// [`crate::backend`], array by id.
pub const BACKENDS_V4: &str = "backends_v4";
/// [`crate::backend`], array by id.
pub const BACKENDS_V6: &str = "backends_v6";
/// [`crate::backend::Backend`] to id (`u32`), hash.
pub const BACKEND_IDS_V4: &str = "backend_ids_v4";
/// [`crate::backend::Backend`] to id (`u32`), hash.
pub const BACKEND_IDS_V6: &str = "backend_ids_v6";
/// [`crate::load`], array by backend id.
pub const LOADS_V4: &str = "loads_v4";
/// [`crate::load`], array by backend id.
pub const LOADS_V6: &str = "loads_v6";
/// Address to [`crate::endpoint::Endpoint`], hash.
pub const ENDPOINTS_V4: &str = "endpoints_v4";
/// Address to [`crate::endpoint::Endpoint`], hash.
pub const ENDPOINTS_V6: &str = "endpoints_v6";
/// ifindex (`u32`) to [`crate::endpoint::Interface`], hash.
pub const INTERFACES: &str = "interfaces";
/// [`crate::node::Node`] by slot, array.
pub const NODES: &str = "nodes";
/// [`crate::node::UnderlayAddress`] to slot (`u32`), hash.
pub const NODE_SLOTS: &str = "node_slots";
/// [`crate::route`], longest prefix match.
pub const ROUTES_V4: &str = "routes_v4";
/// [`crate::route`], longest prefix match.
pub const ROUTES_V6: &str = "routes_v6";
/// [`crate::epoch`], array of `u32`.
pub const EPOCHS: &str = "epochs";
/// [`crate::config`], array of one.
pub const CONFIG: &str = "config";
/// [`crate::counter::Counter`] by drop reason, per-CPU array.
pub const DROPS: &str = "drops";
/// [`crate::counter::Counter`] by path, per-CPU array.
pub const FORWARDS: &str = "forwards";
/// `u64` by helper kind, per-CPU array.
pub const HELPERS: &str = "helpers";
/// [`crate::fragment`], LRU hash.
pub const FRAGMENTS_V4: &str = "fragments_v4";
/// [`crate::fragment`], LRU hash.
pub const FRAGMENTS_V6: &str = "fragments_v6";
/// [`crate::socket`], LRU hash.
pub const SOCKETS_V4: &str = "sockets_v4";
/// [`crate::socket`], LRU hash.
pub const SOCKETS_V6: &str = "sockets_v6";

/// Per-CPU working memory of the slow path; private to a loaded object, never pinned.
pub const SCRATCH_V4: &str = "scratch_v4";
/// The same for IPv6.
pub const SCRATCH_V6: &str = "scratch_v6";
/// When the kernel last asked the flows of an endpoint or a node to restore their replies (E12), by the index of its
/// epoch after [`crate::epoch::ENDPOINTS`]; never pinned.
pub const RESTORES: &str = "restores";
/// How many answers each CPU made this second, per-CPU array: refusals and "too big" to the cluster, then the same to the
/// world; never pinned.
pub const ANSWERS: &str = "answers";

/// Default capacities, in entries. The loader may change those of hashes; arrays are part of the ABI.
pub mod capacity {
    /// Of each `flows_*`.
    pub const FLOWS: u32 = 262_144;
    /// Of each `services_*`.
    pub const SERVICES: u32 = 262_144;
    /// Of `slots`.
    pub const SLOTS: u32 = 2_097_152;
    /// Of each `source_ranges_*`.
    pub const SOURCE_RANGES: u32 = 65_536;
    /// Of each `affinity_*`.
    pub const AFFINITY: u32 = 65_536;
    /// Of `affinity_members`.
    pub const AFFINITY_MEMBERS: u32 = 262_144;
    /// Of each `routes_*`.
    pub const ROUTES: u32 = 32_768;
    /// Of each `fragments_*`.
    pub const FRAGMENTS: u32 = 8_192;
    /// Of each `sockets_*`.
    pub const SOCKETS: u32 = 65_536;
    /// Of `answers`: the kinds that are counted apart.
    pub const ANSWERS: u32 = 4;
}
