//! The unfinished line of a stream, kept where the shim's successor finds it.
//!
//! A batch is copied out of the FIFO, logged, noted here, and only then taken
//! from the FIFO. A shim that was killed in between leaves the note and may or
//! may not leave the batch, so the note holds the unfinished line before the
//! batch and after it, and what the batch was:
//!
//! ```text
//! 8 bytes  hash of the rest    a damaged note counts as none
//! 8 bytes  hash of the batch   4 bytes  its length
//! 4 bytes  length of `before`  before   after
//! ```
//!
//! If the FIFO begins with that batch, it is logged again after `before`: whole
//! lines may come twice, but none is lost or spoilt. If not, the batch was taken,
//! and the line goes on after `after`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Longest note that is read: two pieces of a line.
const NOTE_BYTES_MAX: usize = 2 * crate::log::LINE_BYTES_MAX + HEADER_BYTES;
const HEADER_BYTES: usize = 8 + 8 + 4 + 4;

/// What was noted last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Note {
    before: Vec<u8>,
    after: Vec<u8>,
    batch_hash: u64,
    batch_len: usize,
}

impl Note {
    /// A note made after a batch was logged and before it is taken.
    pub(crate) fn new(before: Vec<u8>, after: &[u8], batch: &[u8]) -> Self {
        Self { before, after: after.to_owned(), batch_hash: hash(batch), batch_len: batch.len() }
    }

    /// How many bytes of the FIFO [`Note::unfinished`] wants to see.
    pub(crate) fn batch_len(&self) -> usize {
        self.batch_len
    }

    /// The unfinished line, given what the FIFO begins with.
    pub(crate) fn unfinished(self, begins_with: &[u8]) -> Vec<u8> {
        let is_there = self.batch_len > 0
            && begins_with.len() >= self.batch_len
            && hash(&begins_with[..self.batch_len]) == self.batch_hash;
        if is_there { self.before } else { self.after }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        bytes.extend_from_slice(&self.batch_hash.to_le_bytes());
        let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        bytes.extend_from_slice(&len(self.batch_len));
        bytes.extend_from_slice(&len(self.before.len()));
        bytes.extend_from_slice(&self.before);
        bytes.extend_from_slice(&self.after);
        let sum = hash(&bytes[8..]);
        bytes[..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (sum, rest) = bytes.split_first_chunk::<8>()?;
        if hash(rest) != u64::from_le_bytes(*sum) {
            return None;
        }
        let (batch_hash, rest) = rest.split_first_chunk::<8>()?;
        let (batch_len, rest) = rest.split_first_chunk::<4>()?;
        let (before_len, rest) = rest.split_first_chunk::<4>()?;
        let before_len = usize::try_from(u32::from_le_bytes(*before_len)).ok()?;
        let (before, after) = rest.split_at_checked(before_len)?;
        Some(Self {
            before: before.to_owned(),
            after: after.to_owned(),
            batch_hash: u64::from_le_bytes(*batch_hash),
            batch_len: usize::try_from(u32::from_le_bytes(*batch_len)).ok()?,
        })
    }
}

/// The file of the notes.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    is_empty: bool,
}

impl Partial {
    /// The file, and what the shim before noted last.
    pub(crate) fn open(path: PathBuf) -> (Self, Note) {
        let read = || {
            use io::Read;
            let mut bytes = Vec::new();
            let limit = u64::try_from(NOTE_BYTES_MAX).unwrap_or(u64::MAX);
            fs::File::open(&path).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
            Note::decode(&bytes)
        };
        let note = read().unwrap_or_default();
        (Self { is_empty: !path.exists(), path }, note)
    }

    /// Notes that `batch` was logged. Costs nothing while lines are whole.
    pub(crate) fn note(&mut self, before: Vec<u8>, after: &[u8], batch: &[u8]) {
        if before.is_empty() && after.is_empty() && self.is_empty {
            return;
        }
        if before.is_empty() && after.is_empty() {
            self.is_empty = fs::remove_file(&self.path).is_ok();
            return;
        }
        self.is_empty = false;
        // tmpfs: a copy in memory. If it fails, a shim killed right now would lose
        // the beginning of one line.
        let _ = replace(&self.path, &Note::new(before, after, batch).encode());
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_added_extension("tmp");
    fs::write(&temporary, bytes)?;
    fs::rename(temporary, path)
}

/// FNV-1a, 64 bits: against a torn write and a chance match, not against anybody.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_goes_on_whether_or_not_the_batch_was_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("partial.out");
        let (mut partial, note) = Partial::open(path.clone());
        assert_eq!((note.batch_len(), note.unfinished(b"anything")), (0, vec![]));
        partial.note(b"ab".to_vec(), b"ef", b"cd\nef");
        for (fifo, expected) in
            [(&b"cd\nefgh\n"[..], "ab"), (b"gh\n", "ef"), (b"cd\ne", "ef"), (b"", "ef")]
        {
            let (_, note) = Partial::open(path.clone());
            assert_eq!(note.batch_len(), 5);
            assert_eq!(note.unfinished(fifo), expected.as_bytes(), "{fifo:?}");
        }
        partial.note(b"ef".to_vec(), b"", b"gh\n");
        let (_, note) = Partial::open(path.clone());
        assert_eq!(note.unfinished(b"ij"), b"");
        partial.note(vec![], b"", b"ij\n");
        assert!(!path.exists());
    }

    #[test]
    fn a_damaged_note_is_none() {
        let good = Note::new(b"ab".to_vec(), b"ef", b"cd\nef").encode();
        assert!(Note::decode(&good).is_some());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            assert_eq!(Note::decode(&bad), None, "byte {at}");
            assert_eq!(Note::decode(&good[..at]), None, "{at} bytes");
        }
    }
}
