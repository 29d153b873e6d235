//! The agent's connection.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::control::{self, FromProxy, Status, ToProxy};

/// Listens at `path`, for root alone.
///
/// # Errors
/// The folder is missing.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// One agent. It is told the status at once, and whenever it changes.
#[derive(Debug)]
pub(super) struct Agent {
    said: mpsc::Receiver<ToProxy>,
    _tasks: JoinSet<()>,
}

impl Agent {
    pub(super) fn new(stream: UnixStream, status: watch::Receiver<Status>) -> Self {
        let (reader, writer) = stream.into_split();
        let (to, said) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(reader, to));
        tasks.spawn(speak(writer, status));
        Self { said, _tasks: tasks }
    }

    /// What it says; `None` at its end. Where there is none, never.
    pub(super) async fn next(agent: &mut Option<Self>) -> Option<ToProxy> {
        match agent {
            Some(agent) => agent.said.recv().await,
            None => std::future::pending().await,
        }
    }
}

async fn listen(mut reader: OwnedReadHalf, to: mpsc::Sender<ToProxy>) {
    loop {
        match control::read(&mut reader).await {
            Ok(Some(said)) => {
                if to.send(said).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the agent says what makes no sense");
                return;
            }
        }
    }
}

async fn speak(mut writer: OwnedWriteHalf, mut status: watch::Receiver<Status>) {
    loop {
        let now = status.borrow_and_update().clone();
        if control::write(&mut writer, &FromProxy::Status(now)).await.is_err()
            || status.changed().await.is_err()
        {
            return;
        }
    }
}
