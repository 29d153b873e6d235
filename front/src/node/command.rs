//! The streams of a process, between a node's connection and the API: exec and
//! attach.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::status::Status;
use crate::streams::{CommandStream, Input, Output};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use wire::command::StreamEndV1;
use wire::stream::{
    AGENT_WINDOW, Credit, DATA_BYTES_MAX, Frame, MASTER_WINDOW, STDERR, STDIN, STDOUT,
};

use super::frames::{self, Sender};

/// Messages to and from the user that wait.
const MESSAGES_AHEAD: usize = 4;

/// Serves a node's connection in a task until it or the user ends.
pub(crate) fn start(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> CommandStream {
    let (input, inputs) = mpsc::channel(MESSAGES_AHEAD);
    let (outputs, output) = mpsc::channel(MESSAGES_AHEAD);
    tokio::spawn(async move {
        let user = outputs.clone();
        let served = serve(stream, inputs, &outputs);
        let result = tokio::select! {
            result = served => result,
            // Nobody reads any more: the node hears it by the connection's end.
            () = user.closed() => return,
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a stream of a node broke");
            let problem = format!("the connection to the node was lost: {error}");
            let _ = outputs.send(Output::Failed(Status::internal(problem))).await;
        }
    });
    CommandStream { input, output }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    inputs: mpsc::Receiver<Input>,
    outputs: &mpsc::Sender<Output>,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (sender, queued) = frames::queue();
    let credit = watch::Sender::new(Credit::new(AGENT_WINDOW));
    // Each frame has a byte at least, so the windows are room for all, and for the end.
    let window = usize::try_from(MASTER_WINDOW).unwrap_or(usize::MAX);
    let (taken, waiting) = mpsc::channel(2 * window + 1);
    let windows = [MASTER_WINDOW; 2].map(|window| Mutex::new(Credit::new(window)));
    let listen = listen(&mut reader, &credit, &windows, taken);
    let pass_on = pass_on(waiting, outputs, &windows, &sender);
    let feed = feed(inputs, &credit, &sender);
    let write = frames::pump(queued, &mut writer);
    tokio::pin!(listen, pass_on, feed, write);
    let mut fed = false;
    let mut heard = false;
    loop {
        tokio::select! {
            result = &mut listen, if !heard => {
                result?;
                heard = true;
            }
            // After the last frame, and all before it, has reached the user.
            () = &mut pass_on => return Ok(()),
            () = &mut feed, if !fed => fed = true,
            result = &mut write => result?,
        }
    }
}

/// Takes frames until the last one. What waits for the user is at most the
/// window of each channel.
async fn listen(
    reader: &mut (impl AsyncRead + Unpin),
    credit: &watch::Sender<Credit>,
    windows: &[Mutex<Credit>; 2],
    taken: mpsc::Sender<Frame>,
) -> io::Result<()> {
    loop {
        match frames::read(reader).await? {
            Frame::Credit { channel: STDIN, bytes } => credit.send_modify(|c| c.give(bytes)),
            Frame::Stdout(bytes) if !lock(&windows[0]).take(bytes.len()) => return Err(too_much()),
            Frame::Stderr(bytes) if !lock(&windows[1]).take(bytes.len()) => return Err(too_much()),
            frame @ (Frame::Stdout(_) | Frame::Stderr(_)) => {
                let _ = taken.try_send(frame);
            }
            frame @ Frame::End(_) => {
                let _ = taken.try_send(frame);
                return Ok(());
            }
            _ => {}
        }
    }
}

fn too_much() -> io::Error {
    io::Error::other("the node sent more than it may")
}

fn lock(credit: &Mutex<Credit>) -> MutexGuard<'_, Credit> {
    credit.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands output to the user, and credit back to the node.
async fn pass_on(
    mut waiting: mpsc::Receiver<Frame>,
    outputs: &mpsc::Sender<Output>,
    windows: &[Mutex<Credit>; 2],
    sender: &Sender,
) {
    while let Some(frame) = waiting.recv().await {
        let (channel, bytes, output) = match frame {
            Frame::Stdout(bytes) => (STDOUT, bytes.len(), Output::Stdout(Bytes::from(bytes))),
            Frame::Stderr(bytes) => (STDERR, bytes.len(), Output::Stderr(Bytes::from(bytes))),
            Frame::End(end) => {
                let _ = outputs.send(ending(end)).await;
                return;
            }
            _ => continue,
        };
        if outputs.send(output).await.is_err() {
            return;
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        lock(&windows[usize::from(channel == STDERR)]).give(bytes);
        if sender.send(Frame::Credit { channel, bytes }).await.is_err() {
            return;
        }
    }
}

/// Sends input as fast as the node takes it.
async fn feed(mut inputs: mpsc::Receiver<Input>, credit: &watch::Sender<Credit>, sender: &Sender) {
    let mut left = credit.subscribe();
    while let Some(input) = inputs.recv().await {
        let frame = match input {
            Input::StdinEnd => Frame::StdinEnd,
            Input::Resize { columns, rows } => Frame::Resize { columns, rows },
            Input::Stdin(mut bytes) => {
                while !bytes.is_empty() {
                    let Ok(room) = left.wait_for(|c| c.left() > 0).await.map(|c| c.left()) else {
                        return;
                    };
                    let piece = bytes.split_to(bytes.len().min(room).min(DATA_BYTES_MAX));
                    credit.send_modify(|credit| {
                        // Never more than there was: only this task takes.
                        let _ = credit.take(piece.len());
                    });
                    if sender.send(Frame::Stdin(piece.to_vec())).await.is_err() {
                        return;
                    }
                }
                continue;
            }
        };
        if sender.send(frame).await.is_err() {
            return;
        }
    }
}

fn ending(end: StreamEndV1) -> Output {
    Output::Failed(match end {
        StreamEndV1::Exited(code) => return Output::Exited(code),
        StreamEndV1::Done => return Output::Exited(0),
        StreamEndV1::NotFound(what) => Status::internal(what),
        StreamEndV1::Failed(what) => {
            Status::internal(format!("error executing command in container: {what}"))
        }
    })
}
