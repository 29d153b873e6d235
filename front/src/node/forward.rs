//! Connections to ports of a pod, many on one connection of its node.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::logs::BoxFuture;
use crate::streams::{ForwardedConnection, Forwarder};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot, watch};
use wire::command::StreamEndV1;
use wire::stream::{AGENT_WINDOW, CONNECTIONS_MAX, Credit, DATA_BYTES_MAX, Frame, MASTER_WINDOW};

use super::frames::{self, Sender};

/// Bytes between a connection and the API.
const BUFFER_BYTES: usize = 64 << 10;

/// What the node says of one connection.
enum Said {
    Bytes(Vec<u8>),
    Finish,
    Reset(String),
}

/// A connection as the reader of frames knows it.
struct Connection {
    said: mpsc::Sender<Said>,
    window: Credit,
    credit: Arc<watch::Sender<Credit>>,
}

type Connections = Arc<Mutex<HashMap<u16, Connection>>>;

/// The ports of one pod.
pub(crate) struct Ports {
    connections: Connections,
    sender: Sender,
    next: AtomicU16,
    /// Why the stream as a whole has ended.
    broken: watch::Receiver<Option<String>>,
    /// Ends the task when it is dropped.
    _alive: oneshot::Sender<()>,
}

/// Serves a node's connection in a task until it ends or the ports are dropped.
pub(crate) fn start(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Ports {
    let connections = Connections::default();
    let (sender, queued) = frames::queue();
    let (tell, broken) = watch::channel(None);
    let (alive, dropped) = oneshot::channel();
    let known = Arc::clone(&connections);
    tokio::spawn(async move {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let why = tokio::select! {
            why = listen(&mut reader, &known) => why,
            result = frames::pump(queued, &mut writer) => match result {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            },
            _ = dropped => return,
        };
        tell.send_replace(Some(why.clone()));
        for (_, connection) in lock(&known).drain() {
            let _ = connection.said.try_send(Said::Reset(why.clone()));
        }
    });
    Ports { connections, sender, next: AtomicU16::new(0), broken, _alive: alive }
}

fn lock(connections: &Connections) -> std::sync::MutexGuard<'_, HashMap<u16, Connection>> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

fn window() -> usize {
    usize::try_from(MASTER_WINDOW).unwrap_or(usize::MAX)
}

/// Takes frames until the connection ends, and says why it has.
async fn listen(reader: &mut (impl AsyncRead + Unpin), connections: &Connections) -> String {
    loop {
        let frame = match frames::read(reader).await {
            Ok(frame) => frame,
            Err(error) => return format!("the connection to the node was lost: {error}"),
        };
        let mut known = lock(connections);
        match frame {
            Frame::Data { connection, bytes } => {
                let Some(found) = known.get_mut(&connection) else { continue };
                if !found.window.take(bytes.len()) {
                    return "the node sent more than it may".to_owned();
                }
                let _ = found.said.try_send(Said::Bytes(bytes));
            }
            Frame::Finish { connection } => {
                if let Some(found) = known.get(&connection) {
                    let _ = found.said.try_send(Said::Finish);
                }
            }
            Frame::Reset { connection, why } => {
                if let Some(found) = known.remove(&connection) {
                    let _ = found.said.try_send(Said::Reset(why));
                }
            }
            Frame::ConnectionCredit { connection, bytes } => {
                if let Some(found) = known.get(&connection) {
                    found.credit.send_modify(|credit| credit.give(bytes));
                }
            }
            Frame::End(StreamEndV1::NotFound(why) | StreamEndV1::Failed(why)) => return why,
            Frame::End(_) => return "the node has ended the stream".to_owned(),
            _ => {}
        }
    }
}

impl Forwarder for Ports {
    fn connect(&self, port: u16) -> BoxFuture<'_, Result<ForwardedConnection, String>> {
        Box::pin(async move {
            if let Some(why) = &*self.broken.borrow() {
                return Err(why.clone());
            }
            // Each frame has a byte at least: room for all of the window, and for the ends.
            let (said, heard) = mpsc::channel(window() + 2);
            let credit = Arc::new(watch::Sender::new(Credit::new(AGENT_WINDOW)));
            let number = {
                let mut known = lock(&self.connections);
                if known.len() >= CONNECTIONS_MAX {
                    return Err(format!("{CONNECTIONS_MAX} connections are open already"));
                }
                // There are far fewer than numbers.
                let number = loop {
                    let number = self.next.fetch_add(1, Ordering::Relaxed);
                    if !known.contains_key(&number) {
                        break number;
                    }
                };
                let window = Credit::new(MASTER_WINDOW);
                let connection = Connection { said, window, credit: Arc::clone(&credit) };
                known.insert(number, connection);
                number
            };
            let open = Frame::Open { connection: number, port };
            if self.sender.send(open).await.is_err() {
                return Err("the connection to the node was lost".to_owned());
            }
            let (near, far) = tokio::io::duplex(BUFFER_BYTES);
            let (tell, error) = oneshot::channel();
            let work = Work {
                number,
                connections: Arc::clone(&self.connections),
                credit,
                sender: self.sender.clone(),
            };
            tokio::spawn(work.run(far, heard, tell));
            Ok(ForwardedConnection { bytes: near, error })
        })
    }
}

/// One connection.
struct Work {
    number: u16,
    connections: Connections,
    credit: Arc<watch::Sender<Credit>>,
    sender: Sender,
}

impl Work {
    async fn run(
        self,
        stream: DuplexStream,
        mut heard: mpsc::Receiver<Said>,
        tell: oneshot::Sender<String>,
    ) {
        let connection = self.number;
        let (mut from_user, mut to_user) = tokio::io::split(stream);
        let up = async {
            let mut left = self.credit.subscribe();
            let mut buffer = vec![0; DATA_BYTES_MAX];
            loop {
                let room = match left.wait_for(|credit| credit.left() > 0).await {
                    Ok(credit) => credit.left().min(DATA_BYTES_MAX),
                    Err(_) => return io::Result::Ok(()),
                };
                let n = from_user.read(&mut buffer[..room]).await?;
                let frame = if n == 0 {
                    Frame::Finish { connection }
                } else {
                    self.credit.send_modify(|credit| {
                        // Never more than there was: only this task takes.
                        let _ = credit.take(n);
                    });
                    Frame::Data { connection, bytes: buffer[..n].to_vec() }
                };
                if self.sender.send(frame).await.is_err() || n == 0 {
                    return Ok(());
                }
            }
        };
        let down = async {
            loop {
                match heard.recv().await {
                    Some(Said::Bytes(bytes)) => {
                        if to_user.write_all(&bytes).await.is_err() {
                            return Err(String::new());
                        }
                        let bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                        if let Some(found) = lock(&self.connections).get_mut(&connection) {
                            found.window.give(bytes);
                        }
                        let credit = Frame::ConnectionCredit { connection, bytes };
                        if self.sender.send(credit).await.is_err() {
                            return Err(String::new());
                        }
                    }
                    Some(Said::Finish) => {
                        let _ = to_user.shutdown().await;
                        return Ok(());
                    }
                    Some(Said::Reset(why)) => return Err(why),
                    None => return Err(String::new()),
                }
            }
        };
        tokio::pin!(up, down);
        let mut said_all = false;
        let result = loop {
            tokio::select! {
                result = &mut down => break result,
                result = &mut up, if !said_all => match result {
                    Ok(()) => said_all = true,
                    Err(_) => break Err(String::new()),
                },
            }
        };
        lock(&self.connections).remove(&connection);
        if !(said_all && result.is_ok()) {
            // The node learns that nothing more is wanted of it.
            let reset = Frame::Reset { connection, why: String::new() };
            let _ = self.sender.send(reset).await;
        }
        if let Err(why) = result {
            let _ = tell.send(why);
        }
    }
}
