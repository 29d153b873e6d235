//! Messages that are too large for one packet.
//!
//! The sender splits the message's bytes, keeps at most [`WINDOW`] parts on the
//! way, and goes on when [`PartAckV1`] says how many have arrived without a gap;
//! what is lost is sent again from the first gap. The receiver holds one message
//! at a time, at most [`ASSEMBLED_BYTES_MAX`]. Parts are named by the
//! SHA-256 of the whole, so a reconnect goes on where it stopped and two
//! messages never mix. The hash function comes from the caller: this crate has
//! no cryptography.

use crate::node::PartAckV1;
use crate::set::PartV1;
use crate::{ASSEMBLED_BYTES_MAX, MESSAGE_BYTES_MAX};

/// Bytes of every part but the last.
pub const PART_BYTES: usize = 192 << 10;
/// Parts on the way at once: 1.5 MiB, well below the 4 MiB queue of a connection.
pub const WINDOW: u16 = 8;
/// Most parts of one message.
#[expect(clippy::cast_possible_truncation, reason = "16 MiB by 192 KiB is 86")]
pub const PARTS_MAX: u16 = ASSEMBLED_BYTES_MAX.div_ceil(PART_BYTES) as u16;

/// Computes SHA-256.
pub type Digest = fn(&[u8]) -> [u8; 32];

/// A message being sent in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    sha256: [u8; 32],
    bytes: Vec<u8>,
    n_parts: u16,
    n_have: u16,
    n_sent: u16,
    /// What the last acknowledgement said, be it less.
    latest: u16,
}

/// Why a message cannot be sent in parts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message of {0} bytes is larger than the {ASSEMBLED_BYTES_MAX} that a node takes")]
pub struct TooLarge(pub usize);

/// Whether a message of `n_bytes` has to travel in parts.
#[must_use]
pub const fn needs_parts(n_bytes: usize) -> bool {
    n_bytes > MESSAGE_BYTES_MAX
}

impl Split {
    /// Prepares `bytes` (a whole envelope) for sending in parts.
    ///
    /// # Errors
    /// Where the message is larger than a receiver takes.
    pub fn new(bytes: Vec<u8>, digest: Digest) -> Result<Self, TooLarge> {
        if bytes.len() > ASSEMBLED_BYTES_MAX {
            return Err(TooLarge(bytes.len()));
        }
        let n_parts = u16::try_from(bytes.len().div_ceil(PART_BYTES).max(1))
            .map_err(|_error| TooLarge(bytes.len()))?;
        Ok(Self { sha256: digest(&bytes), bytes, n_parts, n_have: 0, n_sent: 0, latest: 0 })
    }

    /// The next part to send, or `None` while the window is full or all are sent.
    pub fn next_part(&mut self) -> Option<PartV1> {
        if self.n_sent >= self.n_parts || self.n_sent >= self.n_have + WINDOW {
            return None;
        }
        let index = self.n_sent;
        self.n_sent += 1;
        let start = usize::from(index) * PART_BYTES;
        let end = self.bytes.len().min(start + PART_BYTES);
        Some(PartV1 {
            sha256: self.sha256,
            index,
            n_parts: self.n_parts,
            bytes: self.bytes[start..end].to_vec(),
        })
    }

    /// Takes an acknowledgement; true where it opened the window further.
    pub fn acknowledge(&mut self, ack: &PartAckV1) -> bool {
        if ack.sha256 != self.sha256 || ack.n_have > self.n_parts {
            return false;
        }
        self.latest = ack.n_have;
        if ack.n_have <= self.n_have {
            return false;
        }
        self.n_have = ack.n_have;
        self.n_sent = self.n_sent.max(ack.n_have);
        true
    }

    /// Sends again what the receiver lacks, after a time without progress. Only
    /// here an acknowledgement of less than before counts: it may be late, or the
    /// receiver may have forgotten.
    pub fn rewind(&mut self) {
        self.n_have = self.latest;
        self.n_sent = self.latest;
    }
}

/// Puts a message together from its parts.
#[derive(Clone, Debug)]
pub struct Assembly {
    digest: Digest,
    sha256: [u8; 32],
    parts: Vec<Option<Vec<u8>>>,
}

/// What a part led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assembled {
    /// More parts are needed: tell the sender.
    Partial(PartAckV1),
    /// The whole message, as [`crate::envelope::decode_assembled`] reads it.
    Whole(PartAckV1, Vec<u8>),
    /// The part is not one a sender of ours makes, or the whole has another hash.
    Damaged,
}

impl Assembly {
    /// Nothing received yet.
    #[must_use]
    pub fn new(digest: Digest) -> Self {
        Self { digest, sha256: [0; 32], parts: Vec::new() }
    }

    /// Takes a part, in any order. The first of another message replaces what was
    /// collected; any part does where nothing was.
    pub fn take(&mut self, part: &PartV1) -> Assembled {
        let last = part.index.checked_add(1) == Some(part.n_parts);
        let size_fits = if last {
            (1..=PART_BYTES).contains(&part.bytes.len())
        } else {
            part.bytes.len() == PART_BYTES
        };
        if part.n_parts > PARTS_MAX || part.index >= part.n_parts || !size_fits {
            return Assembled::Damaged;
        }
        let n_parts = usize::from(part.n_parts);
        if part.sha256 != self.sha256 || n_parts != self.parts.len() {
            if part.index != 0 && !self.parts.is_empty() {
                return Assembled::Partial(PartAckV1 { sha256: part.sha256, n_have: 0 });
            }
            self.sha256 = part.sha256;
            self.parts = vec![None; n_parts];
        }
        self.parts[usize::from(part.index)].get_or_insert_with(|| part.bytes.clone());
        let n_have = self.parts.iter().take_while(|part| part.is_some()).count();
        let ack = PartAckV1 {
            sha256: self.sha256,
            n_have: u16::try_from(n_have).expect("at most PARTS_MAX"),
        };
        if n_have < n_parts {
            return Assembled::Partial(ack);
        }
        let parts = std::mem::take(&mut self.parts);
        let bytes: Vec<u8> = parts.into_iter().flatten().flatten().collect();
        if (self.digest)(&bytes) == ack.sha256 {
            Assembled::Whole(ack, bytes)
        } else {
            Assembled::Damaged
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands in for SHA-256; the real one is tested with dispatch and the agent.
    fn digest(bytes: &[u8]) -> [u8; 32] {
        let mut state = 0xcbf2_9ce4_8422_2325_u64;
        for byte in bytes {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
        let mut sum = [0; 32];
        sum[..8].copy_from_slice(&state.to_le_bytes());
        sum
    }

    fn message(n_bytes: usize) -> Vec<u8> {
        (0..n_bytes).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[test]
    fn a_split_message_comes_together_over_a_window() {
        let bytes = message(PART_BYTES * 20 + 5);
        let mut split = Split::new(bytes.clone(), digest).unwrap();
        let mut assembly = Assembly::new(digest);
        let mut whole = None;
        for _round in 0..21 {
            let mut on_the_way = 0;
            while let Some(part) = split.next_part() {
                on_the_way += 1;
                match assembly.take(&part) {
                    Assembled::Partial(ack) => assert!(split.acknowledge(&ack) || whole.is_some()),
                    Assembled::Whole(ack, bytes) => {
                        split.acknowledge(&ack);
                        whole = Some(bytes);
                    }
                    Assembled::Damaged => panic!("part {} refused", part.index),
                }
            }
            assert!(on_the_way <= 21);
        }
        assert_eq!(whole, Some(bytes));
    }

    #[test]
    fn the_window_closes_without_acknowledgements_and_a_rewind_opens_it() {
        let mut split = Split::new(message(PART_BYTES * 20), digest).unwrap();
        let sent = std::iter::from_fn(|| split.next_part()).count();
        assert_eq!(sent, usize::from(WINDOW));
        split.rewind();
        assert_eq!(split.next_part().map(|part| part.index), Some(0));
    }

    #[test]
    fn a_receiver_that_forgot_makes_the_sender_start_again() {
        let mut split = Split::new(message(PART_BYTES * 5), digest).unwrap();
        let mut assembly = Assembly::new(digest);
        for _part in 0..3 {
            let part = split.next_part().unwrap();
            let Assembled::Partial(ack) = assembly.take(&part) else { panic!("too early") };
            split.acknowledge(&ack);
        }
        let mut restarted = Assembly::new(digest);
        let Assembled::Partial(ack) = restarted.take(&split.next_part().unwrap()) else {
            panic!("a lone part is not the whole")
        };
        assert!(!split.acknowledge(&ack), "it may be late, so nothing is sent at once");
        assert_eq!(split.next_part().map(|part| part.index), Some(4));
        split.rewind();
        assert_eq!(split.next_part().map(|part| part.index), Some(0));
    }

    #[test]
    fn lost_repeated_and_reordered_parts_do_no_harm() {
        let bytes = message(PART_BYTES * 5);
        let mut split = Split::new(bytes.clone(), digest).unwrap();
        let parts: Vec<PartV1> = std::iter::from_fn(|| split.next_part()).collect();
        let mut assembly = Assembly::new(digest);
        for (index, expected) in [(1, 0), (0, 2), (0, 2), (3, 2), (1, 2), (2, 4), (0, 4), (3, 4)] {
            let ack = PartAckV1 { sha256: digest(&bytes), n_have: expected };
            assert_eq!(assembly.take(&parts[index]), Assembled::Partial(ack), "part {index}");
        }
        assert_eq!(
            assembly.take(&parts[4]),
            Assembled::Whole(PartAckV1 { sha256: digest(&bytes), n_have: 5 }, bytes)
        );
    }

    #[test]
    fn a_part_of_another_message_starts_anew_and_never_mixes() {
        let (first, second) = (message(PART_BYTES * 3), message(PART_BYTES * 3 + 1));
        let parts = |bytes: &[u8]| -> Vec<PartV1> {
            let mut split = Split::new(bytes.to_vec(), digest).unwrap();
            std::iter::from_fn(|| split.next_part()).collect()
        };
        let (first, other) = (parts(&first), parts(&second));
        let mut assembly = Assembly::new(digest);
        assembly.take(&first[0]);
        assert!(matches!(
            assembly.take(&other[1]),
            Assembled::Partial(PartAckV1 { n_have: 0, .. })
        ));
        for part in &other[..3] {
            assembly.take(part);
        }
        assert!(matches!(assembly.take(&other[3]), Assembled::Whole(_, bytes) if bytes == second));
    }

    #[test]
    fn impossible_parts_are_refused() {
        let part = |index, n_parts, n_bytes| PartV1 {
            sha256: [1; 32],
            index,
            n_parts,
            bytes: vec![0; n_bytes],
        };
        for bad in [
            part(0, 0, 1),
            part(3, 3, PART_BYTES),
            part(0, u16::MAX, PART_BYTES),
            part(0, 2, 10),
            part(0, 1, PART_BYTES + 1),
            part(1, 2, 0),
            part(0, 1, 7), // another hash than its content
            part(u16::MAX, u16::MAX, 7),
        ] {
            assert_eq!(Assembly::new(digest).take(&bad), Assembled::Damaged, "{}", bad.index);
        }
        Split::new(vec![0; ASSEMBLED_BYTES_MAX + 1], digest).unwrap_err();
    }
}
