//! The last table on the disk, so that after a reboot the proxy serves before the
//! agent has spoken.
//!
//! ```text
//! 8 bytes   "PNtable\x01" (the last byte is the version)
//! 8 bytes   length of the body, little-endian
//! 32 bytes  SHA-256 of the body
//! body      postcard of a Table
//! ```
//!
//! Old or new, never half: written beside it, flushed, renamed. What does not read
//! back is as good as missing. It holds no secret, but is nobody else's business.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::control::MESSAGE_BYTES_MAX;
use crate::table::Table;

const MAGIC: &[u8; 8] = b"PNtable\x01";
const HEAD_BYTES: usize = 8 + 8 + 32;

/// Reads the table; `None` where there is none.
///
/// # Errors
/// It cannot be read, or is not what was written.
pub(crate) fn read(path: &Path) -> io::Result<Option<Table>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take((HEAD_BYTES + MESSAGE_BYTES_MAX) as u64).read_to_end(&mut bytes)?;
    decode(&bytes).map(Some)
}

/// Replaces what is there.
///
/// # Errors
/// The disk does not take it; what was there still is.
pub(crate) fn write(path: &Path, table: &Table) -> io::Result<()> {
    let bytes = encode(table)?;
    let beside = path.with_extension("tmp");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn encode(table: &Table) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(table).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
    bytes.extend(MAGIC);
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(ring::digest::digest(&ring::digest::SHA256, &body).as_ref());
    bytes.extend(body);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> io::Result<Table> {
    let damaged = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    let (head, body) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(|| damaged("too short"))?;
    if &head[..8] != MAGIC {
        return Err(damaged("not a table of this version"));
    }
    if head[8..16] != (body.len() as u64).to_le_bytes() {
        return Err(damaged("not as long as it says"));
    }
    if head[16..] != *ring::digest::digest(&ring::digest::SHA256, body).as_ref() {
        return Err(damaged("the checksum does not fit"));
    }
    postcard::from_bytes(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_written_is_read_and_nothing_where_nothing_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        assert_eq!(read(&path).unwrap(), None);
        for generation in [1, 2] {
            let table = Table { generation, ..Table::default() };
            write(&path, &table).unwrap();
            assert_eq!(read(&path).unwrap(), Some(table));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    proptest! {
        #[test]
        fn one_changed_bit_is_noticed(at in 0..48 + 12_usize, bit in 0..8_u32) {
            let mut bytes = encode(&Table { generation: 7, ..Table::default() }).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn garbage_is_an_error(bytes: Vec<u8>) {
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
