//! The entries of the table of resources.

use super::{GroupVersionKind, Resource, Storage, Strategy, Subresource, Verb};

/// What an ordinary resource answers to, in discovery's order.
pub const ALL_VERBS: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];
/// What a review answers to.
pub const REVIEW_VERBS: &[Verb] = &[Verb::Create];
/// As [`ALL_VERBS`]; a collection of namespaces cannot be deleted at once.
const NAMESPACE_VERBS: &[Verb] =
    &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch];
const OBJECT_VERBS: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];

/// An object without `spec` or with one that only its controller reads.
const PLAIN: Strategy = Strategy {
    has_generation: false,
    graceful_deletion: false,
    create_on_update: false,
    unconditional_update: true,
    garbage_collected: false,
};
/// A `spec` that a controller works towards.
const WORKLOAD: Strategy = Strategy { has_generation: true, garbage_collected: true, ..PLAIN };

const fn kind(group: &'static str, version: &'static str, kind: &'static str) -> GroupVersionKind {
    GroupVersionKind { group, version, kind }
}

const fn own(name: &'static str, kind: GroupVersionKind) -> Subresource {
    Subresource { name, kind, verbs: OBJECT_VERBS }
}

const NAMESPACE: GroupVersionKind = kind("", "v1", "Namespace");
const NODE: GroupVersionKind = kind("", "v1", "Node");
const POD: GroupVersionKind = kind("", "v1", "Pod");
const DEPLOYMENT: GroupVersionKind = kind("apps", "v1", "Deployment");
const REPLICA_SET: GroupVersionKind = kind("apps", "v1", "ReplicaSet");
const SCALE: GroupVersionKind = kind("autoscaling", "v1", "Scale");

/// The table; core first, then by group, each by plural.
pub(super) static RESOURCES: &[Resource] = &[
    Resource {
        group: "",
        version: "v1",
        kind: "ConfigMap",
        list_kind: "ConfigMapList",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        storage: Storage::Durable,
        strategy: PLAIN,
        field_selectors: &[],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Event",
        list_kind: "EventList",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        storage: Storage::Volatile,
        strategy: Strategy { create_on_update: true, ..PLAIN },
        field_selectors: &[
            "involvedObject.apiVersion",
            "involvedObject.fieldPath",
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.resourceVersion",
            "involvedObject.uid",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Namespace",
        list_kind: "NamespaceList",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        categories: &[],
        namespaced: false,
        verbs: NAMESPACE_VERBS,
        subresources: &[
            Subresource { name: "finalize", kind: NAMESPACE, verbs: &[Verb::Update] },
            own("status", NAMESPACE),
        ],
        storage: Storage::Durable,
        strategy: PLAIN,
        field_selectors: &["name", "status.phase"],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Node",
        list_kind: "NodeList",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        categories: &[],
        namespaced: false,
        verbs: ALL_VERBS,
        subresources: &[own("status", NODE)],
        storage: Storage::Durable,
        strategy: PLAIN,
        field_selectors: &["spec.unschedulable"],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Pod",
        list_kind: "PodList",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[
            Subresource {
                name: "binding",
                kind: kind("", "v1", "Binding"),
                verbs: &[Verb::Create],
            },
            Subresource {
                name: "eviction",
                kind: kind("policy", "v1", "Eviction"),
                verbs: &[Verb::Create],
            },
            Subresource { name: "log", kind: POD, verbs: &[Verb::Get] },
            own("status", POD),
        ],
        storage: Storage::Durable,
        strategy: Strategy { has_generation: true, graceful_deletion: true, ..PLAIN },
        field_selectors: &[
            "spec.hostNetwork",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.nominatedNodeName",
            "status.phase",
            "status.podIP",
        ],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "Secret",
        list_kind: "SecretList",
        plural: "secrets",
        singular: "secret",
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        storage: Storage::Durable,
        strategy: PLAIN,
        field_selectors: &["type"],
    },
    Resource {
        group: "",
        version: "v1",
        kind: "ServiceAccount",
        list_kind: "ServiceAccountList",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        storage: Storage::Durable,
        strategy: PLAIN,
        field_selectors: &[],
    },
    Resource {
        group: "apps",
        version: "v1",
        kind: "Deployment",
        list_kind: "DeploymentList",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[own("scale", SCALE), own("status", DEPLOYMENT)],
        storage: Storage::Durable,
        strategy: WORKLOAD,
        field_selectors: &[],
    },
    Resource {
        group: "apps",
        version: "v1",
        kind: "ReplicaSet",
        list_kind: "ReplicaSetList",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[own("scale", SCALE), own("status", REPLICA_SET)],
        storage: Storage::Durable,
        strategy: WORKLOAD,
        field_selectors: &["status.replicas"],
    },
    Resource {
        group: "authentication.k8s.io",
        version: "v1",
        kind: "SelfSubjectReview",
        list_kind: "SelfSubjectReviewList",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        short_names: &[],
        categories: &[],
        namespaced: false,
        verbs: REVIEW_VERBS,
        subresources: &[],
        storage: Storage::Virtual,
        strategy: PLAIN,
        field_selectors: &[],
    },
    Resource {
        group: "authorization.k8s.io",
        version: "v1",
        kind: "SelfSubjectAccessReview",
        list_kind: "SelfSubjectAccessReviewList",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        short_names: &[],
        categories: &[],
        namespaced: false,
        verbs: REVIEW_VERBS,
        subresources: &[],
        storage: Storage::Virtual,
        strategy: PLAIN,
        field_selectors: &[],
    },
    Resource {
        group: "coordination.k8s.io",
        version: "v1",
        kind: "Lease",
        list_kind: "LeaseList",
        plural: "leases",
        singular: "lease",
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        storage: Storage::Memory,
        strategy: Strategy { create_on_update: true, unconditional_update: false, ..PLAIN },
        field_selectors: &[],
    },
];
