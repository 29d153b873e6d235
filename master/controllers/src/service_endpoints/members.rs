//! Which pods each Service selects, kept up to date change by change, so that
//! neither a pod nor a Service is looked for among thousands of others.
//!
//! A pod finds its Services by its labels: each Service is known under one label
//! that all its pods have. A new or changed selector looks through its namespace
//! once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use api::ObjectKey;

use crate::cache::Cache;
use crate::projection::{Pod, Service, Term, intern};
use crate::runner::Sender;

/// The pods of one Service, by name.
pub(super) type Selected = BTreeMap<String, Arc<Pod>>;

/// The pods of every Service that selects some. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Members {
    services: Cache<Service>,
    pods: Cache<Pod>,
    /// Services with a selector; changed under the lock only, by the handlers.
    selected: Arc<Mutex<HashMap<ObjectKey, Selected>>>,
}

impl Members {
    /// Follows both caches, and asks for a look at each Service whose pods change.
    pub(super) fn follow(
        services: &Cache<Service>,
        pods: &Cache<Pod>,
        queue: &Sender<ObjectKey>,
    ) -> Self {
        let members =
            Self { services: services.clone(), pods: pods.clone(), selected: Arc::default() };
        let (own, sender) = (members.clone(), queue.clone());
        pods.on_change(move |before, after| own.pod_changed(before, after, &sender));
        let (own, sender) = (members.clone(), queue.clone());
        services.on_change(move |before, after| {
            own.service_changed(before, after);
            if let Some(service) = after.or(before) {
                sender.add(service.meta.key.clone());
            }
        });
        members
    }

    /// The pods that a Service selects.
    pub(super) fn of(&self, key: &ObjectKey) -> Vec<Arc<Pod>> {
        let selected = self.selected.lock().unwrap_or_else(PoisonError::into_inner);
        selected.get(key).map(|pods| pods.values().cloned().collect()).unwrap_or_default()
    }

    fn pod_changed(
        &self,
        before: Option<&Arc<Pod>>,
        after: Option<&Arc<Pod>>,
        queue: &Sender<ObjectKey>,
    ) {
        let mut selected = self.selected.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that a Service that is new at the same time sees
        // the pod, or the pod it.
        let of = |pod: Option<&Arc<Pod>>| pod.map(|pod| self.services_of(pod)).unwrap_or_default();
        let same_labels = before
            .zip(after)
            .is_some_and(|(before, after)| before.meta.labels == after.meta.labels);
        let now = of(after);
        let then = if same_labels { Vec::new() } else { of(before) };
        for service in then {
            if let Some(pod) = before
                && let Some(pods) = selected.get_mut(&service)
            {
                pods.remove(&pod.meta.key.name);
                queue.add(service);
            }
        }
        let same = same_labels
            && before.zip(after).is_some_and(|(before, after)| looks_same(before, after));
        for service in now {
            let Some(pod) = after else { continue };
            selected
                .entry(service.clone())
                .or_default()
                .insert(pod.meta.key.name.clone(), Arc::clone(pod));
            if !same {
                queue.add(service);
            }
        }
    }

    fn services_of(&self, pod: &Pod) -> Vec<ObjectKey> {
        let namespace = intern(&pod.meta.key.namespace);
        let mut found = Vec::new();
        for (key, value) in &pod.meta.labels {
            let term = Term::Selects(Arc::clone(&namespace), Arc::clone(key), Arc::clone(value));
            for service in self.services.find(&term) {
                let selects = service.selector.as_ref().is_some_and(|s| pod.meta.selected_by(s));
                if selects {
                    found.push(service.meta.key.clone());
                }
            }
        }
        found
    }

    fn service_changed(&self, before: Option<&Arc<Service>>, after: Option<&Arc<Service>>) {
        let mut selected = self.selected.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(after) = after else {
            if let Some(before) = before {
                selected.remove(&before.meta.key);
            }
            return;
        };
        if before.is_some_and(|before| before.selector == after.selector) {
            return;
        }
        let Some(selector) = &after.selector else {
            selected.remove(&after.meta.key);
            return;
        };
        let pods = self.pods.in_namespace(&after.meta.key.namespace);
        let own = pods.into_iter().filter(|pod| pod.meta.selected_by(selector));
        let own: Selected = own.map(|pod| (pod.meta.key.name.clone(), pod)).collect();
        selected.insert(after.meta.key.clone(), own);
    }
}

/// Whether nothing changed that an endpoint shows.
fn looks_same(before: &Pod, after: &Pod) -> bool {
    let shown = |pod: &Pod| {
        (
            pod.meta.uid.clone(),
            pod.node.clone(),
            pod.ready_since.is_some(),
            pod.meta.is_deleting(),
            pod.is_finished(),
        )
    };
    shown(before) == shown(after) && before.reach == after.reach
}
