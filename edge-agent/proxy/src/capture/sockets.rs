//! The sockets that captured traffic comes to: a TCP listener and a UDP socket, one
//! pair a family.
//!
//! They are bound to the loopback address, at ports that the kernel chose, and
//! `IP_TRANSPARENT`, so that they may answer from any address.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, TcpKeepalive, Type};

use super::program::socket_index;
use super::tproxy::Ports;
use crate::table::Protocol;

/// How many connections wait to be accepted; the kernel lowers it to `somaxconn`.
const BACKLOG: i32 = 4096;

/// Bytes of datagrams that wait to be read; the kernel may lower it.
const UDP_BUFFER_BYTES: usize = 1 << 20;

/// How long a connection is silent before it is probed, how often, and how many
/// probes may go unanswered.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(10), 6);

/// The sockets; those of IPv6 only where the node has it.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) tcp4: Socket,
    pub(crate) udp4: Socket,
    pub(crate) tcp6: Option<Socket>,
    pub(crate) udp6: Option<Socket>,
}

impl Sockets {
    /// Makes them in the namespace of the thread that calls.
    ///
    /// # Errors
    /// The kernel refuses those of IPv4.
    pub(crate) fn new() -> io::Result<Self> {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let local6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
        let six = || Ok::<_, io::Error>((listener(local6, true)?, datagrams(local6, true)?));
        let (tcp6, udp6) = six().ok().unzip();
        Ok(Self { tcp4: listener(local, true)?, udp4: datagrams(local, true)?, tcp6, udp6 })
    }

    pub(crate) fn indexed(&self) -> Vec<(u32, BorrowedFd<'_>)> {
        let sockets = [
            (socket_index(false, Protocol::Tcp), Some(&self.tcp4)),
            (socket_index(false, Protocol::Udp), Some(&self.udp4)),
            (socket_index(true, Protocol::Tcp), self.tcp6.as_ref()),
            (socket_index(true, Protocol::Udp), self.udp6.as_ref()),
        ];
        sockets.into_iter().filter_map(|(n, socket)| Some((n, socket?.as_fd()))).collect()
    }

    /// The sockets of a predecessor, by the index of [`Self::indexed`]; `None` where
    /// those of IPv4 are not among them.
    pub(crate) fn adopt(sockets: Vec<(u32, OwnedFd)>) -> Option<Self> {
        let mut all = [const { None }; 4];
        for (index, fd) in sockets {
            *all.get_mut(usize::try_from(index).ok()?)? = Some(Socket::from(fd));
        }
        let [tcp4, udp4, tcp6, udp6] = all;
        Some(Self { tcp4: tcp4?, udp4: udp4?, tcp6, udp6 })
    }

    /// At which ports of the loopback address they are.
    pub(crate) fn ports(&self) -> Ports {
        let port = |socket: &Socket| {
            socket.local_addr().ok().and_then(|a| a.as_socket()).map_or(0, |a| a.port())
        };
        Ports {
            tcp4: port(&self.tcp4),
            udp4: port(&self.udp4),
            six: self.tcp6.as_ref().zip(self.udp6.as_ref()).map(|(t, u)| (port(t), port(u))),
        }
    }
}

/// A listener for TCP; what it accepts has its options.
///
/// # Errors
/// The address is taken, or not the node's.
pub(crate) fn listener(address: SocketAddr, is_transparent: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if is_transparent {
        set_transparent(&socket, address.is_ipv6())?;
    }
    keep_alive(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A socket for UDP that tells where each datagram was sent to. Unlike a listener it
/// does not share its address, so it takes nothing from anybody.
///
/// # Errors
/// The address is taken, or not the node's.
pub(crate) fn datagrams(address: SocketAddr, is_transparent: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
    }
    if is_transparent {
        set_transparent(&socket, address.is_ipv6())?;
    }
    // As much as the kernel gives without a privilege of its own.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Lets a socket have addresses that are not the node's.
///
/// # Errors
/// `CAP_NET_ADMIN` is missing, and `CAP_NET_RAW` too.
pub(crate) fn set_transparent(socket: &Socket, is_ipv6: bool) -> io::Result<()> {
    if is_ipv6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
}

/// Has a connection noticed whose other end is gone, and small writes sent at once.
///
/// # Errors
/// It is no TCP socket.
pub(crate) fn keep_alive(socket: &Socket) -> io::Result<()> {
    let (idle, interval, probes) = KEEPALIVE;
    let keepalive =
        TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_nodelay(true)
}
