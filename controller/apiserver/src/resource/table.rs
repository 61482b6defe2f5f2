//! The table of kinds.
//!
//! Looked up by `Resource::find` and listed by discovery. Invariant: rows of one group and version are adjacent, and a
//! stored kind comes before its aliases.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event as NewEvent;
use k8s_openapi::api::networking::v1::{IPAddress, NetworkPolicy, ServiceCIDR};

use super::decode::typed;
use super::{NameRule, Resource, StatusRule, columns, defaults, event};
use crate::patch::{ListMerge, MergeRules};

use ListMerge::{By, Set};

const POD_MERGE: MergeRules = &[
    ("spec.containers", By("name")),
    ("spec.containers.env", By("name")),
    ("spec.containers.ports", By("containerPort")),
    ("spec.containers.volumeMounts", By("mountPath")),
    ("spec.containers.volumeDevices", By("devicePath")),
    ("spec.initContainers", By("name")),
    ("spec.initContainers.env", By("name")),
    ("spec.initContainers.ports", By("containerPort")),
    ("spec.initContainers.volumeMounts", By("mountPath")),
    ("spec.initContainers.volumeDevices", By("devicePath")),
    ("spec.ephemeralContainers", By("name")),
    ("spec.ephemeralContainers.env", By("name")),
    ("spec.ephemeralContainers.volumeMounts", By("mountPath")),
    ("spec.volumes", By("name")),
    ("spec.imagePullSecrets", By("name")),
    ("spec.hostAliases", By("ip")),
    ("spec.topologySpreadConstraints", By("topologyKey")),
    ("spec.schedulingGates", By("name")),
    ("spec.resourceClaims", By("name")),
    ("status.conditions", By("type")),
    ("status.podIPs", By("ip")),
    ("status.hostIPs", By("ip")),
    ("status.resourceClaimStatuses", By("name")),
];
const CONDITIONS: MergeRules = &[("status.conditions", By("type"))];
const NODE_MERGE: MergeRules =
    &[("spec.podCIDRs", Set), ("status.conditions", By("type")), ("status.addresses", By("type"))];
const SERVICE_MERGE: MergeRules = &[("spec.ports", By("port")), ("status.conditions", By("type"))];
const SERVICE_ACCOUNT_MERGE: MergeRules = &[("secrets", By("name")), ("imagePullSecrets", By("name"))];

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];
const NEW_EVENT_FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "reason",
    "reportingController",
    "type",
];

/// What most kinds are: namespaced, without a status, nothing special. Rows say only where they differ.
const NAMESPACED: Resource = Resource {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status: StatusRule::Absent,
    generation: false,
    name: NameRule::Subdomain,
    fields: &[],
    merge: &[],
    columns: columns::PLAIN,
    required: &[],
    typed: typed::<core::ConfigMap>,
    default: defaults::none,
    alias: None,
};
const CLUSTER: Resource = Resource { namespaced: false, ..NAMESPACED };

pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        status: StatusRule::Separate,
        name: NameRule::Label,
        fields: &["status.phase"],
        merge: CONDITIONS,
        columns: columns::NAMESPACE,
        typed: typed::<core::Namespace>,
        default: defaults::namespace,
        ..CLUSTER
    },
    Resource {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        status: StatusRule::SeparateOnceCreated,
        fields: &["spec.unschedulable"],
        merge: NODE_MERGE,
        columns: columns::NODE,
        typed: typed::<core::Node>,
        default: defaults::node,
        ..CLUSTER
    },
    Resource {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        status: StatusRule::Separate,
        generation: true,
        fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        merge: POD_MERGE,
        columns: columns::POD,
        required: &["spec.containers", "spec.containers[].name", "spec.containers[].image"],
        typed: typed::<core::Pod>,
        default: defaults::pod,
        ..NAMESPACED
    },
    Resource {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        status: StatusRule::Separate,
        name: NameRule::Label1035,
        fields: &["spec.clusterIP", "spec.type"],
        merge: SERVICE_MERGE,
        columns: columns::SERVICE,
        required: &["spec.ports[].port"],
        typed: typed::<core::Service>,
        default: defaults::service,
        ..NAMESPACED
    },
    Resource {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        columns: columns::ENDPOINTS,
        required: &["subsets[].ports[].port"],
        typed: typed::<core::Endpoints>,
        default: defaults::endpoints,
        ..NAMESPACED
    },
    Resource {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        fields: EVENT_FIELDS,
        columns: columns::EVENT,
        typed: typed::<core::Event>,
        ..NAMESPACED
    },
    Resource {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        columns: columns::CONFIG_MAP,
        ..NAMESPACED
    },
    Resource {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        fields: &["type"],
        columns: columns::SECRET,
        typed: typed::<core::Secret>,
        default: defaults::secret,
        ..NAMESPACED
    },
    Resource {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        merge: SERVICE_ACCOUNT_MERGE,
        columns: columns::SERVICE_ACCOUNT,
        typed: typed::<core::ServiceAccount>,
        ..NAMESPACED
    },
    Resource {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        columns: columns::LEASE,
        typed: typed::<Lease>,
        ..NAMESPACED
    },
    Resource {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        generation: true,
        columns: columns::ENDPOINT_SLICE,
        required: &["addressType"],
        typed: typed::<EndpointSlice>,
        default: defaults::endpoint_slice,
        ..NAMESPACED
    },
    Resource {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        fields: NEW_EVENT_FIELDS,
        columns: columns::EVENT,
        typed: typed::<NewEvent>,
        alias: Some(&event::ALIAS),
        ..NAMESPACED
    },
    Resource {
        group: "networking.k8s.io",
        kind: "IPAddress",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        name: NameRule::Address,
        columns: columns::IP_ADDRESS,
        required: &["spec.parentRef"],
        typed: typed::<IPAddress>,
        ..CLUSTER
    },
    Resource {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        generation: true,
        columns: columns::NETWORK_POLICY,
        typed: typed::<NetworkPolicy>,
        default: defaults::network_policy,
        ..NAMESPACED
    },
    Resource {
        group: "networking.k8s.io",
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        status: StatusRule::Separate,
        generation: true,
        merge: CONDITIONS,
        columns: columns::SERVICE_CIDR,
        required: &["spec.cidrs"],
        typed: typed::<ServiceCIDR>,
        ..CLUSTER
    },
];
