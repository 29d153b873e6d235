//! How well a node that can run a pod suits it.
//!
//! The parts and their aims are kube-scheduler's; every part is 0..=1000 and
//! whole numbers, so that equal input gives equal output on every machine.
//!
//! | part | weight | prefers |
//! |---|---|---|
//! | least allocated | 1 | nodes with the larger share of CPU and memory free |
//! | balanced | 1 | nodes whose shares of CPU and memory in use are alike |
//! | spread | 3 | nodes with fewer pods of the same owner |
//! | taints | 3 | nodes without untolerated `PreferNoSchedule` taints |
//! | images | ¼ | nodes that hold the pod's images |

use crate::demand::{Demand, Effect};
use crate::node::Node;
use crate::resources::Resources;

/// The best value of each part.
pub const PART_MAX: u64 = 1000;
/// What a pod without a CPU request counts as, in millicores; as in Kubernetes.
const CPU_MILLIS_UNSAID: u64 = 100;
/// What a pod without a memory request counts as; as in Kubernetes.
const MEMORY_BYTES_UNSAID: u64 = 200 << 20;
const SHIFT: u32 = 40;

/// What of the score depends on the node alone, worked out once per change of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scale {
    /// Thousandths of the node's CPU in one millicore, times 2⁴⁰.
    cpu: u64,
    /// Thousandths of the node's memory in one KiB, times 2⁴⁰.
    memory: u64,
    cpu_millis: u64,
    memory_kib: u64,
}

impl Scale {
    /// For a node that offers `allocatable`.
    #[must_use]
    pub fn new(allocatable: &Resources) -> Self {
        let cpu_millis = allocatable.cpu_millis.max(1);
        let memory_kib = (allocatable.memory_bytes >> 10).max(1);
        Self {
            cpu: (PART_MAX << SHIFT) / cpu_millis,
            memory: (PART_MAX << SHIFT) / memory_kib,
            cpu_millis,
            memory_kib,
        }
    }

    /// Least-allocated and balanced, together 0..=2000.
    ///
    /// `taken` is what runs there as [`counted`], `asked` what comes in addition.
    #[must_use]
    pub fn resources(&self, taken: (u64, u64), asked: (u64, u64)) -> u64 {
        let cpu = ((taken.0 + asked.0).min(self.cpu_millis) * self.cpu) >> SHIFT;
        let memory = ((taken.1 + asked.1).min(self.memory_kib) * self.memory) >> SHIFT;
        let least = PART_MAX - cpu.midpoint(memory);
        let balanced = PART_MAX - cpu.abs_diff(memory) / 2;
        least + balanced
    }
}

/// What a pod counts as for the score, in millicores and KiB: never nothing, so
/// that pods without requests are spread too.
#[must_use]
pub fn counted(requests: &Resources) -> (u64, u64) {
    let or = |value: u64, unsaid: u64| if value == 0 { unsaid } else { value };
    (
        or(requests.cpu_millis, CPU_MILLIS_UNSAID).min(1 << 40),
        (or(requests.memory_bytes, MEMORY_BYTES_UNSAID) >> 10).min(1 << 40),
    )
}

/// Taints and images, weighed: what does not depend on what runs there.
#[must_use]
pub fn fixed(demand: &Demand, node: &Node) -> u64 {
    let unwanted = node
        .taints
        .iter()
        .filter(|taint| taint.effect == Effect::PreferNoSchedule && !demand.tolerates(taint))
        .count() as u64;
    let taints = 3 * PART_MAX / (1 + unwanted);
    let held = demand.images.iter().filter(|image| node.images.binary_search(image).is_ok());
    let images = held.count() as u64 * (PART_MAX / 4) / (demand.images.len() as u64).max(1);
    taints + images
}

/// Spread, weighed: `here` pods of the owner run on the node, `most` on the
/// node that has most of them.
#[must_use]
pub fn spread(here: u32, most: u32) -> u64 {
    if most == 0 {
        return 0;
    }
    3 * PART_MAX * u64::from(most.saturating_sub(here)) / u64::from(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(cpu_millis: u64, memory_mib: u64) -> Resources {
        Resources { cpu_millis, memory_bytes: memory_mib << 20, ..Resources::default() }
    }

    #[test]
    fn free_and_balanced_nodes_score_higher() {
        let scale = Scale::new(&resources(4000, 1024));
        let asked = counted(&resources(1000, 256));
        assert_eq!(scale.resources((0, 0), asked), 750 + 1000);
        assert_eq!(scale.resources((2000, 512 << 10), asked), 250 + 1000);
        assert_eq!(scale.resources((3000, 0), asked), 375 + 625);
        assert_eq!(scale.resources((9000, 9 << 30), asked), 1000);
        assert_eq!(counted(&Resources::default()), (100, 200 << 10));
    }

    #[test]
    fn spread_falls_with_pods_of_the_owner() {
        assert_eq!((spread(0, 0), spread(0, 2), spread(1, 2), spread(2, 2)), (0, 3000, 1500, 0));
    }
}
