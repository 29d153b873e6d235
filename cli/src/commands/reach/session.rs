//! One process in a pod: its streams over a WebSocket.

use std::io::{self, Read, Write};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::terminal;
use crate::cluster::Cluster;
use crate::urls::with_query;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Bytes of input sent at once.
const INPUT_BYTES: usize = 16 << 10;
/// Pieces of input that wait for the connection.
const INPUT_AHEAD: usize = 4;
/// Pieces of output that wait to be written.
const OUTPUT_AHEAD: usize = 4;

/// What is asked of the API.
pub(super) struct Query<'a> {
    pub(super) command: &'a [String],
    pub(super) container: &'a str,
    pub(super) stdin: bool,
    pub(super) tty: bool,
}

impl Query<'_> {
    pub(super) fn path(&self, path: &str) -> String {
        let flag = |set: bool| if set { "true" } else { "" };
        let mut pairs: Vec<(&str, &str)> =
            self.command.iter().map(|word| ("command", word.as_str())).collect();
        pairs.extend([
            ("container", self.container),
            ("stdin", flag(self.stdin)),
            ("stdout", "true"),
            ("stderr", flag(!self.tty)),
            ("tty", flag(self.tty)),
        ]);
        with_query(path, &pairs)
    }
}

/// Which of the user's own streams take part.
pub(super) struct Local {
    pub(super) stdin: bool,
    pub(super) tty: bool,
}

/// A connection to a process.
pub(super) struct Session<W> {
    socket: W,
    can_close: bool,
}

impl Session<()> {
    /// Opens one.
    pub(super) async fn open(
        cluster: &Cluster,
        path: &str,
    ) -> anyhow::Result<Session<impl Socket + use<>>> {
        let connection = cluster.upgrade(path).await?;
        let can_close = connection.supports_stream_close();
        Ok(Session { socket: connection.into_stream(), can_close })
    }
}

/// A WebSocket.
pub(super) trait Socket:
    Stream<Item = Result<Message, Error>> + futures::Sink<Message, Error = Error> + Unpin
{
}
impl<T> Socket for T where
    T: Stream<Item = Result<Message, Error>> + futures::Sink<Message, Error = Error> + Unpin
{
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut all = Vec::with_capacity(1 + bytes.len());
    all.push(channel);
    all.extend_from_slice(bytes);
    Message::binary(all)
}

impl<W: Socket> Session<W> {
    /// Connects the user's own streams until the process ends; gives its exit code.
    pub(super) async fn run(self, local: Local) -> anyhow::Result<u8> {
        let (sender, input) = mpsc::channel(INPUT_AHEAD);
        if local.stdin {
            // A thread of its own, which the end of the program ends: a read of a
            // terminal cannot be given up.
            std::thread::spawn(move || {
                let mut bytes = vec![0; INPUT_BYTES];
                while let Ok(n @ 1..) = io::stdin().lock().read(&mut bytes) {
                    if sender.blocking_send(Bytes::copy_from_slice(&bytes[..n])).is_err() {
                        return;
                    }
                }
            });
        }
        let show = async |channel: u8, bytes: &[u8]| {
            if channel == STDERR {
                let mut err = io::stderr().lock();
                err.write_all(bytes).and_then(|()| err.flush())?;
                return Ok(());
            }
            crate::console::write(bytes)
        };
        self.exchange(input, local.stdin, local.tty, show).await
    }

    /// Connects with streams of this program.
    pub(super) async fn pipe(
        self,
        mut stdin: impl AsyncRead + Unpin + Send + 'static,
        stdout: impl AsyncWrite + Unpin + Send + 'static,
    ) -> anyhow::Result<u8> {
        let (sender, input) = mpsc::channel(INPUT_AHEAD);
        tokio::spawn(async move {
            let mut bytes = vec![0; INPUT_BYTES];
            while let Ok(n @ 1..) = stdin.read(&mut bytes).await {
                if sender.send(Bytes::copy_from_slice(&bytes[..n])).await.is_err() {
                    return;
                }
            }
        });
        let (out, mut outs) = mpsc::channel::<Bytes>(OUTPUT_AHEAD);
        let mut stdout = stdout;
        let writer = tokio::spawn(async move {
            while let Some(bytes) = outs.recv().await {
                stdout.write_all(&bytes).await?;
            }
            stdout.shutdown().await
        });
        let show = async move |channel: u8, bytes: &[u8]| {
            if channel == STDERR {
                io::stderr().lock().write_all(bytes)?;
            } else if out.send(Bytes::copy_from_slice(bytes)).await.is_err() {
                return Err(anyhow!("what was received cannot be written"));
            }
            Ok(())
        };
        let code = self.exchange(input, true, false, show).await?;
        writer.await.context("cannot write what was received")??;
        Ok(code)
    }

    async fn exchange(
        self,
        mut input: mpsc::Receiver<Bytes>,
        stdin: bool,
        tty: bool,
        mut show: impl AsyncFnMut(u8, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<u8> {
        let Self { mut socket, can_close } = self;
        let mut resized = signal(SignalKind::window_change())?;
        if let Some(size) = terminal::size().filter(|_| tty) {
            socket.send(message(RESIZE, size.as_bytes())).await?;
        }
        let mut listening = stdin;
        loop {
            tokio::select! {
                received = socket.next() => {
                    let bytes: Bytes = match received {
                        Some(Ok(Message::Binary(bytes))) => bytes,
                        Some(Ok(Message::Text(text))) => text.into(),
                        Some(Ok(Message::Close(_))) | None => {
                            return Err(anyhow!("the connection ended before the command did"));
                        }
                        Some(Ok(_)) => continue,
                        Some(Err(error)) => return Err(error).context("the connection broke"),
                    };
                    match bytes.split_first() {
                        Some((&channel, rest)) if matches!(channel, STDOUT | STDERR) => {
                            show(channel, rest).await?;
                        }
                        Some((&STATUS, rest)) => return exit_code(rest),
                        _ => {}
                    }
                }
                piece = input.recv(), if listening => match piece {
                    Some(piece) => socket.send(message(STDIN, &piece)).await?,
                    None => {
                        listening = false;
                        if can_close {
                            socket.send(message(CLOSE, &[STDIN])).await?;
                        }
                    }
                },
                Some(()) = resized.recv(), if tty => {
                    if let Some(size) = terminal::size() {
                        socket.send(message(RESIZE, size.as_bytes())).await?;
                    }
                }
            }
        }
    }
}

/// What the last message says.
fn exit_code(status: &[u8]) -> anyhow::Result<u8> {
    let status: Value = serde_json::from_slice(status).context("the server's last word")?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code = causes
        .filter(|cause| cause["reason"] == "ExitCode")
        .find_map(|cause| cause["message"].as_str()?.parse::<i32>().ok());
    match code {
        Some(code) => Ok(u8::try_from(code & 0xff).unwrap_or(1)),
        None => Err(anyhow!("{}", status["message"].as_str().unwrap_or("it failed"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_is_the_exit_code() {
        assert_eq!(exit_code(br#"{"status":"Success"}"#).unwrap(), 0);
        let failure = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#;
        assert_eq!(exit_code(failure).unwrap(), 42);
        let error = exit_code(br#"{"status":"Failure","message":"no such file"}"#).unwrap_err();
        assert_eq!(error.to_string(), "no such file");
        exit_code(b"nonsense").unwrap_err();
    }

    #[test]
    fn the_query_says_what_is_wanted() {
        let command = ["sh".to_owned(), "-c".to_owned(), "a b".to_owned()];
        let query = Query { command: &command, container: "main", stdin: true, tty: true };
        assert_eq!(
            query.path("/x"),
            "/x?command=sh&command=-c&command=a%20b&container=main&stdin=true&stdout=true&tty=true"
        );
    }
}
