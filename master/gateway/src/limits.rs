//! How much of something may be in use at once, in all and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug)]
pub(crate) struct Limit {
    in_all_max: usize,
    per_address_max: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    in_all: usize,
    per_address: HashMap<IpAddr, usize>,
}

/// One use; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limit: Arc<Limit>,
    address: IpAddr,
}

impl Limit {
    pub(crate) fn new(in_all_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { in_all_max, per_address_max, used: Mutex::default() })
    }

    pub(crate) fn try_take(self: &Arc<Self>, address: IpAddr) -> Option<Permit> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let here = used.per_address.get(&address).copied().unwrap_or(0);
        if used.in_all >= self.in_all_max || here >= self.per_address_max {
            return None;
        }
        used.in_all += 1;
        used.per_address.insert(address, here + 1);
        Some(Permit { limit: self.clone(), address })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = self.limit.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.in_all -= 1;
        if let Some(here) = used.per_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                used.per_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_bounded_in_all_and_per_address_and_given_back() {
        let limit = Limit::new(3, 2);
        let [a, b]: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let first = limit.try_take(a);
        let second = limit.try_take(a);
        assert!(first.is_some() && second.is_some());
        assert!(limit.try_take(a).is_none(), "per address");
        let third = limit.try_take(b);
        assert!(third.is_some() && limit.try_take(b).is_none(), "in all");
        drop(second);
        assert!(limit.try_take(a).is_some());
        drop((first, third));
        assert!(limit.used.lock().unwrap().per_address.is_empty());
    }
}
