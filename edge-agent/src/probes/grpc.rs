//! `grpc.health.v1.Health/Check`: one call over HTTP/2, as much of it as that
//! needs. The answer's header fields are not decoded: the status is in the body.
//!
//! ```text
//! preface, SETTINGS, HEADERS(1), DATA(1, end) ──►
//!                          ◄── SETTINGS, HEADERS(1), DATA(1): 0, length, status
//! ```
//!
//! Source: RFC 9113, RFC 7541, and
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{authority, connect, what};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PATH: &[u8] = b"/grpc.health.v1.Health/Check";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// Largest frame that a server may send without being asked.
const FRAME_BYTES_MAX: usize = 16 << 10;
/// Frames that are read before the server is given up.
const FRAMES_MAX: usize = 256;
/// Longest message; a status has two bytes.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Asks for the health of a service; no answer is an error like a bad one.
pub(super) async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let place = authority(host, port);
    let mut stream = connect(host, port).await.map_err(|error| {
        format!("error: failed to connect service \"{place}\": {}", what(&error))
    })?;
    let status = call(&mut stream, &place, service)
        .await
        .map_err(|error| format!("error: health rpc to \"{place}\" failed: {}", what(&error)))?;
    match status {
        Some(1) => Ok(()),
        Some(status) => {
            let word = match status {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "a status that is not known",
            };
            Err(format!("service unhealthy (responded with \"{word}\")"))
        }
        None => Err(format!(
            "error: \"{place}\" does not answer grpc.health.v1.Health/Check for service \"{service}\""
        )),
    }
}

/// The status in the answer; `None` if the call ended without one.
async fn call(stream: &mut TcpStream, place: &str, service: &str) -> io::Result<Option<u64>> {
    stream.write_all(&request(place, service)).await?;
    let mut body = Vec::new();
    for _ in 0..FRAMES_MAX {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let frame = Frame::parse(head)?;
        let mut payload = vec![0; frame.n_bytes];
        stream.read_exact(&mut payload).await?;
        match (frame.kind, frame.stream) {
            (SETTINGS, 0) if frame.flags & ACK == 0 => {
                stream.write_all(&write_frame(SETTINGS, ACK, 0, &[])).await?;
            }
            (PING, 0) if frame.flags & ACK == 0 => {
                stream.write_all(&write_frame(PING, ACK, 0, &payload)).await?;
            }
            (GOAWAY, 0) => return Err(io::ErrorKind::ConnectionReset.into()),
            (RST_STREAM, 1) => return Ok(None),
            (HEADERS, 1) if frame.flags & END_STREAM != 0 => return status(&body),
            (DATA, 1) => {
                body.extend_from_slice(unpad(&payload, frame.flags)?);
                if let Some(status) = status(&body)? {
                    return Ok(Some(status));
                }
                if frame.flags & END_STREAM != 0 {
                    return Ok(None);
                }
            }
            _ => {}
        }
    }
    Err(invalid("the server talks and does not answer"))
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[derive(Debug, PartialEq, Eq)]
struct Frame {
    n_bytes: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    fn parse(head: [u8; 9]) -> io::Result<Self> {
        let [a, b, c, kind, flags, stream @ ..] = head;
        let n_bytes = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if n_bytes > FRAME_BYTES_MAX {
            return Err(invalid("the server does not speak HTTP/2"));
        }
        let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
        Ok(Self { n_bytes, kind, flags, stream })
    }
}

fn write_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let n_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = vec![n_bytes[1], n_bytes[2], n_bytes[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn request(place: &str, service: &str) -> Vec<u8> {
    // Names and values that the static table has (RFC 7541, appendix A) are numbers.
    let mut fields = vec![0x80 | 3, 0x80 | 6];
    field(&mut fields, 4, PATH);
    field(&mut fields, 1, place.as_bytes());
    field(&mut fields, 31, b"application/grpc");
    field(&mut fields, 58, b"kube-probe/pinnace");
    fields.push(0);
    text(&mut fields, b"te");
    text(&mut fields, b"trailers");

    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        varint(&mut message, service.len());
        message.extend_from_slice(service.as_bytes());
    }
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend_from_slice(&message);

    // No pushes.
    let settings = [0, 2, 0, 0, 0, 0];
    [
        PREFACE.to_vec(),
        write_frame(SETTINGS, 0, 0, &settings),
        write_frame(HEADERS, END_HEADERS, 1, &fields),
        write_frame(DATA, END_STREAM, 1, &body),
    ]
    .concat()
}

/// A field that is not to be remembered, its name by its number.
fn field(out: &mut Vec<u8>, name: usize, value: &[u8]) {
    integer(out, 4, name);
    text(out, value);
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    integer(out, 7, text.len());
    out.extend_from_slice(text);
}

/// An integer of HPACK; the bits above the prefix are zero.
fn integer(out: &mut Vec<u8>, prefix_bits: u8, mut value: usize) {
    let max = (1 << prefix_bits) - 1;
    if value < max {
        out.push(u8::try_from(value).unwrap_or(u8::MAX));
        return;
    }
    out.push(u8::try_from(max).unwrap_or(u8::MAX));
    value -= max;
    varint(out, value);
}

/// Seven bits a byte, the lowest first, as HPACK and protobuf both have it.
fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(0x80 | u8::try_from(value & 0x7f).unwrap_or(0));
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

fn unpad(payload: &[u8], flags: u8) -> io::Result<&[u8]> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let (n_bytes, rest) =
        payload.split_first().ok_or_else(|| invalid("an empty frame is padded"))?;
    let end = rest.len().checked_sub(usize::from(*n_bytes));
    end.map(|end| &rest[..end]).ok_or_else(|| invalid("a frame is all padding"))
}

/// The status in a body, once it is complete.
fn status(body: &[u8]) -> io::Result<Option<u64>> {
    let Some((head, rest)) = body.split_first_chunk::<5>() else { return Ok(None) };
    let [compressed, n_bytes @ ..] = *head;
    let n_bytes = usize::try_from(u32::from_be_bytes(n_bytes)).unwrap_or(usize::MAX);
    if compressed != 0 || n_bytes > MESSAGE_BYTES_MAX {
        return Err(invalid("the answer is no health status"));
    }
    let Some(message) = rest.get(..n_bytes) else { return Ok(None) };
    let mut status = 0;
    let mut left = message;
    // Fields that are not known are passed over.
    while !left.is_empty() {
        let tag = read_varint(&mut left)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = read_varint(&mut left)?,
            (_, 0) => drop(read_varint(&mut left)?),
            (_, 1) => skip(&mut left, 8)?,
            (_, 2) => {
                let n_bytes = read_varint(&mut left)?;
                skip(&mut left, usize::try_from(n_bytes).unwrap_or(usize::MAX))?;
            }
            (_, 5) => skip(&mut left, 4)?,
            _ => return Err(invalid("the answer is no health status")),
        }
    }
    Ok(Some(status))
}

fn read_varint(bytes: &mut &[u8]) -> io::Result<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(invalid("a number has no end"))
}

fn skip(bytes: &mut &[u8], n: usize) -> io::Result<()> {
    *bytes = bytes.get(n..).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn statuses_are_read() {
        let body = |message: &[u8]| {
            let n = u8::try_from(message.len()).unwrap();
            [&[0, 0, 0, 0, n], message].concat()
        };
        assert_eq!(status(&body(&[8, 1])).unwrap(), Some(1));
        assert_eq!(status(&body(&[0x12, 1, 9, 8, 2, 0x15, 0, 0, 0, 0])).unwrap(), Some(2));
        assert_eq!(status(&body(&[])).unwrap(), Some(0));
        assert_eq!(status(&[0, 0, 0, 0, 2, 8]).unwrap(), None, "not all of it yet");
        assert!(status(&[1, 0, 0, 0, 0]).is_err(), "compressed");
        assert!(status(&[0, 9, 0, 0, 0]).is_err(), "too long");
        assert!(status(&body(&[0x12, 9, 1])).is_err(), "cut");
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64), head in any::<[u8; 9]>(), flags: u8) {
            let _ = status(&bytes);
            let _ = unpad(&bytes, flags);
            let _ = Frame::parse(head);
        }
    }
}
