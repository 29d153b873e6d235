//! `portforward` over SPDY: two streams a connection, `error` and `data`, that
//! name the port and belong together by their `requestid`.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::spdy::{self, Encoder, Event};
use super::spdy_connection::{self as connection, Frames, Reader, header};
use crate::streams::{ForwardedConnection, Forwarder};

/// Most connections of one request at a time, as the node has it.
const CONNECTIONS_MAX: usize = 64;
/// Pieces of a connection that wait for it.
const PIECES_AHEAD: usize = 4;
/// Bytes read from a connection at once.
const PIECE_BYTES: usize = 16 << 10;
/// How long the reason of a broken connection is waited for.
const REASON_TIMEOUT: Duration = Duration::from_millis(100);

/// One half of a pair that waits for the other.
#[derive(Default)]
struct Pair {
    error: Option<u32>,
    data: Option<u32>,
    port: Option<u16>,
}

/// Serves connections to a client until it is gone.
///
/// # Errors
/// The client is gone, or speaks something else.
pub(super) async fn over_spdy(
    io: impl AsyncRead + AsyncWrite + Unpin,
    forwarder: Arc<dyn Forwarder>,
) -> io::Result<()> {
    let (read, mut write) = tokio::io::split(io);
    let (frames, queued) = connection::queue();
    tokio::select! {
        result = listen(Reader::new(read), forwarder, frames) => result,
        result = connection::write(&mut write, queued) => result,
    }
}

async fn listen(
    mut reader: Reader<impl AsyncRead + Unpin>,
    forwarder: Arc<dyn Forwarder>,
    frames: Frames,
) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    let mut inputs: HashMap<u32, mpsc::Sender<Option<Bytes>>> = HashMap::new();
    // Ends every connection when it is dropped.
    let mut tasks = JoinSet::new();
    loop {
        let event = tokio::select! {
            event = reader.next() => match event? {
                Some(event) => event,
                None => return Ok(()),
            },
            Some(ended) = tasks.join_next() => {
                if let Ok(stream) = ended {
                    inputs.remove(&stream);
                }
                continue;
            }
        };
        match event {
            Event::Open { stream, headers, .. } => {
                let id = match header(&headers, "requestid") {
                    // Clients before Kubernetes 1.2 have none, and one pair a port.
                    "" => header(&headers, "port").to_owned(),
                    id => id.to_owned(),
                };
                if inputs.len() + pairs.len() >= 2 * CONNECTIONS_MAX {
                    send(&frames, spdy::reset(stream)).await?;
                    continue;
                }
                let pair = pairs.entry(id.clone()).or_default();
                let port = header(&headers, "port").parse::<u16>().ok().filter(|port| *port > 0);
                let place = match header(&headers, "streamtype") {
                    "error" => &mut pair.error,
                    "data" => &mut pair.data,
                    _ => {
                        send(&frames, spdy::reset(stream)).await?;
                        continue;
                    }
                };
                if place.replace(stream).is_some() || port.is_none() {
                    pairs.remove(&id);
                    send(&frames, spdy::reset(stream)).await?;
                    continue;
                }
                pair.port = port;
                send(&frames, encoder.reply(stream)).await?;
                if let Pair { error: Some(error), data: Some(data), port: Some(port) } = *pair {
                    pairs.remove(&id);
                    let (input, inputs_of) = mpsc::channel(PIECES_AHEAD);
                    inputs.insert(data, input);
                    let (forwarder, frames) = (Arc::clone(&forwarder), frames.clone());
                    tasks.spawn(async move {
                        let streams = (error, data);
                        let _ = serve(&*forwarder, streams, port, inputs_of, &frames).await;
                        data
                    });
                }
            }
            Event::Data { stream, bytes, fin } => {
                // The error stream's end, or something for a connection that is over.
                let Some(input) = inputs.get(&stream) else { continue };
                if !bytes.is_empty() {
                    let _ = input.send(Some(bytes)).await;
                }
                if fin {
                    let _ = input.send(None).await;
                }
            }
            Event::Reset { stream } => {
                inputs.remove(&stream);
            }
            Event::Ping(id) => send(&frames, spdy::ping(id)).await?,
            Event::GoAway => {}
        }
    }
}

async fn send(frames: &Frames, frame: Vec<u8>) -> io::Result<()> {
    frames.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

/// One connection, from its two streams to its end.
async fn serve(
    forwarder: &dyn Forwarder,
    (error, data): (u32, u32),
    port: u16,
    mut input: mpsc::Receiver<Option<Bytes>>,
    frames: &Frames,
) -> io::Result<()> {
    let refused = |why: String| format!("error forwarding port {port} to pod: {why}");
    let opened = forwarder.connect(port).await;
    let ForwardedConnection { bytes, error: reason } = match opened {
        Ok(opened) => opened,
        Err(why) => {
            send(frames, spdy::data(error, refused(why).as_bytes(), true)).await?;
            return send(frames, spdy::data(data, &[], true)).await;
        }
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(bytes);
    let down = async {
        loop {
            match input.recv().await {
                Some(Some(bytes)) => to_pod.write_all(&bytes).await?,
                Some(None) => return to_pod.shutdown().await,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
    };
    let up = async {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let n = from_pod.read(&mut buffer).await?;
            send(frames, spdy::data(data, &buffer[..n], n == 0)).await?;
            if n == 0 {
                return io::Result::Ok(());
            }
        }
    };
    // The pod's end is the end: what a client would still send reaches nobody
    // who answers. But an end that the client announces is not.
    tokio::pin!(down, up);
    let mut said_all = false;
    let result = loop {
        tokio::select! {
            result = &mut up => break result,
            result = &mut down, if !said_all => match result {
                Ok(()) => said_all = true,
                Err(error) => break Err(error),
            },
        }
    };
    let why = tokio::time::timeout(REASON_TIMEOUT, reason).await.ok().and_then(Result::ok);
    if result.is_err() {
        send(frames, spdy::data(data, &[], true)).await?;
    }
    let text = why.filter(|why| !why.is_empty()).map(refused).unwrap_or_default();
    send(frames, spdy::data(error, text.as_bytes(), true)).await
}
