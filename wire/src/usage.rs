//! What a node and the containers on it use, measured while somebody asks.
//!
//! Travels on a stream ([`crate::command::StreamV1::Usage`]) and is kept by nobody
//! for long; no object is made of it.

use serde::{Deserialize, Serialize};

use crate::Uid;

/// Most bytes of an encoded answer that a master reads: thousands of containers, or
/// of other nodes.
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

/// How a node's data plane is, and how it reaches the other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathsV1 {
    /// How traffic gets to the proxy: `sk-lookup`, `tproxy`, `listeners` or `none`.
    pub capture: String,
    /// Why not better; empty where nothing is missing.
    pub degraded: String,
    /// The nodes that were spoken with.
    pub paths: Vec<PathV1>,
}

/// How one node is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathV1 {
    /// The other node.
    pub peer: String,
    /// `quic`, `tls`, `relay` or `none`.
    pub lane: String,
    /// Where it was reached; empty through the master.
    pub remote: String,
    /// Round trip, in microseconds; 0 where unknown.
    pub rtt_us: u32,
    /// Of 10,000 packets, how many were lost.
    pub loss_per_10000: u32,
    /// Bytes sent since the connection began.
    pub tx_bytes: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Since when, in seconds.
    pub age_s: u64,
    /// Why not better; empty for `quic`.
    pub why: String,
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
