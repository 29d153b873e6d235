//! Frames on a node's connection: reading, and a writer that many may send to.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wire::stream::{self, Frame, HEAD_BYTES, PING_SECONDS, SILENCE_SECONDS};

/// Frames that wait for the connection.
const FRAMES_AHEAD: usize = 4;

/// Reads one frame. An error as well if the node has been silent too long.
pub(crate) async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    timeout(Duration::from_secs(SILENCE_SECONDS), read_patiently(reader)).await?
}

/// The same for streams where nothing is said for as long as there is nothing to say.
pub(crate) async fn read_patiently(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let mut head = [0; HEAD_BYTES];
    reader.read_exact(&mut head).await?;
    let (channel, length) = stream::head(head).map_err(io::Error::other)?;
    let mut content = vec![0; length];
    reader.read_exact(&mut content).await?;
    Frame::decode(channel, &content).map_err(io::Error::other)
}

/// Where frames are sent.
pub(crate) type Sender = mpsc::Sender<Frame>;

/// A queue of frames, and what comes out of it.
pub(crate) fn queue() -> (Sender, mpsc::Receiver<Frame>) {
    mpsc::channel(FRAMES_AHEAD)
}

/// Writes what is queued, and says so where there is nothing to say. Ends once
/// nobody can send any more.
pub(crate) async fn pump(
    mut frames: mpsc::Receiver<Frame>,
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let frame = match timeout(Duration::from_secs(PING_SECONDS), frames.recv()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return writer.shutdown().await,
            Err(_) => Frame::Ping,
        };
        bytes.clear();
        frame.encode(&mut bytes);
        writer.write_all(&bytes).await?;
        writer.flush().await?;
    }
}
