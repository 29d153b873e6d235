//! `exec` and `attach` over SPDY: a stream a channel, named by its `streamtype`.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::spdy::{self, Encoder, Event};
use super::spdy_connection::{self as connection, Frames, Reader, header};
use super::{ending, ending_text, is_wanted, lost, send_input, window_size};
use crate::streams::{CommandRequest, CommandStream, Input, Output};

/// How long a client may take to make its streams.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes that may come before all streams are there.
const EARLY_BYTES_MAX: usize = 256 << 10;
/// Longest size of a terminal, as text.
const SIZE_BYTES_MAX: usize = 1024;

/// Serves a process to a client until either ends.
///
/// # Errors
/// The client is gone, or speaks something else.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin,
    protocol: &'static str,
    wanted: CommandRequest,
    stream: CommandStream,
) -> io::Result<()> {
    let (read, mut write) = tokio::io::split(io);
    let mut reader = Reader::new(read);
    let (frames, queued) = connection::queue();
    let CommandStream { input, output } = stream;
    let served = async {
        // Moved in here, so that the writer ends after this does.
        let frames = frames;
        let opened = open(&mut reader, protocol, &wanted, &frames);
        let (streams, early) = timeout(STREAMS_TIMEOUT, opened).await??;
        let say = say(&streams, protocol, &wanted, output, &frames);
        tokio::select! {
            result = listen(&mut reader, &streams, early, &input, &frames) => result,
            result = say => {
                result?;
                Ok(())
            }
        }
    };
    let result = {
        let writing = connection::write(&mut write, queued);
        tokio::pin!(writing, served);
        tokio::select! {
            result = &mut writing => result,
            result = &mut served => {
                let last = timeout(STREAMS_TIMEOUT, writing).await;
                result.and(last?)
            }
        }
    };
    result?;
    tokio::io::AsyncWriteExt::shutdown(&mut write).await?;
    reader.drain().await;
    Ok(())
}

/// The streams by their type.
type Streams = HashMap<&'static str, u32>;

fn types(protocol: &str, wanted: &CommandRequest) -> Vec<&'static str> {
    let sizes = wanted.tty && matches!(protocol, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    [
        ("error", true),
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr),
        ("resize", sizes),
    ]
    .into_iter()
    .filter_map(|(name, is_wanted)| is_wanted.then_some(name))
    .collect()
}

/// Waits for all streams. Gives what came on them meanwhile.
async fn open(
    reader: &mut Reader<impl AsyncRead + Unpin>,
    protocol: &str,
    wanted: &CommandRequest,
    frames: &Frames,
) -> io::Result<(Streams, Vec<Event>)> {
    let types = types(protocol, wanted);
    let (mut streams, mut early, mut n_early) = (Streams::new(), Vec::new(), 0);
    let mut encoder = Encoder::default();
    while streams.len() < types.len() {
        let event = reader.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match event {
            Event::Open { stream, headers, .. } => {
                let name = header(&headers, "streamtype");
                let known = types.iter().find(|known| **known == name);
                match known.filter(|known| !streams.contains_key(**known)) {
                    Some(known) => {
                        streams.insert(known, stream);
                        send(frames, encoder.reply(stream)).await?;
                    }
                    None => send(frames, spdy::reset(stream)).await?,
                }
            }
            Event::Ping(id) => send(frames, spdy::ping(id)).await?,
            Event::Data { ref bytes, .. } => {
                n_early += bytes.len();
                if n_early > EARLY_BYTES_MAX || early.len() > 1024 {
                    return Err(io::Error::other("too much before all streams are there"));
                }
                early.push(event);
            }
            Event::Reset { .. } | Event::GoAway => {}
        }
    }
    Ok((streams, early))
}

async fn send(frames: &Frames, frame: Vec<u8>) -> io::Result<()> {
    frames.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

/// Takes what the client sends, until it closes.
async fn listen(
    reader: &mut Reader<impl AsyncRead + Unpin>,
    streams: &Streams,
    early: Vec<Event>,
    input: &mpsc::Sender<Input>,
    frames: &Frames,
) -> io::Result<()> {
    let of = |name: &str| streams.get(name).copied();
    let (stdin, resize) = (of("stdin"), of("resize"));
    let mut sizes = BytesMut::new();
    let mut early = early.into_iter();
    loop {
        let event = match early.next() {
            Some(event) => event,
            None => match reader.next().await? {
                Some(event) => event,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            },
        };
        match event {
            Event::Data { stream, bytes, fin } if Some(stream) == stdin => {
                send_input(input, bytes).await;
                if fin {
                    let _ = input.send(Input::StdinEnd).await;
                }
            }
            Event::Data { stream, bytes, .. } if Some(stream) == resize => {
                for size in take_sizes(&mut sizes, &bytes)? {
                    let _ = input.send(size).await;
                }
            }
            Event::Ping(id) => send(frames, spdy::ping(id)).await?,
            Event::Open { stream, .. } => send(frames, spdy::reset(stream)).await?,
            Event::Reset { stream } if Some(stream) == stdin => {
                let _ = input.send(Input::StdinEnd).await;
            }
            Event::Data { .. } | Event::Reset { .. } | Event::GoAway => {}
        }
    }
}

/// Sizes come as JSON, one a line, but clients may leave the last line open.
fn take_sizes(buffer: &mut BytesMut, bytes: &Bytes) -> io::Result<Vec<Input>> {
    buffer.extend_from_slice(bytes);
    let mut sizes = Vec::new();
    while let Some(end) = buffer.iter().position(|byte| *byte == b'}') {
        let text = buffer.split_to(end + 1);
        sizes.extend(window_size(text.trim_ascii()));
    }
    if buffer.len() > SIZE_BYTES_MAX {
        return Err(io::Error::other("the size of a terminal is too long"));
    }
    Ok(sizes)
}

/// Passes the output on and, at the end, how it went.
async fn say(
    streams: &Streams,
    protocol: &str,
    wanted: &CommandRequest,
    mut output: mpsc::Receiver<Output>,
    frames: &Frames,
) -> io::Result<()> {
    let of = |name: &str| streams.get(name).copied();
    let end = loop {
        let next = output.recv().await.unwrap_or_else(lost);
        if !is_wanted(wanted, &next) {
            continue;
        }
        let (name, bytes) = match &next {
            Output::Stdout(bytes) => ("stdout", bytes),
            Output::Stderr(bytes) => ("stderr", bytes),
            Output::Exited(_) | Output::Failed(_) => break next,
        };
        if let Some(stream) = of(name) {
            send(frames, spdy::data(stream, bytes, false)).await?;
        }
    };
    for stream in [of("stdout"), of("stderr")].into_iter().flatten() {
        send(frames, spdy::data(stream, &[], true)).await?;
    }
    let text = match protocol {
        "v4.channel.k8s.io" => ending(&end).to_string(),
        _ => ending_text(&end),
    };
    let error = of("error").ok_or(io::ErrorKind::NotConnected)?;
    send(frames, spdy::data(error, text.as_bytes(), true)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_pieces() {
        let mut buffer = BytesMut::new();
        let mut take = |text: &'static str| {
            take_sizes(&mut buffer, &Bytes::from_static(text.as_bytes())).unwrap()
        };
        assert_eq!(take(r#"{"Width":80,"#), []);
        let size = |columns, rows| Input::Resize { columns, rows };
        assert_eq!(
            take("\"Height\":24}\n{\"Width\":1,\"Height\":2}\n"),
            [size(80, 24), size(1, 2)]
        );
        assert_eq!(take("nonsense}"), []);
        let long = Bytes::from(vec![b'x'; SIZE_BYTES_MAX + 1]);
        take_sizes(&mut buffer, &long).unwrap_err();
    }
}
