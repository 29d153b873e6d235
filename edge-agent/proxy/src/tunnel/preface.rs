//! What stands in front of the bytes of a link: what two nodes say when a link is
//! made, which flow a stream is, and which a datagram belongs to.
//!
//! ```text
//! first stream of a link   → u8 version, u16 length (LE), bytes to be skipped
//!                          ← the same, then either side: u8 notices
//! any other stream         → u8 version, u8 length, postcard of Flow, its bytes
//!                          ← u8 answer, the other way's bytes
//! datagram                   postcard of Flow, its bytes
//! ```
//!
//! The bytes to be skipped leave room for what a later version has to say. A notice
//! that is not known is skipped.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::links::Flow;

/// What this program speaks.
const VERSION: u8 = 1;
/// Most bytes of a hello that are skipped.
const HELLO_BYTES_MAX: u16 = 4096;
/// Most bytes of a flow: two IPv6 addresses with ports take 42.
const FLOW_BYTES_MAX: usize = 64;
/// Most bytes of a datagram: what UDP can carry, and its flow.
pub(super) const DATAGRAM_BYTES_MAX: usize = 65_535 + FLOW_BYTES_MAX;
/// The sender will not serve this link for long: open nothing new on it.
pub(super) const NOTICE_LEAVING: u8 = 1;

/// How a node answers who opens a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is connected.
    Connected,
    /// Nobody listens there.
    Refused,
    /// Nobody answers there.
    TimedOut,
    /// A policy forbids it, or the addresses are not the sender's.
    Forbidden,
    /// Too many are open.
    Busy,
    /// There is no way there.
    Unreachable,
    /// It does not work for another reason.
    Failed,
}

impl Answer {
    fn byte(self) -> u8 {
        match self {
            Self::Connected => 0,
            Self::Refused => 1,
            Self::TimedOut => 2,
            Self::Forbidden => 3,
            Self::Busy => 4,
            Self::Unreachable => 5,
            Self::Failed => 6,
        }
    }

    fn of_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Connected,
            1 => Self::Refused,
            2 => Self::TimedOut,
            3 => Self::Forbidden,
            4 => Self::Busy,
            5 => Self::Unreachable,
            _ => Self::Failed,
        }
    }

    /// What is said of a dial that failed.
    pub(super) fn of_error(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::Refused,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            io::ErrorKind::ResourceBusy | io::ErrorKind::QuotaExceeded => Self::Busy,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Failed,
        }
    }

    /// The error that who opened the stream gets; `None` where it is connected.
    pub(super) fn error(self, peer: &str, flow: &Flow) -> Option<io::Error> {
        let (kind, what) = match self {
            Self::Connected => return None,
            Self::Refused => (io::ErrorKind::ConnectionRefused, "refused the connection"),
            Self::TimedOut => (io::ErrorKind::TimedOut, "does not answer"),
            Self::Forbidden => (io::ErrorKind::PermissionDenied, "may not be connected to"),
            Self::Busy => (io::ErrorKind::ResourceBusy, "cannot be reached: too many connections"),
            Self::Unreachable => (io::ErrorKind::HostUnreachable, "is not reachable there"),
            Self::Failed => (io::ErrorKind::Other, "could not be connected to"),
        };
        Some(io::Error::new(kind, format!("{} on node {peer} {what}", flow.destination)))
    }
}

/// Says hello, or answers it.
pub(super) async fn write_hello(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(&[VERSION, 0, 0]).await?;
    stream.flush().await
}

/// Reads a hello, or its answer.
pub(super) async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    check_version(stream.read_u8().await?)?;
    let length = stream.read_u16_le().await?;
    if length > HELLO_BYTES_MAX {
        return Err(invalid(format!("a hello of {length} bytes")));
    }
    let skipped = tokio::io::copy(&mut stream.take(length.into()), &mut tokio::io::sink()).await?;
    if skipped < length.into() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Says which flow a stream is.
pub(super) async fn write_flow(
    stream: &mut (impl AsyncWrite + Unpin),
    flow: &Flow,
) -> io::Result<()> {
    let mut bytes = vec![VERSION, 0];
    bytes = postcard::to_extend(flow, bytes).map_err(io::Error::other)?;
    bytes[1] = u8::try_from(bytes.len() - 2).map_err(io::Error::other)?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads which flow a stream is.
pub(super) async fn read_flow(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Flow> {
    check_version(stream.read_u8().await?)?;
    let length = usize::from(stream.read_u8().await?);
    if length > FLOW_BYTES_MAX {
        return Err(invalid(format!("a flow of {length} bytes")));
    }
    let mut bytes = [0; FLOW_BYTES_MAX];
    stream.read_exact(&mut bytes[..length]).await?;
    postcard::from_bytes(&bytes[..length]).map_err(|error| invalid(error.to_string()))
}

/// Answers who opened a stream.
pub(super) async fn write_answer(
    stream: &mut (impl AsyncWrite + Unpin),
    answer: Answer,
) -> io::Result<()> {
    stream.write_all(&[answer.byte()]).await?;
    stream.flush().await
}

/// Reads the answer.
pub(super) async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Answer> {
    Ok(Answer::of_byte(stream.read_u8().await?))
}

/// A datagram with its flow in front.
pub(super) fn encode_datagram(flow: &Flow, datagram: &[u8]) -> Vec<u8> {
    let bytes = Vec::with_capacity(FLOW_BYTES_MAX + datagram.len());
    // Only numbers: it always serialises.
    let mut bytes = postcard::to_extend(flow, bytes).unwrap_or_default();
    bytes.extend_from_slice(datagram);
    bytes
}

/// The flow of a datagram, and its bytes; `None` where it makes no sense.
pub(super) fn decode_datagram(bytes: &[u8]) -> Option<(Flow, &[u8])> {
    postcard::take_from_bytes(bytes).ok()
}

fn check_version(version: u8) -> io::Result<()> {
    if version == VERSION {
        return Ok(());
    }
    Err(invalid(format!("version {version} of the link; this program speaks {VERSION}")))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::Protocol;

    fn flows() -> Vec<Flow> {
        let flow = |source: &str, destination: &str| Flow {
            protocol: Protocol::Udp,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            is_external: true,
        };
        let long = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        vec![flow("10.42.1.2:40000", "10.42.2.3:53"), flow(long, long)]
    }

    #[tokio::test]
    async fn flows_and_answers_arrive_as_they_were_sent() {
        for flow in flows() {
            let mut bytes = Vec::new();
            write_flow(&mut bytes, &flow).await.unwrap();
            bytes.push(7);
            let mut rest = bytes.as_slice();
            assert_eq!(read_flow(&mut rest).await.unwrap(), flow);
            assert_eq!(rest, [7]);
            let datagram = encode_datagram(&flow, b"query");
            assert_eq!(decode_datagram(&datagram), Some((flow, b"query".as_slice())));
        }
        for byte in 0..=u8::MAX {
            let answer = read_answer(&mut [byte].as_slice()).await.unwrap();
            assert!(answer.byte() == byte || answer == Answer::Failed);
            assert_eq!(answer.error("pi", &flows()[0]).is_none(), byte == 0);
        }
    }

    #[tokio::test]
    async fn the_layout_is_fixed_and_another_version_is_refused() {
        let mut bytes = Vec::new();
        write_flow(&mut bytes, &flows()[0]).await.unwrap();
        let expected = [1, 16, 1, 0, 10, 42, 1, 2, 0xc0, 0xb8, 2, 0, 10, 42, 2, 3, 53, 1];
        assert_eq!(bytes, expected);
        bytes[0] = 2;
        let problem = read_flow(&mut bytes.as_slice()).await.unwrap_err();
        assert!(problem.to_string().contains("version 2"), "{problem}");
        read_flow(&mut [1, 65].as_slice()).await.unwrap_err();
        let mut hello = vec![1, 3, 0, 9, 9, 9, 5];
        let mut rest = hello.as_slice();
        read_hello(&mut rest).await.unwrap();
        assert_eq!(rest, [5], "what a later version says is skipped");
        hello.truncate(5);
        read_hello(&mut hello.as_slice()).await.unwrap_err();
        read_hello(&mut [1, 0xff, 0xff].as_slice()).await.unwrap_err();
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let _ = read_flow(&mut bytes.as_slice()).await;
                let _ = read_hello(&mut bytes.as_slice()).await;
                let _ = decode_datagram(&bytes);
            });
        }
    }
}
