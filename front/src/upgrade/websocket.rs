//! `exec`, `attach` and `portforward` over WebSocket: the first byte of a
//! message is its channel.
//!
//! | channel | exec, attach |
//! |---|---|
//! | 0 | input |
//! | 1, 2 | output, errors |
//! | 3 | how it ended, a `Status`; the last one |
//! | 4 | size of the terminal |
//! | 255 | v5: the channel in the next byte is closed |
//!
//! Port-forwarding has two channels a port, 2n for data and 2n+1 for errors;
//! each begins with a message that names the port.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{ending, lost, send_input, window_size};
use crate::streams::{CommandStream, ForwardedConnection, Forwarder, Input, Output};

/// Longest message of a client, in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes between a tunnel and its WebSocket.
const TUNNEL_BYTES: usize = 64 << 10;
/// Bytes read from a connection at once.
const PIECE_BYTES: usize = 16 << 10;
/// Messages of one port that wait for it.
const PIECES_AHEAD: usize = 4;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

type Sink<I> = SplitSink<WebSocketStream<I>, Message>;
type Stream<I> = SplitStream<WebSocketStream<I>>;

async fn open<I: AsyncRead + AsyncWrite + Unpin>(io: I) -> (Sink<I>, Stream<I>) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await.split()
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

/// The next message's bytes, text or binary; `None` at the end.
async fn next<I: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Stream<I>,
) -> io::Result<Option<Bytes>> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
            Some(Ok(Message::Text(text))) => return Ok(Some(text.into())),
            Some(Ok(Message::Close(_))) | None => return Ok(None),
            // Pings are answered where they are read.
            Some(Ok(_)) => {}
            Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) => return Ok(None),
            Some(Err(error)) => return Err(broken(error)),
        }
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut all = Vec::with_capacity(1 + bytes.len());
    all.push(channel);
    all.extend_from_slice(bytes);
    Message::binary(all)
}

/// The normal end: clients take one without a code for a broken connection.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// Serves a process to a client until either ends.
///
/// # Errors
/// The client is gone, or speaks something else.
pub(super) async fn command(
    io: impl AsyncRead + AsyncWrite + Unpin,
    protocol: &'static str,
    stream: CommandStream,
) -> io::Result<()> {
    let (mut sink, mut from_client) = open(io).await;
    let CommandStream { input, mut output } = stream;
    let say = async {
        loop {
            let next = output.recv().await.unwrap_or_else(lost);
            let (message, is_last) = match &next {
                Output::Stdout(bytes) => (message(STDOUT, bytes), false),
                Output::Stderr(bytes) => (message(STDERR, bytes), false),
                end => (message(STATUS, ending(end).to_string().as_bytes()), true),
            };
            sink.send(message).await.map_err(broken)?;
            if is_last {
                sink.send(goodbye()).await.map_err(broken)?;
                return io::Result::Ok(());
            }
        }
    };
    let listen = async {
        while let Some(bytes) = next(&mut from_client).await? {
            take(protocol, bytes, &input).await;
        }
        io::Result::Err(io::ErrorKind::UnexpectedEof.into())
    };
    tokio::select! {
        result = say => result?,
        result = listen => return result,
    }
    // The client closes in its turn; what it still sends is read, so that
    // nothing of ours is lost to a reset.
    let rest = async { while let Ok(Some(_)) = next(&mut from_client).await {} };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(10), rest).await;
    Ok(())
}

/// Passes one message on.
async fn take(protocol: &str, bytes: Bytes, input: &mpsc::Sender<Input>) {
    let Some(channel) = bytes.first().copied() else { return };
    let rest = bytes.slice(1..);
    match channel {
        STDIN => {
            send_input(input, rest).await;
        }
        RESIZE => {
            if let Some(size) = window_size(&rest) {
                let _ = input.send(size).await;
            }
        }
        CLOSE if protocol == "v5.channel.k8s.io" && rest[..] == [STDIN] => {
            let _ = input.send(Input::StdinEnd).await;
        }
        _ => {}
    }
}

/// The bytes of messages as one stream: what SPDY travels in.
pub(super) fn tunnel(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> DuplexStream {
    let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
    tokio::spawn(async move {
        let (mut sink, mut from_client) = open(io).await;
        let (mut reader, mut writer) = tokio::io::split(far);
        let down = async {
            while let Some(bytes) = next(&mut from_client).await? {
                writer.write_all(&bytes).await?;
            }
            io::Result::Ok(())
        };
        let up = async {
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                let n = reader.read(&mut buffer).await?;
                if n == 0 {
                    return sink.send(goodbye()).await.map_err(broken);
                }
                let message = Message::binary(buffer[..n].to_vec());
                sink.send(message).await.map_err(broken)?;
            }
        };
        let result = tokio::select! {
            result = down => result,
            result = up => result,
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a tunnel ended early");
        }
    });
    near
}

/// Serves one connection to each of `ports` until the client is gone or all have ended.
///
/// # Errors
/// The client is gone, or speaks something else.
pub(super) async fn forward(
    io: impl AsyncRead + AsyncWrite + Unpin,
    ports: Vec<u16>,
    forwarder: Arc<dyn Forwarder>,
) -> io::Result<()> {
    let (mut sink, mut from_client) = open(io).await;
    let (messages, mut queued) = mpsc::channel::<Message>(8);
    let mut tasks = tokio::task::JoinSet::new();
    let mut inputs = Vec::new();
    for (n, port) in ports.iter().copied().enumerate() {
        let channel = u8::try_from(2 * n).map_err(io::Error::other)?;
        for channel in [channel, channel + 1] {
            sink.send(message(channel, &port.to_le_bytes())).await.map_err(broken)?;
        }
        let (input, inputs_of) = mpsc::channel(PIECES_AHEAD);
        inputs.push(input);
        let (forwarder, messages) = (Arc::clone(&forwarder), messages.clone());
        tasks
            .spawn(async move { one_port(&*forwarder, channel, port, inputs_of, &messages).await });
    }
    drop(messages);
    let down = async {
        while let Some(bytes) = next(&mut from_client).await? {
            let Some((channel, rest)) = bytes.split_first() else { continue };
            let input = inputs.get(usize::from(*channel / 2)).filter(|_| channel % 2 == 0);
            if let Some(input) = input {
                let _ = input.send(bytes.slice_ref(rest)).await;
            }
        }
        io::Result::Ok(())
    };
    let up = async {
        while let Some(message) = queued.recv().await {
            sink.send(message).await.map_err(broken)?;
        }
        sink.send(goodbye()).await.map_err(broken)
    };
    tokio::select! {
        result = down => result,
        result = up => result,
    }
}

async fn one_port(
    forwarder: &dyn Forwarder,
    channel: u8,
    port: u16,
    mut input: mpsc::Receiver<Bytes>,
    messages: &mpsc::Sender<Message>,
) {
    let refuse = async |why: String| {
        let text = format!("error forwarding port {port} to pod: {why}");
        let _ = messages.send(message(channel + 1, text.as_bytes())).await;
    };
    let ForwardedConnection { bytes, error } = match forwarder.connect(port).await {
        Ok(opened) => opened,
        Err(why) => return refuse(why).await,
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(bytes);
    let down = async {
        while let Some(bytes) = input.recv().await {
            if to_pod.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let up = async {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(n @ 1..) = from_pod.read(&mut buffer).await {
            if messages.send(message(channel, &buffer[..n])).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(down, up);
    tokio::select! {
        () = &mut up => {}
        // This protocol cannot say that the client has said all: it is gone.
        () = &mut down => {}
    }
    let reason = tokio::time::timeout(std::time::Duration::from_millis(100), error).await;
    if let Ok(Ok(why)) = reason
        && !why.is_empty()
    {
        refuse(why).await;
    }
}
