//! Reads a log file from some line on, through its turning over, and prints
//! lines as `kubectl logs` shows them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use wire::command::LogsV1;

use super::tail;

/// Bytes read at once.
const CHUNK_BYTES: usize = 32 << 10;

/// A line is never longer than the shim's 16 KiB and its head; anything longer
/// is damage and comes in pieces.
const LINE_BYTES_MAX: usize = 64 << 10;

/// The lines of one run's log.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    /// Files still to be read, the next one last.
    files: Vec<File>,
    rest: Vec<u8>,
}

impl Source {
    /// Opens a log at its beginning, or at its last lines.
    pub(super) fn open(path: &Path, tail_lines: Option<u64>) -> io::Result<Self> {
        let newest = File::open(path)?;
        let mut files = vec![newest];
        if let Ok(older) = File::open(path.with_extension("log.1")) {
            files.push(older);
        }
        if let Some(lines) = tail_lines {
            files = seek_to_tail(files, lines)?;
        }
        Ok(Self { path: path.to_owned(), files, rest: Vec::new() })
    }

    /// Reads on and hands each whole line to `each`, without its line end.
    /// Returns how many bytes were read; 0 at the end, for now.
    pub(super) fn read(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut chunk = [0; CHUNK_BYTES];
        loop {
            let Some(file) = self.files.last_mut() else { return Ok(0) };
            let n = file.read(&mut chunk)?;
            if n > 0 {
                self.rest.extend_from_slice(&chunk[..n]);
                let mut start = 0;
                while let Some(end) = self.rest[start..].iter().position(|byte| *byte == b'\n') {
                    each(&self.rest[start..start + end]);
                    start += end + 1;
                }
                self.rest.drain(..start);
                if self.rest.len() > LINE_BYTES_MAX {
                    each(&self.rest);
                    self.rest.clear();
                }
                return Ok(n);
            }
            if !self.next_file()? {
                return Ok(0);
            }
        }
    }

    /// Goes to the next file, if there is one: the one after it, or the one that
    /// took its place.
    fn next_file(&mut self) -> io::Result<bool> {
        if self.files.len() > 1 {
            self.files.pop();
            return Ok(true);
        }
        let Some(current) = self.files.last() else { return Ok(false) };
        let here = match std::fs::metadata(&self.path) {
            Ok(here) => here,
            // Being turned over, or removed with its pod.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let there = current.metadata()?;
        if (here.dev(), here.ino()) == (there.dev(), there.ino()) {
            return Ok(false);
        }
        // The old file has been read to its end, and only the new one grows now;
        // but what came between the two looks is still to be read.
        let position = self.files[0].stream_position()?;
        if position < there.len() {
            return Ok(true);
        }
        self.files = vec![File::open(&self.path)?];
        Ok(true)
    }
}

/// Moves the files to where the last lines begin; drops the older one if it holds none of them.
fn seek_to_tail(files: Vec<File>, lines: u64) -> io::Result<Vec<File>> {
    let mut kept = Vec::new();
    let mut wanted = lines;
    for mut file in files {
        let found = tail::start_of_last_lines(&mut file, wanted)?;
        file.seek(SeekFrom::Start(found.offset))?;
        kept.push(file);
        wanted -= found.n_lines;
        if wanted == 0 {
            break;
        }
    }
    Ok(kept)
}

/// Turns lines of the file into what is shown.
#[derive(Debug)]
pub(super) struct Printer {
    timestamps: bool,
    since: Option<jiff::Timestamp>,
    left: Option<u64>,
    /// Whether the last piece did not end its line.
    in_line: bool,
}

impl Printer {
    pub(super) fn new(request: &LogsV1) -> Self {
        let since = request.since_ms.and_then(|ms| {
            jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(i64::MAX)).ok()
        });
        Self { timestamps: request.timestamps, since, left: request.limit_bytes, in_line: false }
    }

    /// Whether as much was printed as was asked for.
    pub(super) fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Prints one line of the file, or what of it is asked for.
    pub(super) fn print(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some((time, is_whole, text)) = parse(line) else {
            // Damaged: shown as it is, for there is nothing better.
            self.put(line, out);
            self.put(b"\n", out);
            self.in_line = false;
            return;
        };
        if let Some(since) = self.since
            && time.parse::<jiff::Timestamp>().is_ok_and(|time| time < since)
        {
            return;
        }
        if self.timestamps && !self.in_line {
            self.put(time.as_bytes(), out);
            self.put(b" ", out);
        }
        self.put(text, out);
        if is_whole {
            self.put(b"\n", out);
        }
        self.in_line = !is_whole;
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let room = self.left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let bytes = &bytes[..bytes.len().min(room)];
        out.extend_from_slice(bytes);
        if let Some(left) = &mut self.left {
            *left -= bytes.len() as u64;
        }
    }
}

/// `<time> <stream> <F|P> <text>`.
fn parse(line: &[u8]) -> Option<(&str, bool, &[u8])> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = parts.next()?;
    let tag = parts.next()?;
    let text = parts.next()?;
    let is_whole = match tag {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    [&b"stdout"[..], b"stderr"].contains(&stream).then_some((time, is_whole, text))
}
