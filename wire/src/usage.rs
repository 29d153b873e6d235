//! What a node and the containers on it use, measured while somebody asks.
//!
//! Travels on a stream ([`crate::command::StreamV1::Usage`]) and is kept by nobody
//! for long; no object is made of it.

use serde::{Deserialize, Serialize};

use crate::Uid;

/// Most bytes of an encoded [`UsageV1`] that a master reads: thousands of containers.
pub const USAGE_BYTES_MAX: usize = 256 << 10;

/// The answer of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageV1 {
    /// Over how long the processor was watched, in milliseconds.
    pub window_ms: u64,
    /// The whole node, with what is no container.
    pub node: UseV1,
    /// The pods with a container that runs.
    pub pods: Vec<PodUseV1>,
}

/// What one pod uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodUseV1 {
    /// The pod.
    pub uid: Uid,
    /// Its containers that run.
    pub containers: Vec<ContainerUseV1>,
}

/// What one container uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUseV1 {
    /// The container's name.
    pub name: String,
    /// What it uses.
    pub usage: UseV1,
}

/// Processor and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UseV1 {
    /// Billionths of a processor: 1,000,000,000 is one that is busy all the time.
    pub cpu_nanocores: u64,
    /// Memory that cannot be had back at once, in bytes.
    pub memory_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_and_garbage_does_not() {
        let usage = UsageV1 {
            window_ms: 1000,
            node: UseV1 { cpu_nanocores: 5, memory_bytes: u64::MAX },
            pods: vec![PodUseV1 {
                uid: [7; 16],
                containers: vec![ContainerUseV1 { name: "a".into(), usage: UseV1::default() }],
            }],
        };
        let bytes = postcard::to_stdvec(&usage).unwrap();
        assert_eq!(postcard::from_bytes::<UsageV1>(&bytes), Ok(usage));
        for n in 0..bytes.len() {
            assert!(postcard::from_bytes::<UsageV1>(&bytes[..n]).is_err(), "{n}");
        }
        // A length that lies allocates nothing: postcard reads element by element.
        postcard::from_bytes::<UsageV1>(&[0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]).unwrap_err();
    }
}
