//! Settings of an [`LmdbStore`](crate::LmdbStore); the defaults suit a board
//! with 512 MB of memory and an SD card.

use std::time::Duration;

/// How a store keeps what it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Keys below these prefixes live in a second database that is never
    /// flushed: they survive the end of the process, and are discarded when the
    /// machine lost power. Kubernetes Events, for example.
    pub volatile_prefixes: Vec<String>,
    /// At most this many volatile objects; the oldest are deleted for new ones.
    pub volatile_objects_max: usize,
    /// Keys below these prefixes live in memory only. Leases, for example.
    pub memory_prefixes: Vec<String>,
    /// How long changes stay known.
    pub retention: Retention,
    /// Memory for the newest changes, from which watchers are served.
    pub ring_bytes_max: usize,
    /// A read transaction ends after about this many bytes, so that it does not
    /// keep pages from being reused; long lists take several.
    pub read_bytes_max: usize,
    /// Size of the memory map of a new database; it grows by itself.
    pub map_bytes_initial: usize,
    /// The map does not grow beyond this; then the store is full.
    pub map_bytes_max: usize,
}

/// When the log forgets its oldest changes: as soon as it has more of them than
/// `changes_max` or `bytes_max`, but none younger than `age_min`, unless it
/// has more bytes than `bytes_limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Transactions kept in the log.
    pub changes_max: u64,
    /// Bytes of log records kept.
    pub bytes_max: u64,
    /// No change younger than this is forgotten. Counted from the start of the
    /// process at the earliest, since a board may have no clock.
    pub age_min: Duration,
    /// Bytes of log records beyond which age does not protect.
    pub bytes_limit: u64,
}

const MIB: usize = 1 << 20;

impl Default for Config {
    fn default() -> Config {
        // A map needs contiguous address space, of which a 32-bit system has 3 GiB.
        let map_mib_max = if cfg!(target_pointer_width = "32") { 1 << 10 } else { 16 << 10 };
        Config {
            volatile_prefixes: Vec::new(),
            volatile_objects_max: 10_000,
            memory_prefixes: Vec::new(),
            retention: Retention::default(),
            ring_bytes_max: 4 * MIB,
            read_bytes_max: MIB,
            map_bytes_initial: 16 * MIB,
            map_bytes_max: map_mib_max * MIB,
        }
    }
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            changes_max: 100_000,
            bytes_max: 64 << 20,
            age_min: Duration::from_secs(300),
            bytes_limit: 256 << 20,
        }
    }
}

/// Where a key is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Durable,
    Volatile,
    Memory,
}

impl Config {
    pub(crate) fn class_of(&self, key: &str) -> Class {
        let within = |prefixes: &[String]| prefixes.iter().any(|prefix| key.starts_with(prefix));
        if within(&self.memory_prefixes) {
            Class::Memory
        } else if within(&self.volatile_prefixes) {
            Class::Volatile
        } else {
            Class::Durable
        }
    }

    /// The classes that may have keys below `prefix`.
    pub(crate) fn classes_below(&self, prefix: &str) -> Vec<Class> {
        let has = |prefixes: &[String]| prefixes.iter().any(|p| p.starts_with(prefix));
        let mut classes = vec![self.class_of(prefix)];
        if has(&self.memory_prefixes) {
            classes.push(Class::Memory);
        }
        if has(&self.volatile_prefixes) {
            classes.push(Class::Volatile);
        }
        classes.sort();
        classes.dedup();
        classes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_the_class_of_its_prefix() {
        let config = Config {
            volatile_prefixes: vec!["/events/".to_owned()],
            memory_prefixes: vec!["/leases/".to_owned(), "/events/heartbeats/".to_owned()],
            ..Config::default()
        };
        for (key, class) in [
            ("/pods/a", Class::Durable),
            ("/events", Class::Durable),
            ("/events/a", Class::Volatile),
            ("/events/heartbeats/a", Class::Memory),
            ("/leases/a", Class::Memory),
        ] {
            assert_eq!(config.class_of(key), class, "{key}");
        }
        for (prefix, classes) in [
            ("", &[Class::Durable, Class::Volatile, Class::Memory][..]),
            ("/pods/", &[Class::Durable]),
            ("/e", &[Class::Durable, Class::Volatile, Class::Memory]),
            ("/events/", &[Class::Volatile, Class::Memory]),
            ("/leases/kube-system/", &[Class::Memory]),
        ] {
            assert_eq!(config.classes_below(prefix), classes, "{prefix}");
        }
    }
}
