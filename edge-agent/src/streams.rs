//! Streams that the master opens through the node's one outbound port: it sends
//! a ticket, the agent dials and serves.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use wire::command::{CommandV1, StreamHelloV1, StreamV1};

use crate::artifacts::{Dial, send};
use crate::logs;
use crate::pods::owner::Board;

/// Streams served at the same time.
const STREAMS_MAX: usize = 16;

/// Serves streams.
pub struct Streams {
    /// Where the logs are.
    pub logs: PathBuf,
    /// How the pods are.
    pub board: Board,
    /// Reaches the master.
    pub dial: Arc<dyn Dial>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("logs", &self.logs).finish_non_exhaustive()
    }
}

impl Streams {
    /// Does what the master asks, until it asks no more.
    pub async fn run(self, mut commands: mpsc::Receiver<CommandV1>) {
        let streams = Arc::new(self);
        let free = Arc::new(Semaphore::new(STREAMS_MAX));
        while let Some(command) = commands.recv().await {
            // The node's protocol has answered the others itself.
            let CommandV1::OpenStream { ticket, stream } = command else { continue };
            let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
                tracing::warn!("{STREAMS_MAX} streams are open; another one is refused");
                continue;
            };
            let streams = Arc::clone(&streams);
            tokio::spawn(async move {
                if let Err(error) = streams.serve(ticket, stream).await {
                    tracing::debug!(%error, "a stream ended early");
                }
                drop(permit);
            });
        }
    }

    async fn serve(&self, ticket: [u8; 16], stream: StreamV1) -> io::Result<()> {
        let mut connection = self.dial.dial(wire::ALPN_STREAM).await?;
        send(&mut connection, &StreamHelloV1 { ticket }).await?;
        match stream {
            StreamV1::Logs(request) => {
                logs::serve(&self.logs, &self.board, &request, connection).await
            }
        }
    }
}
