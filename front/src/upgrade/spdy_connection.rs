//! SPDY frames on a connection: reading, and a queue of what is written.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::spdy::{Decoder, Event};

/// Frames that wait for the connection.
const FRAMES_AHEAD: usize = 8;
/// How long a client may take to close after the last frame.
const GOODBYE: Duration = Duration::from_secs(10);

/// Frames to the client.
pub(super) type Frames = mpsc::Sender<Vec<u8>>;

pub(super) fn queue() -> (Frames, mpsc::Receiver<Vec<u8>>) {
    mpsc::channel(FRAMES_AHEAD)
}

/// Frames from the client.
pub(super) struct Reader<R> {
    io: R,
    buffer: BytesMut,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new(), decoder: Decoder::new() }
    }

    /// The next frame; `None` at the end. May be dropped at any time.
    pub(super) async fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(event) = self.decoder.decode(&mut self.buffer).map_err(io::Error::other)? {
                return Ok(Some(event));
            }
            self.buffer.reserve(8 << 10);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads until the client closes: what it still sends must not turn into a
    /// reset that overtakes our last frames.
    pub(super) async fn drain(&mut self) {
        let mut ignored = [0; 4096];
        let rest = async { while !matches!(self.io.read(&mut ignored).await, Ok(0) | Err(_)) {} };
        let _ = timeout(GOODBYE, rest).await;
    }
}

/// Writes what is queued until nobody can queue any more.
pub(super) async fn write(
    io: &mut (impl AsyncWrite + Unpin),
    mut frames: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        io.write_all(&frame).await?;
        io.flush().await?;
    }
    io.flush().await
}

/// The value of a header field.
pub(super) fn header<'a>(headers: &'a [(String, String)], name: &str) -> &'a str {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map_or("", |(_, v)| v)
}
