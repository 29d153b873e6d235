//! Makes the plane's own connections and flows, with the source that the server is
//! to see.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::capture::sockets::{keep_alive, set_transparent};

/// How long one endpoint may take to answer, before the next is tried.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Connects. `source` is an address that is not this node's; `None` leaves it to the
/// kernel.
///
/// # Errors
/// The connection is refused, nobody answers in time, or no descriptor is left.
pub(crate) async fn connect(source: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(Type::STREAM, source, to)?;
    keep_alive(&socket)?;
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    match tokio::time::timeout(DIAL_TIMEOUT, connecting).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A socket for datagrams to and from one address.
///
/// # Errors
/// There is no way to it, or no descriptor is left.
pub(crate) fn flow(source: Option<IpAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(Type::DGRAM, source, to)?;
    socket.connect(&to.into())?;
    UdpSocket::from_std(socket.into())
}

fn socket(kind: Type, source: Option<IpAddr>, to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), kind.nonblocking(), None)?;
    if let Some(source) = source {
        set_transparent(&socket, to.is_ipv6())?;
        // The port is chosen when the destination is known: each destination has all.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket)
}
