//! Frames on a connection: reading, and a writer that many may send to.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wire::command::StreamEndV1;
use wire::stream::{self, DATA_BYTES_MAX, Frame, HEAD_BYTES, PING_SECONDS, SILENCE_SECONDS};
use wire::usage::USAGE_BYTES_MAX;

/// Frames that wait for the connection.
const FRAMES_AHEAD: usize = 4;

/// How long the other side may take to close after the last frame.
const GOODBYE: Duration = Duration::from_secs(10);

/// Reads one frame. An error as well if the other side has been silent too long.
pub(super) async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let frame = async {
        let mut head = [0; HEAD_BYTES];
        reader.read_exact(&mut head).await?;
        let (channel, length) = stream::head(head).map_err(io::Error::other)?;
        let mut content = vec![0; length];
        reader.read_exact(&mut content).await?;
        Frame::decode(channel, &content).map_err(io::Error::other)
    };
    timeout(Duration::from_secs(SILENCE_SECONDS), frame).await?
}

/// Writes one frame.
pub(super) async fn write(writer: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    writer.write_all(&bytes).await?;
    writer.flush().await
}

/// Where frames are sent.
pub(super) type Sender = mpsc::Sender<Frame>;

/// A queue of frames, and what comes out of it.
pub(super) fn queue() -> (Sender, mpsc::Receiver<Frame>) {
    mpsc::channel(FRAMES_AHEAD)
}

/// Writes what is queued, and says so where there is nothing to say. Ends after
/// the last frame, or once nobody can send any more.
pub(super) async fn pump(
    mut frames: mpsc::Receiver<Frame>,
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    loop {
        let frame = match timeout(Duration::from_secs(PING_SECONDS), frames.recv()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(()),
            Err(_) => Frame::Ping,
        };
        write(writer, &frame).await?;
        if matches!(frame, Frame::End(_)) {
            return Ok(());
        }
    }
}

/// Closes a connection whose last frame is written. What still comes is read, or
/// the kernel would answer it with a reset, and what was sent might be lost.
pub(super) async fn finish(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    writer.shutdown().await?;
    let mut ignored = [0; 4096];
    let rest = async { while !matches!(reader.read(&mut ignored).await, Ok(0) | Err(_)) {} };
    let _ = timeout(GOODBYE, rest).await;
    Ok(())
}

/// Sends one answer, whole or not at all, and its end.
pub(super) async fn answer(
    connection: impl AsyncRead + AsyncWrite + Unpin,
    bytes: &[u8],
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let end = if bytes.len() > USAGE_BYTES_MAX {
        StreamEndV1::Failed(format!("the answer has {} bytes, too many", bytes.len()))
    } else {
        for piece in bytes.chunks(DATA_BYTES_MAX) {
            write(&mut writer, &Frame::Stdout(piece.to_vec())).await?;
        }
        StreamEndV1::Done
    };
    write(&mut writer, &Frame::End(end)).await?;
    finish(&mut reader, &mut writer).await
}
