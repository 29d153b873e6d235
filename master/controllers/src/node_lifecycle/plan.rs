//! What follows from what is known of one node. Pure.

use scheduler::{Effect, Taint};

/// The taint of a node that says it is not ready.
pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The taint of a node that is not heard of.
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The taint of a cordoned node.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A kind of pressure: its condition and its taint, which keeps new pods away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Little memory is left.
    Memory,
    /// Little disk is left.
    Disk,
    /// Few process ids are left.
    Pid,
}

impl Pressure {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::Pid];

    /// The condition a node says it with.
    #[must_use]
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }

    /// The key of its taint.
    #[must_use]
    pub fn taint(self) -> &'static str {
        match self {
            Self::Memory => "node.kubernetes.io/memory-pressure",
            Self::Disk => "node.kubernetes.io/disk-pressure",
            Self::Pid => "node.kubernetes.io/pid-pressure",
        }
    }
}

/// `status` of the condition `Ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// `True`.
    True,
    /// `False`: the node says so.
    False,
    /// `Unknown`: it was not heard of.
    Unknown,
    /// There is no such condition yet.
    Unsaid,
}

impl From<&str> for Ready {
    fn from(text: &str) -> Self {
        match text {
            "True" => Self::True,
            "False" => Self::False,
            "" => Self::Unsaid,
            _ => Self::Unknown,
        }
    }
}

/// What is known of a node.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its condition `Ready`.
    pub ready: Ready,
    /// Whether it has been silent for longer than its grace.
    pub silent: bool,
    /// Whether it is cordoned.
    pub cordoned: bool,
    /// Whether more than half of the nodes vanished together.
    pub disrupted: bool,
    /// What it says it is short of.
    pub pressures: &'a [Pressure],
    /// Its taints.
    pub taints: &'a [Taint],
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Set `Ready` to `Unknown`.
    MarkUnknown,
    /// Change the taints this controller owns.
    Taint {
        /// Taints that are missing.
        add: Vec<Taint>,
        /// Taints that no longer hold.
        remove: Vec<Taint>,
    },
}

/// Decides the writes for a node; none where everything is as it should be.
#[must_use]
pub fn plan(facts: &Facts<'_>) -> Vec<Step> {
    if facts.silent && facts.ready != Ready::Unknown {
        return vec![Step::MarkUnknown];
    }
    let wanted = wanted(facts);
    let has = |list: &[Taint], taint: &Taint| {
        list.iter().any(|other| other.key == taint.key && other.effect == taint.effect)
    };
    let add: Vec<Taint> =
        wanted.iter().filter(|taint| !has(facts.taints, taint)).cloned().collect();
    let stale = |taint: &&Taint| {
        let own = matches!(&*taint.key, NOT_READY | UNREACHABLE | UNSCHEDULABLE)
            || Pressure::ALL.iter().any(|pressure| pressure.taint() == &*taint.key);
        own && !has(&wanted, taint)
    };
    let remove: Vec<Taint> = facts.taints.iter().filter(stale).cloned().collect();
    if add.is_empty() && remove.is_empty() {
        return Vec::new();
    }
    vec![Step::Taint { add, remove }]
}

fn wanted(facts: &Facts<'_>) -> Vec<Taint> {
    let taint = |key: &str, effect| Taint { key: key.into(), value: "".into(), effect };
    let mut wanted = Vec::new();
    let trouble = match facts.ready {
        Ready::True => None,
        Ready::False => Some(NOT_READY),
        // A node that has never said anything is on its way.
        Ready::Unsaid => None,
        Ready::Unknown => Some(UNREACHABLE),
    };
    if let Some(key) = trouble {
        wanted.push(taint(key, Effect::NoSchedule));
        // Nobody is evicted because the network broke. A taint that is there
        // stays: removing it would only start its time anew.
        let there = facts.taints.iter().any(|other| &*other.key == key && evicts(other));
        if !(facts.disrupted && facts.ready == Ready::Unknown) || there {
            wanted.push(taint(key, Effect::NoExecute));
        }
    }
    for pressure in facts.pressures {
        wanted.push(taint(pressure.taint(), Effect::NoSchedule));
    }
    if facts.cordoned {
        wanted.push(taint(UNSCHEDULABLE, Effect::NoSchedule));
    }
    wanted
}

/// Whether a taint drives pods away.
pub(super) fn evicts(taint: &Taint) -> bool {
    taint.effect == Effect::NoExecute
}

/// Whether these taints give a node up, which is rate-limited.
pub(super) fn gives_up(taints: &[Taint]) -> bool {
    taints.iter().any(evicts)
}
