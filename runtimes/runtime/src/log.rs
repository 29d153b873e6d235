//! The log of a container, as the kubelet's tools expect it, one line a line:
//!
//! ```text
//! 2026-03-01T12:00:00.123456789Z stdout F a whole line
//! 2026-03-01T12:00:00.123456789Z stderr P part of a line longer than 16 KiB
//! ```
//!
//! The file is capped: at [`FILE_BYTES_MAX`] it becomes `<name>.1`, replacing
//! the one before, so that a container costs at most twice that on disk.
//! A write that fails (disk full) loses its line, never the container; the next
//! one that succeeds says how many were lost.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest piece of a line in one log line, in bytes, as containerd and CRI-O have it.
pub(crate) const LINE_BYTES_MAX: usize = 16 * 1024;

/// When the file is turned over: the kubelet's default `containerLogMaxSize`, 10 MiB.
pub(crate) const FILE_BYTES_MAX: u64 = 10 << 20;

/// Which of the two standard streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Splits a stream into lines and pieces of lines.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    partial: Vec<u8>,
}

impl Lines {
    /// A stream that begins with the unfinished line of the shim before.
    pub(crate) fn new(stream: Stream, partial: Vec<u8>) -> Self {
        Self { stream, partial }
    }

    /// What came since the last line end.
    pub(crate) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Takes bytes as they come and logs every line that is complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], log: &mut LogFile) {
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.partial.len();
            let piece = &bytes[..bytes.len().min(room)];
            if let Some(end) = piece.iter().position(|b| *b == b'\n') {
                self.partial.extend_from_slice(&piece[..end]);
                self.emit('F', log);
                bytes = &bytes[end + 1..];
            } else {
                self.partial.extend_from_slice(piece);
                bytes = &bytes[piece.len()..];
                // A line of exactly the limit is whole if its end comes next.
                if self.partial.len() == LINE_BYTES_MAX {
                    if bytes.first() == Some(&b'\n') {
                        self.emit('F', log);
                        bytes = &bytes[1..];
                    } else {
                        self.emit('P', log);
                    }
                }
            }
        }
        log.flush();
    }

    /// Logs what is left once the stream has ended.
    pub(crate) fn finish(&mut self, log: &mut LogFile) {
        if !self.partial.is_empty() {
            self.emit('F', log);
            log.flush();
        }
    }

    fn emit(&mut self, tag: char, log: &mut LogFile) {
        log.line(self.stream, tag, &self.partial);
        self.partial.clear();
    }
}

/// The file, opened for appending.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    limit: u64,
    buffer: Vec<u8>,
    n_buffered: u64,
    n_lost: u64,
}

impl LogFile {
    /// Opens or makes the file. One that cannot be opened is tried again at every write.
    pub(crate) fn open(path: &Path, limit: u64) -> Self {
        let mut log = Self {
            path: path.to_owned(),
            file: None,
            size: 0,
            limit,
            buffer: Vec::new(),
            n_buffered: 0,
            n_lost: 0,
        };
        let _ = log.reopen();
        log
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Some(parent) = self.path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn line(&mut self, stream: Stream, tag: char, text: &[u8]) {
        let now = jiff::Timestamp::now();
        // Writing to a Vec cannot fail.
        let _ = write!(self.buffer, "{now:.9} {} {tag} ", stream.word());
        self.buffer.extend_from_slice(text);
        self.buffer.push(b'\n');
        self.n_buffered += 1;
        if self.buffer.len() >= 64 * 1024 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        if self.write_buffer().is_err() {
            self.n_lost += self.n_buffered;
        }
        self.buffer.clear();
        self.n_buffered = 0;
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.size >= self.limit {
            let old = self.path.with_added_extension("1");
            fs::rename(&self.path, old)?;
            self.file = None;
            self.reopen()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if self.n_lost > 0 {
            let now = jiff::Timestamp::now();
            let note = format!(
                "{now:.9} stderr F [pinnace: {} lines lost, the log could not be written]\n",
                self.n_lost
            );
            let mut whole = note.into_bytes();
            whole.append(&mut self.buffer);
            self.buffer = whole;
        }
        if let Err(error) = file.write_all(&self.buffer) {
            // What was written of it would join the next line: take it back.
            let _ = file.set_len(self.size);
            return Err(error);
        }
        self.size += self.buffer.len() as u64;
        self.n_lost = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds chunks and gives back the log without its times.
    fn check(chunks: &[&[u8]], expected: &[(&str, usize)]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/0.log");
        let mut log = LogFile::open(&path, FILE_BYTES_MAX);
        let mut lines = Lines::new(Stream::Stdout, Vec::new());
        for chunk in chunks {
            lines.feed(chunk, &mut log);
        }
        lines.finish(&mut log);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let found: Vec<(String, usize)> = text
            .lines()
            .map(|line| {
                let mut words = line.splitn(4, ' ');
                let time = words.next().unwrap();
                assert_eq!(time.len(), "2026-03-01T12:00:00.123456789Z".len(), "{time}");
                let head = format!("{} {}", words.next().unwrap(), words.next().unwrap());
                (head, words.next().unwrap().len())
            })
            .collect();
        let expected: Vec<(String, usize)> =
            expected.iter().map(|(head, n)| ((*head).to_owned(), *n)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn lines_are_joined_across_reads() {
        check(&[b"a", b"bc\nd", b"\n\n"], &[("stdout F", 3), ("stdout F", 1), ("stdout F", 0)]);
    }

    #[test]
    fn the_last_line_needs_no_end() {
        check(&[b"abc"], &[("stdout F", 3)]);
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let long = vec![b'x'; LINE_BYTES_MAX + 5];
        check(&[&long, b"\n"], &[("stdout P", LINE_BYTES_MAX), ("stdout F", 5)]);
        let mut exact = vec![b'x'; LINE_BYTES_MAX];
        exact.push(b'\n');
        check(&[&exact], &[("stdout F", LINE_BYTES_MAX)]);
    }

    #[test]
    fn the_file_is_turned_over_at_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut log = LogFile::open(&path, 1000);
        let mut lines = Lines::new(Stream::Stderr, Vec::new());
        for n in 0..100 {
            lines.feed(format!("line {n}\n").as_bytes(), &mut log);
        }
        let old = fs::read_to_string(folder.path().join("0.log.1")).unwrap();
        let new = fs::read_to_string(&path).unwrap();
        assert!(old.len() < 1100 && new.len() < 1100, "{} {}", old.len(), new.len());
        assert!(new.ends_with("stderr F line 99\n"), "{new}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn lost_lines_are_counted_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        // A folder in the file's place: nothing can be written.
        fs::create_dir(&path).unwrap();
        let mut log = LogFile::open(&path, 1000);
        let mut lines = Lines::new(Stream::Stdout, Vec::new());
        lines.feed(b"a\nb\n", &mut log);
        fs::remove_dir(&path).unwrap();
        lines.feed(b"c\n", &mut log);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("2 lines lost"), "{text}");
        assert!(text.ends_with("stdout F c\n"), "{text}");
    }
}
