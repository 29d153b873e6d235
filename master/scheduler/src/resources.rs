//! Amounts that nodes offer and pods ask for.

use std::sync::Arc;

/// Amounts of what the scheduler accounts for.
///
/// The same struct holds what a pod asks for, what a node offers and what is
/// taken on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    /// CPU, in millicores (1000 is one core).
    pub cpu_millis: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Local disk, in bytes.
    pub ephemeral_bytes: u64,
    /// Everything else by its name, such as `gpio.board/17`; sorted by name.
    pub extended: Vec<(Arc<str>, u64)>,
}

impl Resources {
    /// The amount of the extended resource `name`.
    #[must_use]
    pub fn extended(&self, name: &str) -> u64 {
        match self.extended.binary_search_by(|(known, _)| known.as_ref().cmp(name)) {
            Ok(at) => self.extended[at].1,
            Err(_) => 0,
        }
    }

    /// Adds `other`, cut to the largest amount there is.
    pub fn add(&mut self, other: &Self) {
        self.cpu_millis = self.cpu_millis.saturating_add(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.saturating_add(other.ephemeral_bytes);
        for (name, amount) in &other.extended {
            match self.extended.binary_search_by(|(known, _)| known.cmp(name)) {
                Ok(at) => self.extended[at].1 = self.extended[at].1.saturating_add(*amount),
                Err(at) => self.extended.insert(at, (Arc::clone(name), *amount)),
            }
        }
    }

    /// Takes `other` away again; what was never added counts as zero.
    pub fn subtract(&mut self, other: &Self) {
        self.cpu_millis = self.cpu_millis.saturating_sub(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.saturating_sub(other.ephemeral_bytes);
        for (name, amount) in &other.extended {
            if let Ok(at) = self.extended.binary_search_by(|(known, _)| known.cmp(name)) {
                self.extended[at].1 = self.extended[at].1.saturating_sub(*amount);
                if self.extended[at].1 == 0 {
                    self.extended.remove(at);
                }
            }
        }
    }

    /// The larger amount of each: what containers that run one after another need.
    pub fn max(&mut self, other: &Self) {
        self.cpu_millis = self.cpu_millis.max(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.max(other.ephemeral_bytes);
        for (name, amount) in &other.extended {
            match self.extended.binary_search_by(|(known, _)| known.cmp(name)) {
                Ok(at) => self.extended[at].1 = self.extended[at].1.max(*amount),
                Err(at) => self.extended.insert(at, (Arc::clone(name), *amount)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(cpu: u64, memory: u64, extended: &[(&str, u64)]) -> Resources {
        let extended = extended.iter().map(|(name, n)| (Arc::from(*name), *n)).collect();
        Resources { cpu_millis: cpu, memory_bytes: memory, ephemeral_bytes: 0, extended }
    }

    #[test]
    fn what_is_added_can_be_taken_away() {
        let start = resources(100, 64, &[("b", 1)]);
        let more = resources(50, 8, &[("a", 2), ("b", 1), ("c", 3)]);
        let mut sum = start.clone();
        sum.add(&more);
        assert_eq!(sum, resources(150, 72, &[("a", 2), ("b", 2), ("c", 3)]));
        sum.subtract(&more);
        assert_eq!(sum, start);
        sum.max(&resources(10, 100, &[("z", 1)]));
        assert_eq!(sum, resources(100, 100, &[("b", 1), ("z", 1)]));
        assert_eq!((sum.extended("b"), sum.extended("nope")), (1, 0));
    }
}
