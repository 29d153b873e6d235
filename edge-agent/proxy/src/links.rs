//! What the data plane and the links between nodes know of each other.
//!
//! The plane asks [`Links`] for a way to a flow's destination on another node;
//! the links hand what other nodes send to an [`Acceptor`], which is the plane.
//! [`Uplink`] is the one way out to the master; the program gives it. [`Names`]
//! answers the questions that the plane catches.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::table::Protocol;

/// A future in a box.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Bytes both ways; the end of one direction (`shutdown`) leaves the other open.
/// Dropped before both have ended, it is broken: the other side reads an error
/// (`ConnectionReset`), not an end, and who passes it on to TCP is to reset, too.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection or a flow of datagrams, as it looks to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Flow {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Who sends: a pod of the sending node, that node itself, or a client from
    /// outside (`is_external`).
    pub source: SocketAddr,
    /// A pod of the receiving node, or a port of the node that is an endpoint.
    pub destination: SocketAddr,
    /// The client came from outside the cluster to a port of the sending node. Only
    /// then may the source be no address of the sender's pods.
    pub is_external: bool,
}

/// The way to other nodes.
pub trait Links: Debug + Send + Sync + 'static {
    /// Connects to the flow's destination on `peer`. Returns once the peer has: a
    /// refusal there is an error here (`ConnectionRefused`), and the next endpoint
    /// can be tried.
    fn open<'a>(
        &'a self,
        peer: &'a str,
        flow: Flow,
    ) -> BoxFuture<'a, io::Result<Box<dyn Connection>>>;

    /// Sends one datagram, best effort; false where there is no way at the moment.
    fn send(&self, peer: &str, flow: Flow, datagram: &[u8]) -> bool;
}

/// Takes what other nodes send. The links have checked that `peer` is who it says,
/// and the flow's addresses against the table.
pub trait Acceptor: Debug + Send + Sync + 'static {
    /// Connects to the flow's destination on this node.
    fn connect(&self, peer: &str, flow: Flow) -> BoxFuture<'_, io::Result<Box<dyn Connection>>>;

    /// Takes one datagram. Answers come back through [`Links::send`] with source and
    /// destination exchanged.
    fn datagram(&self, peer: &str, flow: Flow, datagram: &[u8]);
}

/// The node's one way out, to the master's node port.
pub trait Uplink: Debug + Send + Sync + 'static {
    /// Connects, authenticated as this node, for the purpose that `alpn` names.
    fn dial<'a>(&'a self, alpn: &'static [u8]) -> BoxFuture<'a, io::Result<Box<dyn Connection>>>;
}

/// What a stream to the master is for that carries a connection to its API.
pub const ALPN_API: &[u8] = b"pinnace-api/1";

/// Answers questions for names, at the table's DNS addresses, port 53. The plane owns
/// the sockets: it hands over what arrives, and sends the answers from the address
/// that was asked.
pub trait Names: Debug + Send + Sync + 'static {
    /// Answers one datagram; `None` where it deserves no answer. The plane waits for
    /// at most [`QUESTIONS_MAX`] answers at a time and drops what comes beyond.
    fn datagram<'a>(
        &'a self,
        client: SocketAddr,
        question: &'a [u8],
    ) -> BoxFuture<'a, Option<Vec<u8>>>;

    /// Answers what comes over one TCP connection, until it ends or idles too long.
    fn stream(&self, client: SocketAddr, stream: Box<dyn Connection>) -> BoxFuture<'_, ()>;
}

/// Most questions in datagrams that wait for their answers.
pub const QUESTIONS_MAX: usize = 1024;
