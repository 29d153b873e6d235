//! The streams of a process, to and from the master: exec and attach.
//!
//! ```text
//! stdin frames ──► queue (≤ window) ──► process ──► credit back
//! process ──► as much as there is credit ──► stdout, stderr frames
//! exit code ──► the rest of the output ──► last frame
//! ```
//!
//! When this ends, for whatever reason, the handle is dropped: a command that
//! runs is killed, a container that was attached to goes on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use runtime::exec::{ExecReader, ExecWriter};
use runtime::{ExecHandle, WindowSize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use wire::command::StreamEndV1;
use wire::stream::{
    AGENT_WINDOW, Credit, DATA_BYTES_MAX, Frame, MASTER_WINDOW, STDERR, STDIN, STDOUT,
};

use super::frames::{self, Sender};
use crate::hooks::chain;

/// How long output may stay away after the process has ended before it counts
/// as complete: a process in the background may hold the streams for ever.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// Bytes for the process, or the end of them.
type Input = Option<Vec<u8>>;

/// Serves a process until it ends, or the connection does. `ended` makes the last
/// message of its exit code.
///
/// # Errors
/// The other side is gone, or broke the rules.
pub(super) async fn serve(
    mut handle: ExecHandle,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    ended: fn(i32) -> StreamEndV1,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (sender, frames) = frames::queue();
    let credits = [MASTER_WINDOW; 2].map(|window| watch::Sender::new(Credit::new(window)));
    // Each frame has a byte at least, so the window is room for all, and for the end.
    let (input, inputs) = mpsc::channel(window() + 1);
    let queued = AtomicUsize::new(0);
    let stdin = feed(handle.stdin.take(), inputs, sender.clone(), &queued);
    let streams = (handle.stdout.take(), handle.stderr.take());
    let result = {
        let run = run(&handle, streams, &credits, sender, ended);
        let read = listen(&mut reader, &handle, &credits, input, &queued);
        let write = frames::pump(frames, &mut writer);
        tokio::pin!(run, read, write, stdin);
        let (mut ran, mut fed) = (false, false);
        loop {
            tokio::select! {
                // Ends only with the connection.
                result = &mut read => break result,
                result = &mut write => break result,
                () = &mut run, if !ran => ran = true,
                () = &mut stdin, if !fed => fed = true,
            }
        }
    };
    result?;
    frames::finish(&mut reader, &mut writer).await
}

fn window() -> usize {
    usize::try_from(AGENT_WINDOW).unwrap_or(usize::MAX)
}

/// Takes what the master sends.
async fn listen(
    reader: &mut (impl AsyncRead + Unpin),
    handle: &ExecHandle,
    credits: &[watch::Sender<Credit>; 2],
    input: mpsc::Sender<Input>,
    queued: &AtomicUsize,
) -> io::Result<()> {
    loop {
        match frames::read(reader).await? {
            Frame::Stdin(bytes) => {
                if queued.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len() > window() {
                    return Err(io::Error::other("the master sent more than the window"));
                }
                // A process that takes no more input is no reason to stop.
                let _ = input.try_send(Some(bytes));
            }
            Frame::StdinEnd => {
                let _ = input.try_send(None);
            }
            Frame::Resize { columns, rows } => {
                let _ = handle.resize(WindowSize { columns, rows });
            }
            Frame::Credit { channel: STDOUT, bytes } => {
                credits[0].send_modify(|credit| credit.give(bytes));
            }
            Frame::Credit { channel: STDERR, bytes } => {
                credits[1].send_modify(|credit| credit.give(bytes));
            }
            _ => {}
        }
    }
}

/// Writes input to the process, and gives credit for what it has taken.
async fn feed(
    stdin: Option<ExecWriter>,
    mut input: mpsc::Receiver<Input>,
    sender: Sender,
    queued: &AtomicUsize,
) {
    let mut stdin = stdin;
    while let Some(bytes) = input.recv().await {
        let Some(bytes) = bytes else {
            if let Some(mut stdin) = stdin.take() {
                let _ = stdin.shutdown().await;
            }
            continue;
        };
        if let Some(writer) = &mut stdin
            && (writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err())
        {
            // It has closed its input: the rest goes nowhere, as in a pipe.
            stdin = None;
        }
        queued.fetch_sub(bytes.len(), Ordering::Relaxed);
        let bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if sender.send(Frame::Credit { channel: STDIN, bytes }).await.is_err() {
            return;
        }
    }
}

/// Sends the output and, at the end, how the process ended.
async fn run(
    handle: &ExecHandle,
    (stdout, stderr): (Option<ExecReader>, Option<ExecReader>),
    credits: &[watch::Sender<Credit>; 2],
    sender: Sender,
    ended_with: fn(i32) -> StreamEndV1,
) {
    let ended = Arc::new(watch::Sender::new(false));
    let out = copy(stdout, &credits[0], Frame::Stdout, &sender, ended.subscribe());
    let err = copy(stderr, &credits[1], Frame::Stderr, &sender, ended.subscribe());
    let exit = async {
        let exit = handle.wait().await;
        ended.send_replace(true);
        exit
    };
    let (exit, (), ()) = tokio::join!(exit, out, err);
    let end = match exit {
        Ok(code) => ended_with(code),
        Err(error) => StreamEndV1::Failed(chain(&error)),
    };
    let _ = sender.send(Frame::End(end)).await;
}

/// Copies one stream of the process as fast as the other side takes it.
async fn copy(
    stream: Option<ExecReader>,
    credit: &watch::Sender<Credit>,
    frame: fn(Vec<u8>) -> Frame,
    sender: &Sender,
    mut ended: watch::Receiver<bool>,
) {
    let Some(mut stream) = stream else { return };
    let mut left = credit.subscribe();
    let mut buffer = vec![0; DATA_BYTES_MAX];
    loop {
        let Ok(room) = left.wait_for(|credit| credit.left() > 0).await.map(|credit| credit.left())
        else {
            return;
        };
        let room = room.min(buffer.len());
        let read = stream.read(&mut buffer[..room]);
        tokio::pin!(read);
        let is_over = async {
            let _ = ended.wait_for(|ended| *ended).await;
        };
        let n = tokio::select! {
            n = &mut read => n,
            () = is_over => match timeout(DRAIN_TIMEOUT, read).await {
                Ok(n) => n,
                Err(_) => return,
            },
        };
        let Ok(n @ 1..) = n else { return };
        credit.send_modify(|credit| {
            // Never more than there was: only this task takes.
            let _ = credit.take(n);
        });
        if sender.send(frame(buffer[..n].to_vec())).await.is_err() {
            return;
        }
    }
}
