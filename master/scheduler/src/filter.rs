//! Which nodes cannot run a pod, and why.
//!
//! The order is kube-scheduler's: the first rule that fails gives the reason,
//! except that every resource that is short is named.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::demand::{Demand, Effect};
use crate::node::{Node, Taint};
use crate::resources::Resources;

/// The taint that `kubectl cordon` stands for.
const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// Why a pod cannot run on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// `spec.unschedulable` is set.
    Unschedulable,
    /// `spec.nodeName`-like selection: labels or affinity do not match.
    Selector,
    /// A taint that the pod does not tolerate.
    Taint(Taint),
    /// The node's condition `Ready` is not `True`.
    NotReady,
    /// The node cannot run OCI containers.
    NoOci,
    /// The node cannot run WASM modules.
    NoWasm,
    /// No image of the pod was built for the node's architecture.
    Platform {
        /// The node's architecture and variant, such as `arm/v7`.
        node: String,
        /// What the image was built for.
        image: String,
    },
    /// The node holds as many pods as it may.
    TooManyPods,
    /// Less of a resource is free than the pod asks for.
    Insufficient {
        /// `cpu`, `memory`, …
        resource: Arc<str>,
        /// What the pod asks for: millicores, bytes or a count.
        requested: u64,
        /// What is free, in the same unit.
        free: u64,
    },
    /// A port of the node that the pod asks for is another pod's.
    HostPort,
    /// A volume that one of the pod's claims is bound to is not on the node.
    VolumeAffinity,
    /// No volume on the node fits a claim, and none is made there.
    NoVolumeToBind,
}

/// What ports of a node are counted as: each node has each of them once.
pub const HOST_PORT: &str = "hostPort/";

/// As the `FailedScheduling` event counts it, in Kubernetes' words where it has them.
impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unschedulable => f.write_str("node(s) were unschedulable"),
            Self::Selector => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::Taint(taint) => {
                write!(f, "node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value)
            }
            Self::NotReady => f.write_str("node(s) were not ready"),
            Self::NoOci => f.write_str("node(s) can't run OCI containers"),
            Self::NoWasm => f.write_str("node(s) can't run WebAssembly"),
            Self::Platform { node, image } => {
                write!(f, "node(s) with platform {node} can't run an image built for {image}")
            }
            Self::TooManyPods => f.write_str("Too many pods"),
            Self::Insufficient { resource, .. } => write!(f, "Insufficient {resource}"),
            Self::HostPort => {
                f.write_str("node(s) didn't have free ports for the requested pod ports")
            }
            Self::VolumeAffinity => {
                f.write_str("node(s) didn't match PersistentVolume's node affinity")
            }
            Self::NoVolumeToBind => {
                f.write_str("node(s) didn't find available persistent volumes to bind")
            }
        }
    }
}

impl Rejection {
    /// The reason for one node, with the amounts.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::Insufficient { resource, requested, free } => {
                let unit = match resource.as_ref() {
                    "cpu" => "m",
                    "memory" | "ephemeral-storage" => " bytes",
                    _ => "",
                };
                format!("Insufficient {resource} ({requested}{unit} requested, {free}{unit} free)")
            }
            Self::Unschedulable => "unschedulable".to_owned(),
            Self::Selector => "labels don't match the pod's node affinity/selector".to_owned(),
            Self::Taint(taint) => format!("untolerated taint {{{}: {}}}", taint.key, taint.value),
            Self::NotReady => "not ready".to_owned(),
            Self::NoOci => "can't run OCI containers".to_owned(),
            Self::NoWasm => "can't run WebAssembly".to_owned(),
            Self::Platform { node, image } => {
                format!("platform {node} can't run an image built for {image}")
            }
            Self::TooManyPods => "too many pods".to_owned(),
            Self::HostPort => "a port that the pod asks for is taken".to_owned(),
            Self::VolumeAffinity => "a volume of the pod is on another node".to_owned(),
            Self::NoVolumeToBind => "no volume here fits the pod's claims".to_owned(),
        }
    }
}

/// What speaks against the node whatever runs on it; `None` for nothing.
#[must_use]
pub fn fixed(demand: &Demand, node: &Node) -> Option<Rejection> {
    if node.unschedulable && !tolerates_cordon(demand) {
        return Some(Rejection::Unschedulable);
    }
    if !selected(demand, node) {
        return Some(Rejection::Selector);
    }
    let keeps_away =
        |taint: &&Taint| taint.effect != Effect::PreferNoSchedule && !demand.tolerates(taint);
    if let Some(taint) = node.taints.iter().find(keeps_away) {
        return Some(Rejection::Taint(taint.clone()));
    }
    if !node.ready && !tolerates_not_ready(demand) {
        return Some(Rejection::NotReady);
    }
    if demand.oci && !node.oci {
        return Some(Rejection::NoOci);
    }
    if demand.wasm && !node.wasm {
        return Some(Rejection::NoWasm);
    }
    platform(demand, node)
}

/// What is short on a node where `used` is taken and `n_pods` run.
#[must_use]
pub fn short(demand: &Demand, node: &Node, used: &Resources, n_pods: u64) -> Vec<Rejection> {
    let mut short = Vec::new();
    if n_pods >= node.pods_max {
        short.push(Rejection::TooManyPods);
    }
    let mut check = |resource: &str, requested: u64, offered: u64, used: u64| {
        let free = offered.saturating_sub(used);
        if requested > 0 && requested > free {
            short.push(Rejection::Insufficient { resource: resource.into(), requested, free });
        }
    };
    let (wanted, offered) = (&demand.requests, &node.allocatable);
    check("cpu", wanted.cpu_millis, offered.cpu_millis, used.cpu_millis);
    check("memory", wanted.memory_bytes, offered.memory_bytes, used.memory_bytes);
    let disk = (wanted.ephemeral_bytes, offered.ephemeral_bytes, used.ephemeral_bytes);
    check("ephemeral-storage", disk.0, disk.1, disk.2);
    let mut has_ports = true;
    for (name, amount) in &wanted.extended {
        if name.starts_with(HOST_PORT) {
            has_ports &= used.extended(name) == 0;
        } else {
            check(name, *amount, offered.extended(name), used.extended(name));
        }
    }
    if !has_ports {
        short.push(Rejection::HostPort);
    }
    short
}

/// Whether [`short`] would find nothing; the same rules without the words.
#[must_use]
pub fn fits(demand: &Demand, node: &Node, used: &Resources, n_pods: u64) -> bool {
    let enough = |wanted: u64, offered: u64, used: u64| {
        wanted == 0 || wanted <= offered.saturating_sub(used)
    };
    let (wanted, offered) = (&demand.requests, &node.allocatable);
    n_pods < node.pods_max
        && enough(wanted.cpu_millis, offered.cpu_millis, used.cpu_millis)
        && enough(wanted.memory_bytes, offered.memory_bytes, used.memory_bytes)
        && enough(wanted.ephemeral_bytes, offered.ephemeral_bytes, used.ephemeral_bytes)
        && wanted.extended.iter().all(|(name, amount)| match name.starts_with(HOST_PORT) {
            true => used.extended(name) == 0,
            false => enough(*amount, offered.extended(name), used.extended(name)),
        })
}

/// Most nodes whose reasons a [`summary`] spells out.
const DETAILS_MAX: usize = 10;
/// Most bytes of a [`summary`]; Kubernetes takes 1,024 for the message of an Event.
const SUMMARY_BYTES_MAX: usize = 1000;

/// The text of a `FailedScheduling` event: counts as kube-scheduler writes them,
/// then the reasons of the first ten nodes.
#[must_use]
pub fn summary(rejections: &[(Arc<str>, Vec<Rejection>)]) -> String {
    if rejections.is_empty() {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for reason in rejections.iter().flat_map(|(_, reasons)| reasons) {
        *counts.entry(reason.to_string()).or_insert(0) += 1;
    }
    let mut counts: Vec<String> =
        counts.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    counts.sort();
    let mut text = format!("0/{} nodes are available: {}.", rejections.len(), counts.join(", "));
    for (n, (node, reasons)) in rejections.iter().enumerate() {
        let reasons: Vec<String> = reasons.iter().map(Rejection::detail).collect();
        let part = format!(" {node}: {}.", reasons.join(", "));
        if n == DETAILS_MAX || text.len() + part.len() > SUMMARY_BYTES_MAX {
            let _ = write!(text, " ({} more nodes)", rejections.len() - n);
            break;
        }
        text.push_str(&part);
    }
    let mut end = text.len().min(SUMMARY_BYTES_MAX + 20);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn tolerates_cordon(demand: &Demand) -> bool {
    demand.tolerates(&Taint {
        key: UNSCHEDULABLE_TAINT.into(),
        value: "".into(),
        effect: Effect::NoSchedule,
    })
}

/// A pod that tolerates everything (`operator: Exists` without a key) may go to
/// a node that is not ready, as in Kubernetes, where only the taint keeps it away.
fn tolerates_not_ready(demand: &Demand) -> bool {
    demand.tolerates(&Taint {
        key: "node.kubernetes.io/not-ready".into(),
        value: "".into(),
        effect: Effect::NoSchedule,
    })
}

fn selected(demand: &Demand, node: &Node) -> bool {
    let has = |(key, value): &(Arc<str>, Arc<str>)| node.label(key) == Some(value);
    if !demand.node_selector.iter().all(has) {
        return false;
    }
    node.meets(&demand.affinity)
}

fn platform(demand: &Demand, node: &Node) -> Option<Rejection> {
    if node.architecture.is_empty() {
        return None;
    }
    let wrong = demand.platforms.iter().find(|platforms| {
        !platforms.is_empty()
            && !platforms.iter().any(|built| built.runs_on(&node.architecture, &node.variant))
    })?;
    let mut own = format!("linux/{}", node.architecture);
    if !node.variant.is_empty() {
        let _ = write!(own, "/{}", node.variant);
    }
    let image: Vec<String> = wrong.iter().take(8).map(ToString::to_string).collect();
    Some(Rejection::Platform { node: own, image: image.join(", ") })
}
