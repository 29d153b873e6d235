//! TLS over TCP, with many streams in it: for where UDP does not pass, and inside
//! the connection that the master relays.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::identity::{Keys, SERVER_NAME, node_name};
use super::mux::Mux;

/// Bytes in the kernel that are not sent yet: what is written later overtakes no more.
const UNSENT_BYTES_MAX: u32 = 128 << 10;

/// Dials `peer` at `address`.
pub(super) async fn dial(
    keys: &Keys,
    peer: &str,
    address: SocketAddr,
    keep_alive: Duration,
) -> io::Result<Mux> {
    let stream = TcpStream::connect(address).await?;
    prepare(&stream, keep_alive)?;
    dial_over(stream, keys, peer, keep_alive).await
}

/// As [`dial`], over a connection that is there.
pub(super) async fn dial_over<C>(
    connection: C,
    keys: &Keys,
    peer: &str,
    keep_alive: Duration,
) -> io::Result<Mux>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (config, refusal) = keys.client(peer).map_err(io::Error::other)?;
    let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, connection).await;
    let stream = stream.map_err(|error| refusal.explain(error))?;
    Ok(Mux::start(stream, true, keep_alive))
}

/// Takes who dials over a connection, and says which node it is.
pub(super) async fn accept_over<C>(
    connection: C,
    keys: &Keys,
    keep_alive: Duration,
) -> io::Result<(Mux, String)>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = TlsAcceptor::from(Arc::clone(&keys.server)).accept(connection).await?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let name = leaf.map_or_else(|| Err("there is none".to_owned()), node_name);
    let name = name.map_err(|why| io::Error::new(io::ErrorKind::PermissionDenied, why))?;
    Ok((Mux::start(stream, false, keep_alive), name))
}

/// What a link wants of TCP.
pub(super) fn prepare(stream: &TcpStream, keep_alive: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.set_tcp_user_timeout(Some(keep_alive * 3))
}
