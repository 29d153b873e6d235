//! Archives: named entries in one stream of bytes, each with its checksum. A
//! backup of a cluster is one: the store's own backup and the cluster's keys.
//!
//! All numbers are little-endian. The length of an entry is not known before it
//! is written, so its content comes in pieces.
//!
//! | part | bytes |
//! |---|---|
//! | head | magic (16), version (4) |
//! | entry | 1 (1), name length (2), name, pieces, 0 (4), SHA-256 of name and content (32) |
//! | piece | length, 1 to 1 MiB (4), content |
//! | tail | 2 (1), number of entries (4), SHA-256 of the checksums of all entries (32) |
//!
//! Entries of a cluster's backup: [`STORE_ENTRY`] holds what
//! [`backup::create`](crate::backup::create) writes, and `pki/<file>` each file
//! of the cluster's keys. [`Reader`] and [`Writer`] know neither: they only keep
//! names such that joining one to a folder stays inside it.

use std::io::{self, Read, Write};

use ring::digest::{Context, Digest, SHA256};

/// File in a data folder that says it was made of a backup: nodes then keep what
/// the store does not know until an operator confirms.
pub const RESTORED_FILE: &str = "restored";
/// The entry with the store's own backup.
pub const STORE_ENTRY: &str = "store";
/// What the names of the entries with key files start with.
pub const PKI_PREFIX: &str = "pki/";
/// Most bytes of an entry's name.
pub const NAME_BYTES_MAX: usize = 255;

const MAGIC: &[u8; 16] = b"pinnace-archive\n";
const VERSION: u32 = 1;
const ENTRY: u8 = 1;
const TAIL: u8 = 2;
const PIECE_BYTES_MAX: usize = 1 << 20;
/// A writer collects about this much into a piece.
const PIECE_BYTES: usize = 64 << 10;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream gave no more, for another reason than its end.
    #[error("cannot read the archive at byte {offset}")]
    Read {
        /// Where, from the start of the archive.
        offset: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What was read is no archive, or not a whole one.
    #[error("the archive is damaged at byte {offset}: {detail}: use another one")]
    Damaged {
        /// Where, from the start of the archive.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
    /// It was made by a newer program.
    #[error("the archive has version {version}, this program reads {VERSION}: use a newer one")]
    Version {
        /// The version of the archive.
        version: u32,
    },
}

/// Whether `name` may name an entry: words of `A-Za-z0-9._-`, separated by
/// slashes, none of which is `.` or `..`.
#[must_use]
pub fn is_entry_name(name: &str) -> bool {
    let word = |word: &str| {
        !matches!(word, "" | "." | "..")
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.split('/').all(word)
}

/// A SHA-256 in the making.
#[derive(Clone)]
struct Checksum(Context);

impl Checksum {
    fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self) -> Digest {
        self.0.finish()
    }
}

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checksum")
    }
}

/// Writes an archive.
///
/// ```
/// use std::io::Write;
/// let mut writer = pinnace_store::archive::Writer::new(Vec::new())?;
/// writer.entry("pki/ca.crt", |out| out.write_all(b"the certificate"))?;
/// let bytes = writer.finish()?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    n_entries: u32,
    all: Checksum,
}

impl<W: Write> Writer<W> {
    /// Starts an archive on `out`.
    ///
    /// # Errors
    /// When `out` takes no bytes.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        Ok(Self { out, n_entries: 0, all: Checksum::new() })
    }

    /// Writes the entry `name`, whose content is what `content` writes.
    ///
    /// After an error the archive is incomplete, and a reader says so.
    ///
    /// # Errors
    /// When `content` fails or the stream does, or `name` is no name for an entry.
    pub fn entry<E: From<io::Error>>(
        &mut self,
        name: &str,
        content: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        if !is_entry_name(name) {
            let text = format!("\"{name}\" cannot name an entry of an archive");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text).into());
        }
        let length = u16::try_from(name.len()).expect("a name has at most 255 bytes");
        self.out.write_all(&[ENTRY])?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(name.as_bytes())?;
        let mut checksum = Checksum::new();
        checksum.update(name.as_bytes());
        let mut pieces = Pieces { out: &mut self.out, piece: Vec::new(), checksum };
        content(&mut pieces)?;
        pieces.write_piece()?;
        let checksum = pieces.checksum.finish();
        self.out.write_all(&0u32.to_le_bytes())?;
        self.out.write_all(checksum.as_ref())?;
        self.all.update(checksum.as_ref());
        self.n_entries += 1;
        Ok(())
    }

    /// Ends the archive and flushes it.
    ///
    /// # Errors
    /// When the stream takes no more.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[TAIL])?;
        self.out.write_all(&self.n_entries.to_le_bytes())?;
        self.out.write_all(self.all.finish().as_ref())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// The content of one entry on its way out.
struct Pieces<'a, W> {
    out: &'a mut W,
    piece: Vec<u8>,
    checksum: Checksum,
}

impl<W: Write> Pieces<'_, W> {
    fn write_piece(&mut self) -> io::Result<()> {
        for piece in self.piece.chunks(PIECE_BYTES_MAX) {
            let length = u32::try_from(piece.len()).expect("a piece has at most 1 MiB");
            self.out.write_all(&length.to_le_bytes())?;
            self.out.write_all(piece)?;
        }
        self.checksum.update(&self.piece);
        self.piece.clear();
        Ok(())
    }
}

impl<W: Write> Write for Pieces<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.write_piece()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_piece()?;
        self.out.flush()
    }
}

/// Reads an archive, entry by entry. Unbuffered: give it a
/// [`BufReader`](io::BufReader).
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    offset: u64,
    n_entries: u32,
    all: Checksum,
    at: At,
}

// One of these a reader: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum At {
    /// An entry or the tail follows.
    Between,
    /// `left` bytes of a piece follow, then another piece or the end of the entry.
    Inside { left: usize, checksum: Checksum },
    /// Nothing follows.
    End,
}

impl<R: Read> Reader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// When `input` is no archive that this program reads.
    pub fn new(input: R) -> Result<Self, ArchiveError> {
        let all = Checksum::new();
        let mut reader = Self { input, offset: 0, n_entries: 0, all, at: At::Between };
        if &reader.take::<16>()? != MAGIC {
            return Err(ArchiveError::Damaged {
                offset: 0,
                detail: "it is not a backup of a Pinnace cluster".to_owned(),
            });
        }
        match u32::from_le_bytes(reader.take()?) {
            VERSION => Ok(reader),
            version => Err(ArchiveError::Version { version }),
        }
    }

    /// The name of the next entry, whose content [`Reader::content`] then reads;
    /// `None` behind the last. What is left of the entry before is read and checked.
    ///
    /// # Errors
    /// When the archive is damaged, or its stream fails.
    pub fn next_entry(&mut self) -> Result<Option<String>, ArchiveError> {
        let mut rest = [0; 8192];
        while self.read_content(&mut rest)? > 0 {}
        if matches!(self.at, At::End) {
            return Ok(None);
        }
        match self.take()? {
            [ENTRY] => {}
            [TAIL] => return self.read_tail().map(|()| None),
            [other] => return Err(self.damaged(format!("no part begins with {other}"))),
        }
        let length = usize::from(u16::from_le_bytes(self.take()?));
        if !(1..=NAME_BYTES_MAX).contains(&length) {
            return Err(self.damaged(format!("a name of {length} bytes")));
        }
        let mut name = vec![0; length];
        self.fill(&mut name)?;
        let mut checksum = Checksum::new();
        checksum.update(&name);
        let name = String::from_utf8(name).ok().filter(|name| is_entry_name(name));
        let name = name.ok_or_else(|| self.damaged("a name that is none".to_owned()))?;
        let left = self.piece_length()?;
        self.at = At::Inside { left, checksum };
        if left == 0 {
            self.end_entry()?;
        }
        Ok(Some(name))
    }

    /// The content of the current entry. It has been checked when a read gives
    /// nothing more; errors carry an [`ArchiveError`].
    pub fn content(&mut self) -> Content<'_, R> {
        Content { reader: self }
    }

    fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let At::Inside { left, .. } = &self.at else { return Ok(0) };
        let wanted = buffer.len().min(*left);
        if wanted == 0 {
            return Ok(0);
        }
        let buffer = &mut buffer[..wanted];
        self.fill(buffer)?;
        let At::Inside { left, checksum } = &mut self.at else { return Ok(0) };
        checksum.update(buffer);
        *left -= wanted;
        if *left == 0 {
            let next = self.piece_length()?;
            match &mut self.at {
                At::Inside { left, .. } if next > 0 => *left = next,
                _ => self.end_entry()?,
            }
        }
        Ok(wanted)
    }

    fn piece_length(&mut self) -> Result<usize, ArchiveError> {
        let length = u32::from_le_bytes(self.take()?) as usize;
        if length > PIECE_BYTES_MAX {
            return Err(self.damaged(format!("a piece of {length} bytes")));
        }
        Ok(length)
    }

    fn end_entry(&mut self) -> Result<(), ArchiveError> {
        let expected: [u8; 32] = self.take()?;
        let At::Inside { checksum, .. } = std::mem::replace(&mut self.at, At::Between) else {
            return Ok(());
        };
        if checksum.finish().as_ref() != expected {
            return Err(self.damaged("the checksum of an entry does not fit".to_owned()));
        }
        self.all.update(&expected);
        self.n_entries += 1;
        Ok(())
    }

    fn read_tail(&mut self) -> Result<(), ArchiveError> {
        let n_entries = u32::from_le_bytes(self.take()?);
        let expected: [u8; 32] = self.take()?;
        if n_entries != self.n_entries || self.all.clone().finish().as_ref() != expected {
            return Err(self.damaged("the tail does not fit what is before".to_owned()));
        }
        self.at = At::End;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], ArchiveError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ArchiveError> {
        self.input.read_exact(bytes).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                return self.damaged("it ends early".to_owned());
            }
            ArchiveError::Read { offset: self.offset, source }
        })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn damaged(&self, detail: String) -> ArchiveError {
        ArchiveError::Damaged { offset: self.offset, detail }
    }
}

/// The content of an entry.
#[derive(Debug)]
pub struct Content<'a, R> {
    reader: &'a mut Reader<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read_content(buffer).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        let long = vec![7u8; 3 * PIECE_BYTES_MAX + 5];
        writer.entry("store", |out| out.write_all(&long)).unwrap();
        writer.entry("pki/empty", |_| io::Result::Ok(())).unwrap();
        let write = |out: &mut dyn Write| {
            out.write_all(b"two ")?;
            out.flush()?;
            out.write_all(b"writes")
        };
        writer.entry("pki/ca.crt", write).unwrap();
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let mut reader = Reader::new(bytes).map_err(|e| e.to_string())?;
        let mut entries = Vec::new();
        while let Some(name) = reader.next_entry().map_err(|e| e.to_string())? {
            let mut content = Vec::new();
            reader.content().read_to_end(&mut content).map_err(|e| e.to_string())?;
            entries.push((name, content));
        }
        assert!(reader.next_entry().unwrap().is_none(), "the end stays the end");
        Ok(entries)
    }

    #[test]
    fn entries_read_back_in_order() {
        let entries = read(&archive()).unwrap();
        assert_eq!(entries[0], ("store".to_owned(), vec![7; 3 * PIECE_BYTES_MAX + 5]));
        assert_eq!(entries[1], ("pki/empty".to_owned(), Vec::new()));
        assert_eq!(entries[2], ("pki/ca.crt".to_owned(), b"two writes".to_vec()));
        assert_eq!(entries.len(), 3);
    }

    #[test]
    fn entries_that_are_skipped_are_checked_too() {
        let bytes = archive();
        let mut reader = Reader::new(bytes.as_slice()).unwrap();
        let mut names = Vec::new();
        while let Some(name) = reader.next_entry().unwrap() {
            names.push(name);
        }
        assert_eq!(names, ["store", "pki/empty", "pki/ca.crt"]);
        let mut damaged = bytes;
        damaged[1000] ^= 1;
        let mut reader = Reader::new(damaged.as_slice()).unwrap();
        reader.next_entry().unwrap();
        let error = reader.next_entry().unwrap_err().to_string();
        assert!(error.contains("the checksum of an entry does not fit"), "{error}");
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_noticed() {
        let mut writer = Writer::new(Vec::new()).unwrap();
        writer.entry("pki/a", |out| out.write_all(b"content")).unwrap();
        let bytes = writer.finish().unwrap();
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "cut at {end}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x41;
            assert!(read(&damaged).is_err(), "changed at {at}");
        }
    }

    #[test]
    fn names_stay_inside_a_folder() {
        for good in ["store", "pki/ca.crt", "a/b/c-1_2"] {
            assert!(is_entry_name(good), "{good}");
        }
        let long = "a".repeat(256);
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a b", "a\0", &long] {
            assert!(!is_entry_name(bad), "{bad}");
            let mut writer = Writer::new(Vec::new()).unwrap();
            assert!(writer.entry(bad, |_| io::Result::Ok(())).is_err(), "{bad}");
        }
    }
}
