//! What the door serves: a table of resources like the master's, far smaller.

use api::resource::{GroupVersionKind, Resource, Storage, Strategy, Subresource, Verb};

const fn core(kind: &'static str) -> GroupVersionKind {
    GroupVersionKind { group: "", version: "v1", kind }
}

const READ: &[Verb] = &[Verb::Get, Verb::List];
const STREAM: &[Verb] = &[Verb::Get, Verb::Create];

const STRATEGY: Strategy = Strategy {
    has_generation: false,
    graceful_deletion: false,
    create_on_update: false,
    unconditional_update: false,
    garbage_collected: false,
};

/// Everything that is served.
pub(super) static RESOURCES: &[Resource] = &[
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
        verbs: READ,
        subresources: &[],
        storage: Storage::Virtual,
        strategy: STRATEGY,
        field_selectors: &[],
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
        verbs: READ,
        subresources: &[],
        storage: Storage::Virtual,
        strategy: STRATEGY,
        field_selectors: &[],
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
        verbs: READ,
        subresources: &[],
        storage: Storage::Virtual,
        strategy: STRATEGY,
        field_selectors: &[],
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
        verbs: &[Verb::Delete, Verb::Get, Verb::List, Verb::Watch],
        subresources: &[
            Subresource { name: "attach", kind: core("PodAttachOptions"), verbs: STREAM },
            Subresource { name: "exec", kind: core("PodExecOptions"), verbs: STREAM },
            Subresource { name: "log", kind: core("Pod"), verbs: &[Verb::Get] },
            Subresource { name: "portforward", kind: core("PodPortForwardOptions"), verbs: STREAM },
        ],
        storage: Storage::Virtual,
        strategy: STRATEGY,
        field_selectors: &[],
    },
];

/// The entry for a resource of the cluster's table; `None` where it is not served here.
pub(super) fn served(resource: &Resource) -> Option<&'static Resource> {
    let is_it = |own: &&Resource| own.group == resource.group && own.plural == resource.plural;
    RESOURCES.iter().find(is_it)
}
