//! One copy of every text and demand that many objects share.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use scheduler::Demand;

/// The shared copy of `text`.
///
/// Copies nobody else holds are dropped whenever the pool has doubled.
#[must_use]
pub fn intern(text: &str) -> Arc<str> {
    static POOL: OnceLock<Mutex<Pool<str>>> = OnceLock::new();
    let pool = POOL.get_or_init(Mutex::default);
    let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = pool.known.get(text) {
        return Arc::clone(known);
    }
    pool.insert(Arc::from(text))
}

/// The shared copy of `demand`: the pods of a ReplicaSet have one.
#[must_use]
pub fn intern_demand(demand: Demand) -> Arc<Demand> {
    static POOL: OnceLock<Mutex<Pool<Demand>>> = OnceLock::new();
    let pool = POOL.get_or_init(Mutex::default);
    let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = pool.known.get(&demand) {
        return Arc::clone(known);
    }
    pool.insert(Arc::new(demand))
}

struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: 1024 }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn insert(&mut self, fresh: Arc<T>) -> Arc<T> {
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = (2 * self.known.len()).max(1024);
        }
        self.known.insert(Arc::clone(&fresh));
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_unused_ones_go() {
        let a = intern("some text");
        assert!(Arc::ptr_eq(&a, &intern("some text")));
        let mut pool: Pool<str> = Pool::default();
        let kept = pool.insert(Arc::from("kept"));
        for n in 0..5000 {
            drop(pool.insert(Arc::from(n.to_string())));
        }
        assert!(pool.known.len() <= 1025, "{}", pool.known.len());
        assert!(Arc::ptr_eq(pool.known.get("kept").unwrap(), &kept));
    }
}
