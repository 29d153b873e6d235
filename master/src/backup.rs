//! A backup of the cluster, made while it runs: the store and the keys, in the
//! format of [`store::archive`]. `pinnace backup create` fetches it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use apiserver::{BoxFuture, Download, LogStream, Status};
use bytes::Bytes;
use store::LmdbStore;
use store::archive::{PKI_PREFIX, STORE_ENTRY, Writer};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// Where the backup is.
const PATH: &str = "/pinnace/v1/backup";
/// Bytes of a piece that is sent.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces made ahead of a slow reader.
const PIECES_AHEAD: usize = 4;

/// Makes backups.
pub(crate) struct Backups {
    store: Arc<LmdbStore>,
    pki: PathBuf,
}

impl Backups {
    /// Of `store` and of the keys in `pki`.
    pub(crate) fn new(store: Arc<LmdbStore>, pki: PathBuf) -> Arc<Self> {
        Arc::new(Self { store, pki })
    }
}

impl Download for Backups {
    fn path(&self) -> &'static str {
        PATH
    }

    fn open(&self) -> BoxFuture<'_, Result<LogStream, Status>> {
        let (pieces, made) = mpsc::channel(PIECES_AHEAD);
        let (store, pki) = (Arc::clone(&self.store), self.pki.clone());
        tokio::task::spawn_blocking(move || {
            let mut out = Pieces { buffer: Vec::with_capacity(PIECE_BYTES), pieces };
            match write(&store, &pki, &mut out).and_then(|()| out.flush()) {
                Ok(()) => info!("backup made"),
                Err(err) => {
                    warn!(%err, "backup broken off");
                    // Without the archive's end, which a reader looks for.
                    let _ = out.pieces.blocking_send(Err(err));
                }
            }
        });
        Box::pin(async move {
            let stream = futures::stream::unfold(made, |mut made| async move {
                Some((made.recv().await?, made))
            });
            Ok(Box::pin(stream) as LogStream)
        })
    }
}

/// Writes the archive: the keys first, they are small.
fn write(store: &LmdbStore, pki: &Path, out: &mut Pieces) -> io::Result<()> {
    let mut archive = Writer::new(out)?;
    let mut files: Vec<_> = fs::read_dir(pki)?.collect::<io::Result<_>>()?;
    files.sort_by_key(fs::DirEntry::file_name);
    for file in files {
        let name = file.file_name().to_string_lossy().into_owned();
        // What a write that was cut short left behind.
        if name.ends_with(".new") || !file.file_type()?.is_file() {
            continue;
        }
        let bytes = fs::read(file.path())?;
        archive.entry(&format!("{PKI_PREFIX}{name}"), |out| out.write_all(&bytes))?;
    }
    archive.entry(STORE_ENTRY, |out| {
        store::backup::create(store, out).map(|_| ()).map_err(io::Error::other)
    })?;
    archive.finish()?;
    Ok(())
}

/// Sends what is written, in pieces; fails once nobody reads.
struct Pieces {
    buffer: Vec<u8>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if PIECE_BYTES <= self.buffer.len() {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        let sent = self.pieces.blocking_send(Ok(piece));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}
