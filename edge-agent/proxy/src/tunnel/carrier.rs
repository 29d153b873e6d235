//! What carries streams and datagrams to one peer: a QUIC connection, or many
//! streams over a connection of bytes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::mux;
use super::quic;

/// Connected to one peer; closed when it is dropped.
#[derive(Debug)]
pub(super) enum Carrier {
    Quic(quic::Quic),
    /// With where the peer is, where that is known.
    Mux(mux::Mux, Option<SocketAddr>),
}

/// What is known of a carrier by measuring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Measures {
    pub(super) rtt_us: u32,
    pub(super) n_sent: u64,
    pub(super) n_lost: u64,
    pub(super) tx_bytes: u64,
    pub(super) rx_bytes: u64,
}

impl Carrier {
    pub(super) async fn open(&self) -> io::Result<Stream> {
        match self {
            Self::Quic(quic) => quic.open().await.map(Stream::Quic),
            Self::Mux(mux, _) => mux.open().map(Stream::Mux),
        }
    }

    /// The next stream that the peer opens; `None` once it is over.
    pub(super) async fn accept(&self) -> Option<Stream> {
        match self {
            Self::Quic(quic) => quic.accept().await.map(Stream::Quic),
            Self::Mux(mux, _) => mux.accept().await.map(Stream::Mux),
        }
    }

    pub(super) fn send_datagram(&self, bytes: Vec<u8>) -> bool {
        match self {
            Self::Quic(quic) => quic.send_datagram(bytes),
            Self::Mux(mux, _) => mux.send_datagram(&bytes),
        }
    }

    /// The next datagram; `None` once it is over.
    pub(super) async fn datagram(&self) -> Option<Bytes> {
        match self {
            Self::Quic(quic) => quic.datagram().await,
            Self::Mux(mux, _) => mux.datagram().await,
        }
    }

    /// Waits for the end, and says why.
    pub(super) async fn closed(&self) -> String {
        match self {
            Self::Quic(quic) => quic.closed().await,
            Self::Mux(mux, _) => mux.closed().await,
        }
    }

    pub(super) fn close(&self) {
        match self {
            Self::Quic(quic) => quic.close(),
            Self::Mux(mux, _) => mux.close(),
        }
    }

    /// Closes with a reason that the peer is told.
    pub(super) fn refuse(&self, why: &str) {
        match self {
            Self::Quic(quic) => quic.refuse(why),
            Self::Mux(mux, _) => mux.refuse(why),
        }
    }

    /// Why it is over, once it is.
    pub(super) fn ended(&self) -> Option<String> {
        match self {
            Self::Quic(quic) => quic.ended(),
            Self::Mux(mux, _) => mux.ended(),
        }
    }

    pub(super) fn measures(&self) -> Measures {
        match self {
            Self::Quic(quic) => quic.measures(),
            Self::Mux(mux, _) => {
                let (tx_bytes, rx_bytes, rtt_us) = mux.measures();
                let rtt_us = u32::try_from(rtt_us).unwrap_or(u32::MAX);
                Measures { rtt_us, tx_bytes, rx_bytes, ..Measures::default() }
            }
        }
    }
}

/// Microseconds, as they are told.
pub(super) fn us(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// Bytes both ways. Dropped before both ways have come to their end, it breaks.
#[derive(Debug)]
pub(super) enum Stream {
    Quic(quic::Stream),
    Mux(mux::Stream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Mux(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match self.get_mut() {
            Self::Quic(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Mux(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        // A peer that wants no more is the same to TCP's users, whatever carries it.
        Poll::Ready(ready!(written).map_err(|error| match error.kind() {
            io::ErrorKind::NotConnected => io::Error::new(io::ErrorKind::ConnectionReset, error),
            _ => error,
        }))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(stream) => Pin::new(stream).poll_flush(cx),
            Self::Mux(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Mux(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
