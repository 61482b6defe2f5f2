//! The maps of the object: names, types and sizes of [`quilla_abi::map`], and who reads which by family.
//!
//! Only `helper` touches the statics' methods, so that every lookup can be counted.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use quilla_abi::affinity::{Affinity, AffinityKey, MemberKey};
use quilla_abi::backend::Backend;
use quilla_abi::config::Config;
use quilla_abi::counter::{self, Counter};
use quilla_abi::endpoint::{Endpoint, Interface};
use quilla_abi::flow::{Flow, FlowKey};
use quilla_abi::fragment::{Fragment, FragmentKey};
use quilla_abi::load::Load;
use quilla_abi::map::capacity;
use quilla_abi::node::{Node, UnderlayAddress};
use quilla_abi::route::Route;
use quilla_abi::service::{Service, ServiceKey, SourceRangeKey};
use quilla_abi::socket::{Frontend, SocketKey};
use quilla_abi::{drop_reason, epoch};
use quilla_ebpf_core::{Family, V4, V6};

use crate::plain::{HOPS as PLAIN_HOPS, Hop, Question};
use crate::scratch::Memory;
use crate::way::{Path, Way};

type Ipv4 = [u8; 4];
type Ipv6 = [u8; 16];

#[map(name = "flows_v4")]
static FLOWS_V4: LruHashMap<FlowKey<Ipv4>, Flow<Ipv4>> = LruHashMap::with_max_entries(capacity::FLOWS, 0);
#[map(name = "flows_v6")]
static FLOWS_V6: LruHashMap<FlowKey<Ipv6>, Flow<Ipv6>> = LruHashMap::with_max_entries(capacity::FLOWS, 0);
#[map(name = "services_v4")]
static SERVICES_V4: HashMap<ServiceKey<Ipv4>, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);
#[map(name = "services_v6")]
static SERVICES_V6: HashMap<ServiceKey<Ipv6>, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);
#[map(name = "slots")]
pub(crate) static SLOTS: Array<u32> = Array::with_max_entries(capacity::SLOTS, 0);
#[map(name = "backends_v4")]
static BACKENDS_V4: Array<Backend<Ipv4>> = Array::with_max_entries(epoch::MAX_BACKENDS, 0);
#[map(name = "backends_v6")]
static BACKENDS_V6: Array<Backend<Ipv6>> = Array::with_max_entries(epoch::MAX_BACKENDS, 0);
#[map(name = "backend_ids_v4")]
static BACKEND_IDS_V4: HashMap<Backend<Ipv4>, u32> =
    HashMap::with_max_entries(epoch::MAX_BACKENDS, BPF_F_NO_PREALLOC);
#[map(name = "backend_ids_v6")]
static BACKEND_IDS_V6: HashMap<Backend<Ipv6>, u32> =
    HashMap::with_max_entries(epoch::MAX_BACKENDS, BPF_F_NO_PREALLOC);
#[map(name = "source_ranges_v4")]
static SOURCE_RANGES_V4: LpmTrie<SourceRange<Ipv4>, u32> =
    LpmTrie::with_max_entries(capacity::SOURCE_RANGES, 0);
#[map(name = "affinity_v4")]
static AFFINITY_V4: LruHashMap<AffinityKey<Ipv4>, Affinity> =
    LruHashMap::with_max_entries(capacity::AFFINITY, 0);
#[map(name = "loads_v4")]
static LOADS_V4: Array<Load> = Array::with_max_entries(epoch::MAX_BACKENDS, 0);
#[map(name = "source_ranges_v6")]
static SOURCE_RANGES_V6: LpmTrie<SourceRange<Ipv6>, u32> =
    LpmTrie::with_max_entries(capacity::SOURCE_RANGES, 0);
#[map(name = "affinity_v6")]
static AFFINITY_V6: LruHashMap<AffinityKey<Ipv6>, Affinity> =
    LruHashMap::with_max_entries(capacity::AFFINITY, 0);
#[map(name = "loads_v6")]
static LOADS_V6: Array<Load> = Array::with_max_entries(epoch::MAX_BACKENDS, 0);
#[map(name = "affinity_members")]
pub(crate) static AFFINITY_MEMBERS: HashMap<MemberKey, u32> =
    HashMap::with_max_entries(capacity::AFFINITY_MEMBERS, BPF_F_NO_PREALLOC);
#[map(name = "endpoints_v4")]
static ENDPOINTS_V4: HashMap<Ipv4, Endpoint> = HashMap::with_max_entries(epoch::MAX_ENDPOINTS, 0);
#[map(name = "endpoints_v6")]
static ENDPOINTS_V6: HashMap<Ipv6, Endpoint> = HashMap::with_max_entries(epoch::MAX_ENDPOINTS, 0);
#[map(name = "interfaces")]
pub(crate) static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(epoch::MAX_ENDPOINTS, 0);
#[map(name = "nodes")]
pub(crate) static NODES: Array<Node> = Array::with_max_entries(epoch::MAX_NODES, 0);
#[map(name = "node_slots")]
pub(crate) static NODE_SLOTS: HashMap<UnderlayAddress, u32> =
    HashMap::with_max_entries(2 * epoch::MAX_NODES, 0);
#[map(name = "routes_v4")]
static ROUTES_V4: LpmTrie<Ipv4, Route> = LpmTrie::with_max_entries(capacity::ROUTES, 0);
#[map(name = "routes_v6")]
static ROUTES_V6: LpmTrie<Ipv6, Route> = LpmTrie::with_max_entries(capacity::ROUTES, 0);
#[map(name = "epochs")]
pub(crate) static EPOCHS: Array<u32> = Array::with_max_entries(epoch::COUNT, 0);
#[map(name = "config")]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map(name = "drops")]
pub(crate) static DROPS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(drop_reason::COUNT, 0);
#[map(name = "forwards")]
pub(crate) static FORWARDS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(counter::path::COUNT, 0);
#[map(name = "helpers")]
pub(crate) static HELPERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::helper::COUNT, 0);
#[map(name = "fragments_v4")]
static FRAGMENTS_V4: LruHashMap<FragmentKey<Ipv4>, Fragment> =
    LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);
#[map(name = "fragments_v6")]
static FRAGMENTS_V6: LruHashMap<FragmentKey<Ipv6>, Fragment> =
    LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);
#[map(name = "sockets_v4")]
static SOCKETS_V4: LruHashMap<SocketKey<Ipv4>, Frontend<Ipv4>> =
    LruHashMap::with_max_entries(capacity::SOCKETS, 0);
#[map(name = "sockets_v6")]
static SOCKETS_V6: LruHashMap<SocketKey<Ipv6>, Frontend<Ipv6>> =
    LruHashMap::with_max_entries(capacity::SOCKETS, 0);
#[map(name = "scratch_v4")]
static SCRATCH_V4: PerCpuArray<Memory<Ipv4>> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "scratch_v6")]
static SCRATCH_V6: PerCpuArray<Memory<Ipv6>> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "restores")]
pub(crate) static RESTORES: Array<u32> = Array::with_max_entries(epoch::MAX_ENDPOINTS + epoch::MAX_NODES, 0);

#[map(name = "ways")]
pub(crate) static WAYS: PerCpuArray<Way> = PerCpuArray::with_max_entries(epoch::MAX_NODES, 0);

#[map(name = "paths")]
pub(crate) static PATHS: Array<Path> = Array::with_max_entries(epoch::MAX_NODES, 0);

#[map(name = "hops")]
pub(crate) static HOPS: PerCpuArray<Hop> = PerCpuArray::with_max_entries(PLAIN_HOPS, 0);

#[map(name = "question")]
pub(crate) static QUESTION: PerCpuArray<Question> = PerCpuArray::with_max_entries(1, 0);

#[map(name = "answers")]
pub(crate) static ANSWERS: PerCpuArray<Allowance> = PerCpuArray::with_max_entries(capacity::ANSWERS, 0);

/// How many answers of a kind a CPU made in the second that began at a tick.
#[repr(C)]
pub(crate) struct Allowance {
    pub(crate) since: u32,
    pub(crate) spent: u32,
}

/// What follows the length of the prefix in a [`SourceRangeKey`]; the map's own key type has that already.
#[repr(C)]
pub(crate) struct SourceRange<A> {
    pub(crate) id: [u8; 4],
    pub(crate) addr: A,
}

const _: () = assert!(size_of::<SourceRange<Ipv6>>() + 4 == size_of::<SourceRangeKey<Ipv6>>());

/// The maps of a family.
pub(crate) trait Maps: Family {
    fn flows() -> &'static LruHashMap<FlowKey<Self::Addr>, Flow<Self::Addr>>;
    fn services() -> &'static HashMap<ServiceKey<Self::Addr>, Service>;
    fn source_ranges() -> &'static LpmTrie<SourceRange<Self::Addr>, u32>;
    fn affinity() -> &'static LruHashMap<AffinityKey<Self::Addr>, Affinity>;
    fn loads() -> &'static Array<Load>;
    fn backends() -> &'static Array<Backend<Self::Addr>>;
    fn backend_ids() -> &'static HashMap<Backend<Self::Addr>, u32>;
    fn endpoints() -> &'static HashMap<Self::Addr, Endpoint>;
    fn routes() -> &'static LpmTrie<Self::Addr, Route>;
    fn fragments() -> &'static LruHashMap<FragmentKey<Self::Addr>, Fragment>;
    fn sockets() -> &'static LruHashMap<SocketKey<Self::Addr>, Frontend<Self::Addr>>;
    fn memory() -> &'static PerCpuArray<Memory<Self::Addr>>;
}

macro_rules! maps_of {
    ($family:ty, $addr:ty, $flows:ident, $services:ident, $ranges:ident, $affinity:ident, $loads:ident, $backends:ident, $ids:ident, $endpoints:ident, $routes:ident,
     $fragments:ident, $sockets:ident, $scratch:ident) => {
        impl Maps for $family {
            #[inline(always)]
            fn flows() -> &'static LruHashMap<FlowKey<$addr>, Flow<$addr>> {
                &$flows
            }
            #[inline(always)]
            fn services() -> &'static HashMap<ServiceKey<$addr>, Service> {
                &$services
            }
            #[inline(always)]
            fn source_ranges() -> &'static LpmTrie<SourceRange<$addr>, u32> {
                &$ranges
            }
            #[inline(always)]
            fn affinity() -> &'static LruHashMap<AffinityKey<$addr>, Affinity> {
                &$affinity
            }
            #[inline(always)]
            fn loads() -> &'static Array<Load> {
                &$loads
            }
            #[inline(always)]
            fn backends() -> &'static Array<Backend<$addr>> {
                &$backends
            }
            #[inline(always)]
            fn backend_ids() -> &'static HashMap<Backend<$addr>, u32> {
                &$ids
            }
            #[inline(always)]
            fn endpoints() -> &'static HashMap<$addr, Endpoint> {
                &$endpoints
            }
            #[inline(always)]
            fn routes() -> &'static LpmTrie<$addr, Route> {
                &$routes
            }
            #[inline(always)]
            fn fragments() -> &'static LruHashMap<FragmentKey<$addr>, Fragment> {
                &$fragments
            }
            #[inline(always)]
            fn sockets() -> &'static LruHashMap<SocketKey<$addr>, Frontend<$addr>> {
                &$sockets
            }
            #[inline(always)]
            fn memory() -> &'static PerCpuArray<Memory<$addr>> {
                &$scratch
            }
        }
    };
}

maps_of!(
    V4,
    Ipv4,
    FLOWS_V4,
    SERVICES_V4,
    SOURCE_RANGES_V4,
    AFFINITY_V4,
    LOADS_V4,
    BACKENDS_V4,
    BACKEND_IDS_V4,
    ENDPOINTS_V4,
    ROUTES_V4,
    FRAGMENTS_V4,
    SOCKETS_V4,
    SCRATCH_V4
);
maps_of!(
    V6,
    Ipv6,
    FLOWS_V6,
    SERVICES_V6,
    SOURCE_RANGES_V6,
    AFFINITY_V6,
    LOADS_V6,
    BACKENDS_V6,
    BACKEND_IDS_V6,
    ENDPOINTS_V6,
    ROUTES_V6,
    FRAGMENTS_V6,
    SOCKETS_V6,
    SCRATCH_V6
);
