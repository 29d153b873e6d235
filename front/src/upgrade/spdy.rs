//! SPDY/3.1, as much of it as clients of Kubernetes speak: frames in and out,
//! without I/O.
//!
//! | frame | from a client | to a client |
//! |---|---|---|
//! | SYN_STREAM (1) | a stream begins, with header fields | never |
//! | SYN_REPLY (2) | ignored | answers SYN_STREAM, without header fields |
//! | RST_STREAM (3) | the stream is broken | |
//! | PING (6) | answered with itself | |
//! | GOAWAY (7) | no more streams come | at the end |
//! | DATA | bytes, FIN for the last ones | the same |
//!
//! SETTINGS, HEADERS and WINDOW_UPDATE are read and ignored: clients of
//! Kubernetes know no flow control but the connection's. Header blocks are one
//! zlib stream over the whole connection, with a dictionary that both sides know
//! before it begins. Ours holds stored blocks only and needs no compressor.

use bytes::{Buf, Bytes, BytesMut};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

/// Longest data frame, in bytes; clients send 32 KiB.
const DATA_BYTES_MAX: usize = 1 << 20;
/// Longest control frame, in bytes.
const CONTROL_BYTES_MAX: usize = 64 << 10;
/// Longest header block once it is inflated, in bytes.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Most header fields of a stream.
const HEADERS_MAX: usize = 64;
/// What a compressed block may refer back to, in bytes; a power of two.
const WINDOW_BYTES: usize = 32 << 10;

const FIN: u8 = 1;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A stream begins.
    Open { stream: u32, headers: Vec<(String, String)>, fin: bool },
    /// Bytes of a stream.
    Data { stream: u32, bytes: Bytes, fin: bool },
    /// A stream is broken.
    Reset { stream: u32 },
    /// To be answered with the same.
    Ping(u32),
    /// No more streams come.
    GoAway,
}

/// Why bytes are not SPDY.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpdyError {
    #[error("SPDY version {0} instead of 3")]
    Version(u16),
    #[error("a SPDY frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("a SPDY frame of type {0} that is cut off")]
    CutOff(u16),
    #[error("a SPDY header block that cannot be inflated")]
    Compression,
    #[error("a SPDY header block that makes no sense")]
    Headers,
}

/// Reads frames.
pub(super) struct Decoder {
    inflater: Inflater,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { inflater: Inflater::new() }
    }

    /// Takes the next frame that means something off `buffer`; `None` if more
    /// bytes are needed.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, SpdyError> {
        while let Some(head) = buffer.first_chunk::<8>() {
            let [a, b, c, d, flags, length @ ..] = *head;
            let length =
                usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
            let is_control = a & 0x80 != 0;
            if length > if is_control { CONTROL_BYTES_MAX } else { DATA_BYTES_MAX } {
                return Err(SpdyError::TooLong(length));
            }
            let version = u16::from_be_bytes([a & 0x7f, b]);
            if is_control && version != 3 {
                return Err(SpdyError::Version(version));
            }
            if buffer.len() < 8 + length {
                buffer.reserve(8 + length - buffer.len());
                return Ok(None);
            }
            buffer.advance(8);
            let content = buffer.split_to(length).freeze();
            let fin = flags & FIN != 0;
            if !is_control {
                let stream = u32::from_be_bytes([a, b, c, d]);
                return Ok(Some(Event::Data { stream, bytes: content, fin }));
            }
            if let Some(event) = self.control(u16::from_be_bytes([c, d]), &content, fin)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn control(
        &mut self,
        kind: u16,
        content: &[u8],
        fin: bool,
    ) -> Result<Option<Event>, SpdyError> {
        let number = |at: usize| {
            let bytes = content.get(at..at + 4).and_then(<[u8]>::first_chunk::<4>);
            bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or(SpdyError::CutOff(kind))
        };
        let stream = || Ok(number(0)? & 0x7fff_ffff);
        Ok(match kind {
            1 => {
                let block = content.get(10..).ok_or(SpdyError::CutOff(kind))?;
                let headers = self.headers(block)?;
                Some(Event::Open { stream: stream()?, headers, fin })
            }
            // Their blocks are part of the one zlib stream.
            2 | 8 => {
                let block = content.get(4..).ok_or(SpdyError::CutOff(kind))?;
                self.headers(block)?;
                None
            }
            3 => Some(Event::Reset { stream: stream()? }),
            6 => Some(Event::Ping(number(0)?)),
            7 => Some(Event::GoAway),
            _ => None,
        })
    }

    fn headers(&mut self, block: &[u8]) -> Result<Vec<(String, String)>, SpdyError> {
        let plain = self.inflater.inflate(block)?;
        let rest = &mut plain.as_slice();
        let n_fields = number(rest)?;
        if n_fields > HEADERS_MAX {
            return Err(SpdyError::Headers);
        }
        (0..n_fields).map(|_| Ok((text(rest)?, text(rest)?))).collect()
    }
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], SpdyError> {
    let (head, tail) = rest.split_at_checked(n).ok_or(SpdyError::Headers)?;
    *rest = tail;
    Ok(head)
}

fn number(rest: &mut &[u8]) -> Result<usize, SpdyError> {
    let bytes = take(rest, 4)?.first_chunk::<4>().ok_or(SpdyError::Headers)?;
    usize::try_from(u32::from_be_bytes(*bytes)).map_err(|_| SpdyError::Headers)
}

fn text(rest: &mut &[u8]) -> Result<String, SpdyError> {
    let n = number(rest)?;
    String::from_utf8(take(rest, n)?.to_vec()).map_err(|_| SpdyError::Headers)
}

/// The header blocks of one direction: one zlib stream.
struct Inflater {
    state: Box<DecompressorOxide>,
    window: Vec<u8>,
    at: usize,
    begun: bool,
}

impl Inflater {
    fn new() -> Self {
        Self { state: Box::default(), window: Vec::new(), at: 0, begun: false }
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        if !self.begun {
            block = self.begin(block)?;
        }
        let mut plain = Vec::new();
        loop {
            let flags = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
            let (status, n_in, n_out) =
                decompress(&mut self.state, block, &mut self.window, self.at, flags);
            plain.extend_from_slice(&self.window[self.at..self.at + n_out]);
            self.at = (self.at + n_out) % WINDOW_BYTES;
            block = &block[n_in..];
            if plain.len() > HEADER_BYTES_MAX {
                return Err(SpdyError::Headers);
            }
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if block.is_empty() => return Ok(plain),
                _ => return Err(SpdyError::Compression),
            }
        }
    }

    /// Reads the head of the stream and puts the dictionary where blocks find it.
    fn begin<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], SpdyError> {
        let ([method, flags], rest) = block.split_first_chunk().ok_or(SpdyError::Compression)?;
        if method & 0x0f != 8 || u16::from_be_bytes([*method, *flags]) % 31 != 0 {
            return Err(SpdyError::Compression);
        }
        self.window = vec![0; WINDOW_BYTES];
        self.begun = true;
        if flags & 0x20 == 0 {
            return Ok(rest);
        }
        let dictionary = dictionary();
        let (id, rest) = rest.split_first_chunk::<4>().ok_or(SpdyError::Compression)?;
        if u32::from_be_bytes(*id) != adler32(&dictionary) {
            return Err(SpdyError::Compression);
        }
        self.window[..dictionary.len()].copy_from_slice(&dictionary);
        self.at = dictionary.len();
        Ok(rest)
    }
}

fn adler32(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    b << 16 | a
}

/// The dictionary of SPDY/3, 1,423 bytes: names with their lengths, then text.
fn dictionary() -> Vec<u8> {
    const NAMES: [&str; 65] = [
        "options",
        "head",
        "post",
        "put",
        "delete",
        "trace",
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "accept-ranges",
        "age",
        "allow",
        "authorization",
        "cache-control",
        "connection",
        "content-base",
        "content-encoding",
        "content-language",
        "content-length",
        "content-location",
        "content-md5",
        "content-range",
        "content-type",
        "date",
        "etag",
        "expect",
        "expires",
        "from",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "last-modified",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "referer",
        "retry-after",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "method",
        "get",
        "status",
        "200 OK",
        "version",
        "HTTP/1.1",
        "url",
        "public",
        "set-cookie",
        "keep-alive",
        "origin",
    ];
    const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414\
        415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 \
        Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
        Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
        Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
        application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
        deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut bytes = Vec::with_capacity(1423);
    for name in NAMES {
        bytes.extend_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
}

/// Writes frames.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    begun: bool,
}

impl Encoder {
    /// Says that a stream is there.
    pub(super) fn reply(&mut self, stream: u32) -> Vec<u8> {
        let mut content = stream.to_be_bytes().to_vec();
        if !std::mem::replace(&mut self.begun, true) {
            content.extend_from_slice(&[0x78, 0x01]);
        }
        // A stored block with the number of fields, 0, and the empty one that ends
        // a flush: Go gives nothing out before that.
        content.extend_from_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
        content.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        control(2, &content)
    }
}

/// Bytes of a stream. At most 16 MiB.
pub(super) fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = Vec::with_capacity(8 + bytes.len());
    frame.extend_from_slice(&(stream & 0x7fff_ffff).to_be_bytes());
    frame.extend_from_slice(&[if fin { FIN } else { 0 }, length[1], length[2], length[3]]);
    frame.extend_from_slice(bytes);
    frame
}

/// The answer to a ping.
pub(super) fn ping(id: u32) -> Vec<u8> {
    control(6, &id.to_be_bytes())
}

/// The stream is refused or broken.
pub(super) fn reset(stream: u32) -> Vec<u8> {
    const CANCEL: u32 = 5;
    let mut content = stream.to_be_bytes().to_vec();
    content.extend_from_slice(&CANCEL.to_be_bytes());
    control(3, &content)
}

fn control(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes();
    let kind = kind.to_be_bytes();
    let mut frame = vec![0x80, 3, kind[0], kind[1], 0, length[1], length[2], length[3]];
    frame.extend_from_slice(content);
    frame
}

#[cfg(test)]
#[path = "spdy_tests.rs"]
mod tests;
