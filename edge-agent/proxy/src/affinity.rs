//! Which endpoint a client stays with, for Services that ask for it.
//!
//! Bounded: where it is full, the entries that are nearest to their end go. An
//! entry goes when its endpoint cannot be reached.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

/// Most entries of all Services together: 1.5 MB.
pub(crate) const ENTRIES_MAX: usize = 16_384;

/// How many go at once where it is full, so that it is not searched every time.
const EVICTED: usize = ENTRIES_MAX / 16;

/// Which port of a Service, and which client.
pub(crate) type Key = (u64, IpAddr);

/// Who stays where, and until when.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    entries: HashMap<Key, (SocketAddr, Instant)>,
}

impl Affinity {
    /// Where the client is to stay.
    pub(crate) fn get(&self, key: Key, now: Instant) -> Option<SocketAddr> {
        self.entries.get(&key).filter(|(_, until)| *until > now).map(|(address, _)| *address)
    }

    /// The client has been connected: it stays for `timeout` from now.
    pub(crate) fn keep(&mut self, key: Key, address: SocketAddr, timeout: Duration, now: Instant) {
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&key) {
            self.make_room(now);
        }
        self.entries.insert(key, (address, now + timeout));
    }

    /// The endpoint cannot be reached.
    pub(crate) fn forget(&mut self, key: Key, address: SocketAddr) {
        if self.entries.get(&key).is_some_and(|(kept, _)| *kept == address) {
            self.entries.remove(&key);
        }
    }

    fn make_room(&mut self, now: Instant) {
        self.entries.retain(|_, (_, until)| *until > now);
        if self.entries.len() < ENTRIES_MAX {
            return;
        }
        let mut ends: Vec<Instant> = self.entries.values().map(|(_, until)| *until).collect();
        let (_, last, _) = ends.select_nth_unstable(EVICTED);
        let last = *last;
        let mut left = EVICTED;
        self.entries.retain(|_, (_, until)| {
            let goes = *until <= last && left > 0;
            left -= usize::from(goes);
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: usize) -> IpAddr {
        IpAddr::from(u32::try_from(n).unwrap().to_be_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_stays_until_it_has_been_silent_for_the_timeout() {
        let mut affinity = Affinity::default();
        let (key, address) = ((1, client(1)), "10.42.1.2:80".parse().unwrap());
        let timeout = Duration::from_secs(10);
        affinity.keep(key, address, timeout, Instant::now());
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(affinity.get(key, Instant::now()), Some(address));
        affinity.keep(key, address, timeout, Instant::now());
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(affinity.get(key, Instant::now()), Some(address), "it slides");
        assert_eq!(affinity.get((2, client(1)), Instant::now()), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(affinity.get(key, Instant::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn it_forgets_what_cannot_be_reached_and_never_grows_beyond_its_bound() {
        let mut affinity = Affinity::default();
        let (a, b) = ("10.42.1.2:80".parse().unwrap(), "10.42.1.3:80".parse().unwrap());
        affinity.keep((1, client(0)), a, Duration::from_secs(10), Instant::now());
        affinity.forget((1, client(0)), b);
        assert!(affinity.get((1, client(0)), Instant::now()).is_some(), "another one failed");
        affinity.forget((1, client(0)), a);
        assert_eq!(affinity.get((1, client(0)), Instant::now()), None);
        for n in 0..ENTRIES_MAX + 5000 {
            let timeout = Duration::from_millis(60_000 + n as u64);
            affinity.keep((1, client(n)), a, timeout, Instant::now());
            assert!(affinity.entries.len() <= ENTRIES_MAX);
        }
        let newest = (1, client(ENTRIES_MAX + 4999));
        assert!(affinity.get(newest, Instant::now()).is_some());
        assert_eq!(affinity.get((1, client(0)), Instant::now()), None, "the oldest went");
    }
}
