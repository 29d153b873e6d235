//! What agent and proxy say to each other, over a stream socket in the run folder.
//!
//! ```text
//! u32 length (LE), postcard of ToProxy or FromProxy
//! ```
//!
//! The agent speaks first: a [`Table`], again whenever it changes. The proxy
//! answers each with a [`Status`], and says it again when it changes.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::table::Table;

/// Most bytes of a message: 10,000 Services with ten endpoints each take 8 MB.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToProxy {
    /// Do this from now on.
    Table(Box<Table>),
    /// A node that does not reach this one waits at the master; fetch the connection
    /// with this ticket.
    Relay {
        /// Who waits.
        peer: String,
        /// Good once, and for seconds.
        ticket: [u8; 16],
    },
    /// Hand everything over to whoever asks for it, then end.
    Leave,
}

/// From the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromProxy {
    /// How it is.
    Status(Status),
}

/// How the proxy is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which program it is: the agent replaces another one.
    pub version: String,
    /// The table that is in force.
    pub generation: u64,
    /// How traffic gets here.
    pub capture: Capture,
    /// Why not the way above it; empty where nothing is missing.
    pub degraded: String,
    /// What is asked for and cannot be, for Events and conditions.
    pub conflicts: Vec<Conflict>,
    /// How the other nodes are reached; those that were tried.
    pub paths: Vec<Path>,
}

/// How traffic gets to the proxy, the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capture {
    /// A program at the kernel's socket lookup (BPF `sk_lookup`).
    SkLookup,
    /// Rules in an nftables table of our own (TPROXY).
    Tproxy,
    /// A listener for each Service's address and port: Services only, and servers
    /// see the node's address.
    Listeners,
    /// Nothing yet.
    #[default]
    None,
}

/// A port that something else has.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Conflict {
    /// Namespace of the Service; empty for what is no Service's.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// What is wrong, for people, with the port in it.
    pub message: String,
}

/// How another node is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// The node.
    pub peer: String,
    /// `quic`, `tls`, `relay`, or `none`.
    pub lane: String,
    /// Where it was reached; empty through the master.
    pub remote: String,
    /// Smoothed round trip, in microseconds; 0 where unknown.
    pub rtt_us: u32,
    /// Of 10,000 packets, how many were lost; of TLS, 0.
    pub loss_per_10000: u32,
    /// Bytes sent since the connection began.
    pub tx_bytes: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Since when, in seconds.
    pub age_s: u64,
    /// Why not better; empty for `quic`.
    pub why: String,
}

/// Reads one message; `None` at the end of the stream.
///
/// # Errors
/// The stream breaks, or what it says makes no sense.
pub async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut head = [0; 4];
    match stream.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let n_bytes = u32::from_le_bytes(head) as usize;
    if n_bytes > MESSAGE_BYTES_MAX {
        let text = format!("a message of {n_bytes} bytes; at most {MESSAGE_BYTES_MAX} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = Vec::new();
    stream.take(n_bytes as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < n_bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    postcard::from_bytes(&bytes)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes one message.
///
/// # Errors
/// The stream breaks, or the message is too large.
pub async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::other(format!("a message of {} bytes is too large", bytes.len())));
    }
    let n_bytes = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&n_bytes.to_le_bytes()).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test]
    async fn messages_arrive_as_they_were_sent_and_the_end_is_the_end() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let sent = ToProxy::Relay { peer: "pi".into(), ticket: [7; 16] };
        let (wrote, got) = tokio::join!(write(&mut near, &sent), read::<ToProxy>(&mut far));
        wrote.unwrap();
        assert_eq!(got.unwrap(), Some(sent));
        drop(near);
        assert_eq!(read::<ToProxy>(&mut far).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_message_of_impossible_size_is_refused_before_it_is_read() {
        let mut bytes: &[u8] = &[0xff, 0xff, 0xff, 0xff, 1, 2];
        let problem = read::<ToProxy>(&mut bytes).await.unwrap_err();
        assert!(problem.to_string().contains("4294967295"), "{problem}");
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_a_message_and_never_a_panic(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read::<ToProxy>(&mut bytes.as_slice()));
        }
    }
}
