//! What a guest may take of memory: one budget for all linear memories and
//! tables of all its instances.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wasmtime::ResourceLimiter;

/// Most elements of all tables of an instance and its parts; far beyond real
/// programs, which have one for each function they call by pointer.
const TABLE_ELEMENTS_MAX: usize = 1 << 20;
/// Most memories of a component's parts. Each reserves 4 GiB of addresses, of
/// which some 64-bit ARM kernels give a process 512.
const MEMORIES_MAX: usize = 64;
/// Most parts of a component, and tables of them.
const PARTS_MAX: usize = 1000;

/// The bytes that all instances of a guest share.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    taken: Arc<AtomicUsize>,
    max: usize,
}

impl Budget {
    /// `bytes` is 0 for no limit.
    pub(super) fn new(bytes: u64) -> Self {
        let max = if bytes == 0 { u64::MAX } else { bytes };
        Self { taken: Arc::default(), max: usize::try_from(max).unwrap_or(usize::MAX) }
    }

    fn take(&self, bytes: usize) -> bool {
        let next = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.taken.try_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What one instance has taken, given back with it.
#[derive(Debug)]
pub(super) struct Limits {
    budget: Budget,
    taken: usize,
    n_table_elements: usize,
    reached: Option<String>,
}

impl Limits {
    pub(super) fn new(budget: &Budget) -> Self {
        Self { budget: budget.clone(), taken: 0, n_table_elements: 0, reached: None }
    }

    /// What was asked for beyond the limit, if that is why the guest ended.
    pub(super) fn reached(&self) -> Option<String> {
        self.reached.clone()
    }

    fn take(&mut self, bytes: usize) -> bool {
        let taken = self.budget.take(bytes);
        if taken {
            self.taken += bytes;
        }
        taken
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.budget.give_back(self.taken);
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if self.take(desired.saturating_sub(current)) {
            return Ok(true);
        }
        // A guest that asks for more ends, as a process does whose cgroup is full.
        let message = format!(
            "memory limit of {} bytes reached: a memory of {desired} bytes asked for",
            self.budget.max
        );
        self.reached = Some(message.clone());
        Err(wasmtime::Error::msg(message))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let n = self.n_table_elements.saturating_add(more);
        let is_fine = n <= TABLE_ELEMENTS_MAX && self.take(more.saturating_mul(size_of::<usize>()));
        if is_fine {
            self.n_table_elements = n;
        }
        Ok(is_fine)
    }

    fn instances(&self) -> usize {
        PARTS_MAX
    }

    fn tables(&self) -> usize {
        PARTS_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_of_all_memories_together() {
        let budget = Budget::new(100);
        let mut one = Limits::new(&budget);
        assert!(one.memory_growing(0, 60, None).unwrap());
        let mut other = Limits::new(&budget);
        let err = other.memory_growing(0, 41, None).unwrap_err().to_string();
        assert_eq!(err, "memory limit of 100 bytes reached: a memory of 41 bytes asked for");
        assert_eq!(other.reached(), Some(err));
        assert!(one.memory_growing(60, 100, None).unwrap());
        drop(one);
        let mut third = Limits::new(&budget);
        assert!(third.memory_growing(0, 100, None).unwrap());
    }

    #[test]
    fn tables_are_bounded_with_and_without_a_limit() {
        let mut unlimited = Limits::new(&Budget::new(0));
        assert!(unlimited.table_growing(0, TABLE_ELEMENTS_MAX, None).unwrap());
        assert!(!unlimited.table_growing(0, 1, None).unwrap());
        let mut small = Limits::new(&Budget::new(800));
        assert!(small.table_growing(0, 100, None).unwrap());
        assert!(!small.table_growing(100, 101, None).unwrap());
        assert_eq!(small.reached(), None);
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let mut limits = Limits::new(&Budget::new(0));
        assert!(limits.memory_growing(0, 1, None).unwrap());
        limits.memory_growing(0, usize::MAX, None).unwrap_err();
        assert!(!limits.table_growing(0, usize::MAX, None).unwrap());
    }
}
