//! The envelope around every message, in both directions.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0 | `0xE7` |
//! | 1 | major version, 1 |
//! | 2 | [`Kind`]: which frozen struct the body is |
//! | 3 | flags: bit 0 sealed, bit 1 signed, bit 2 deflated; any other bit is an error |
//! | if sealed | `u16` length (LE, at most 512), the seal block: key id and nonce |
//! | if signed | `u16` length (LE, at most 512), the signature block: key id and signature |
//! | rest | the body: postcard, deflated if bit 2 is set, encrypted if bit 0 is set |
//!
//! A signature covers everything but its own block ([`Envelope::signed_bytes`]).
//! A reader that has no key for a signature takes the message as if it had
//! none, since TLS already says who sent it; a sealed body it cannot open is an
//! error. Unknown kinds are [`Decoded::Ignored`], so that a newer peer may speak
//! of what this one does not know. This module knows no cipher and no key.

use std::borrow::Cow;
use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::account::{TokensV1, TokensWantedV1};
use crate::command::CommandEnvelopeV1;
use crate::enrol::{JoinRequestV1, JoinResponseV1};
use crate::node::{AppliedV1, GoneV1, HeartbeatV1, HelloV1, PartAckV1, UpToDateV1};
use crate::set::{DeltaV1, PartV1, SnapshotV1};
use crate::status::{ReportAckV1, ReportV1};
use crate::{ASSEMBLED_BYTES_MAX, PACKET_BYTES_MAX};

/// The first byte of every message.
pub const MAGIC: u8 = 0xE7;
/// The second byte: the major version of the protocol.
pub const MAJOR: u8 = 1;
/// Most bytes of a seal or signature block.
pub const BLOCK_BYTES_MAX: usize = 512;
/// Bodies above this size are deflated where that makes them smaller.
pub const DEFLATE_ABOVE_BYTES: usize = 1 << 10;

const HEADER_BYTES: usize = 4;
const SEALED: u8 = 1;
const SIGNED: u8 = 1 << 1;
const DEFLATED: u8 = 1 << 2;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident($type:ty) = $number:literal;)*) => {
        /// Which frozen struct a body is. A number is given out once.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$name),*];

            fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Kind::$name),)*
                    _ => None,
                }
            }
        }

        /// A message of a kind this version knows.
        // Messages are handled one at a time; a box for each would only be one more step.
        #[allow(clippy::large_enum_variant)]
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Message {
            $($(#[$doc])* $name($type),)*
        }

        impl Message {
            /// Which kind it is.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self {
                    $(Message::$name(_) => Kind::$name,)*
                }
            }

            fn read(kind: Kind, body: &[u8]) -> Result<Self, EnvelopeError> {
                match kind {
                    $(Kind::$name => Ok(Message::$name(read_body(kind, body)?)),)*
                }
            }
        }

        $(impl Body for $type {
            const KIND: Kind = Kind::$name;
        })*
    };
}

kinds! {
    /// Master to node: the whole set.
    Snapshot(SnapshotV1) = 0x01;
    /// Master to node: what changed in the set.
    Delta(DeltaV1) = 0x02;
    /// Master to node: a part of a larger message.
    Part(PartV1) = 0x03;
    /// Master to node: the set is the newest.
    UpToDate(UpToDateV1) = 0x04;
    /// Master to node: do this.
    Command(CommandEnvelopeV1) = 0x10;
    /// Master to node: a report is stored.
    ReportAck(ReportAckV1) = 0x11;
    /// Master to node: tokens of pods.
    Tokens(TokensV1) = 0x12;
    /// Node to master: here I am.
    Hello(HelloV1) = 0x20;
    /// Node to master: I live.
    Heartbeat(HeartbeatV1) = 0x21;
    /// Node to master: the set is on my disk.
    Applied(AppliedV1) = 0x22;
    /// Node to master: statuses and events.
    Report(ReportV1) = 0x23;
    /// Broker to master: the node's connection broke.
    Gone(GoneV1) = 0x24;
    /// Node to master: so many parts have arrived.
    PartAck(PartAckV1) = 0x25;
    /// Node to master: tokens of pods are wanted.
    TokensWanted(TokensWantedV1) = 0x26;
    /// Board to master: make me a node.
    JoinRequest(JoinRequestV1) = 0x30;
    /// Master to board: the answer.
    JoinResponse(JoinResponseV1) = 0x31;
}

/// A struct that travels in an envelope.
pub trait Body: Serialize + DeserializeOwned {
    /// Its kind.
    const KIND: Kind;
}

/// What a reader makes of the bytes.
// As for messages.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A message.
    Message(Message),
    /// A kind this version does not know; nothing is wrong.
    Ignored {
        /// The number of the kind.
        kind: u8,
    },
}

/// How large a message may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// One packet: [`PACKET_BYTES_MAX`], inflated too.
    Packet,
    /// Put together from parts: [`ASSEMBLED_BYTES_MAX`], inflated too.
    Assembled,
}

impl Limit {
    const fn bytes(self) -> usize {
        match self {
            Limit::Packet => PACKET_BYTES_MAX,
            Limit::Assembled => ASSEMBLED_BYTES_MAX,
        }
    }
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// More bytes than any message has.
    #[error("message of {0} bytes is larger than {1}")]
    TooLarge(usize, usize),
    /// The bytes end inside the header or a block.
    #[error("message ends after {0} bytes, inside its header")]
    Truncated(usize),
    /// Something else was sent on the topic.
    #[error("message starts with {0:#04x}, not with 0xe7")]
    Magic(u8),
    /// The peer speaks another major version.
    #[error("message is of major version {0}, this program speaks {MAJOR}: upgrade the older side")]
    Major(u8),
    /// A flag that this version does not know, so the rest cannot be read.
    #[error("message has unknown flags {0:#010b}")]
    Flags(u8),
    /// A seal or signature block is longer than allowed.
    #[error("block of {0} bytes is larger than {BLOCK_BYTES_MAX}")]
    Block(usize),
    /// Encrypted for someone, and this reader has no key.
    #[error("message is sealed and there is no key to open it")]
    Sealed,
    /// The deflated body is damaged, or larger than allowed once inflated.
    #[error("body of kind {0:?} does not inflate to at most {1} bytes")]
    Inflate(Kind, usize),
    /// The body is not the struct its kind says.
    #[error("body is not a {0:?} of this version")]
    Body(Kind),
    /// Bytes are left after the struct.
    #[error("{1} bytes left after a {0:?}")]
    Trailing(Kind, usize),
}

/// An envelope taken apart, its body still closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The number of the kind, known or not.
    pub kind: u8,
    /// Whether the body is deflated (under its seal, where it has one).
    pub deflated: bool,
    /// How the body is sealed.
    pub seal: Option<Cow<'a, [u8]>>,
    /// Who signed it.
    pub signature: Option<Cow<'a, [u8]>>,
    /// The body as it travels.
    pub body: Cow<'a, [u8]>,
}

impl<'a> Envelope<'a> {
    /// Puts `message` in an envelope without seal or signature.
    #[must_use]
    pub fn of<B: Body>(message: &B) -> Envelope<'static> {
        let plain = postcard::to_stdvec(message)
            .expect("structs of this crate hold only what postcard writes");
        Envelope::of_plain(B::KIND, plain)
    }

    /// Puts a body that is already postcard of the struct of `kind` in an envelope.
    pub(crate) fn of_plain(kind: Kind, plain: Vec<u8>) -> Envelope<'static> {
        // What is in a part was deflated as a whole already.
        let worth_it = plain.len() > DEFLATE_ABOVE_BYTES && kind != Kind::Part;
        let deflated =
            worth_it.then(|| deflate(&plain)).filter(|deflated| deflated.len() < plain.len());
        Envelope {
            kind: kind as u8,
            deflated: deflated.is_some(),
            seal: None,
            signature: None,
            body: Cow::Owned(deflated.unwrap_or(plain)),
        }
    }

    /// Takes `bytes` apart, without opening the body.
    ///
    /// # Errors
    /// Where header or blocks break a rule of the module's table.
    pub fn parse(bytes: &'a [u8], limit: Limit) -> Result<Self, EnvelopeError> {
        if bytes.len() > limit.bytes() {
            return Err(EnvelopeError::TooLarge(bytes.len(), limit.bytes()));
        }
        if let Some(&first) = bytes.first()
            && first != MAGIC
        {
            return Err(EnvelopeError::Magic(first));
        }
        let (header, mut rest) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(EnvelopeError::Truncated(bytes.len()))?;
        let [_, major, kind, flags] = *header;
        if major != MAJOR {
            return Err(EnvelopeError::Major(major));
        }
        if flags & !(SEALED | SIGNED | DEFLATED) != 0 {
            return Err(EnvelopeError::Flags(flags));
        }
        let mut block = |present: bool| -> Result<Option<Cow<'a, [u8]>>, EnvelopeError> {
            if !present {
                return Ok(None);
            }
            let truncated = EnvelopeError::Truncated(bytes.len());
            let (length, after) = rest.split_first_chunk::<2>().ok_or_else(|| truncated.clone())?;
            let length = usize::from(u16::from_le_bytes(*length));
            if length > BLOCK_BYTES_MAX {
                return Err(EnvelopeError::Block(length));
            }
            let (block, after) = after.split_at_checked(length).ok_or(truncated)?;
            rest = after;
            Ok(Some(Cow::Borrowed(block)))
        };
        let seal = block(flags & SEALED != 0)?;
        let signature = block(flags & SIGNED != 0)?;
        Ok(Envelope {
            kind,
            deflated: flags & DEFLATED != 0,
            seal,
            signature,
            body: Cow::Borrowed(rest),
        })
    }

    /// The bytes that travel.
    ///
    /// # Panics
    /// Where a block is longer than [`BLOCK_BYTES_MAX`]: a bug of the writer.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.write(self.signature.as_deref())
    }

    /// The bytes that a signature covers: the whole without the signature block,
    /// but with the flag that says there is one.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = self.write(None);
        bytes[3] |= SIGNED;
        bytes
    }

    fn write(&self, signature: Option<&[u8]>) -> Vec<u8> {
        let mut flags = 0;
        let blocks = [(self.seal.as_deref(), SEALED), (signature, SIGNED)];
        for (_, flag) in blocks.iter().filter(|(block, _)| block.is_some()) {
            flags |= flag;
        }
        if self.deflated {
            flags |= DEFLATED;
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.body.len() + 64);
        bytes.extend_from_slice(&[MAGIC, MAJOR, self.kind, flags]);
        for block in blocks.into_iter().filter_map(|(block, _)| block) {
            assert!(block.len() <= BLOCK_BYTES_MAX, "a block has at most {BLOCK_BYTES_MAX} bytes");
            #[expect(clippy::cast_possible_truncation, reason = "at most BLOCK_BYTES_MAX")]
            bytes.extend_from_slice(&(block.len() as u16).to_le_bytes());
            bytes.extend_from_slice(block);
        }
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Where it is sealed, damaged, too large once inflated, not the struct of
    /// its kind, or followed by other bytes.
    pub fn open(&self, limit: Limit) -> Result<Decoded, EnvelopeError> {
        let Some(kind) = Kind::from_number(self.kind) else {
            return Ok(Decoded::Ignored { kind: self.kind });
        };
        if self.seal.is_some() {
            return Err(EnvelopeError::Sealed);
        }
        let body = if self.deflated {
            Cow::Owned(inflate(kind, &self.body, limit.bytes())?)
        } else {
            Cow::Borrowed(&*self.body)
        };
        Message::read(kind, &body).map(Decoded::Message)
    }
}

/// The bytes of `message`, without seal or signature.
#[must_use]
pub fn encode<B: Body>(message: &B) -> Vec<u8> {
    Envelope::of(message).to_bytes()
}

/// Reads a message of one packet.
///
/// # Errors
/// As [`Envelope::parse`] and [`Envelope::open`].
pub fn decode(bytes: &[u8]) -> Result<Decoded, EnvelopeError> {
    Envelope::parse(bytes, Limit::Packet)?.open(Limit::Packet)
}

/// Reads a message that was put together from parts.
///
/// # Errors
/// As [`Envelope::parse`] and [`Envelope::open`].
pub fn decode_assembled(bytes: &[u8]) -> Result<Decoded, EnvelopeError> {
    Envelope::parse(bytes, Limit::Assembled)?.open(Limit::Assembled)
}

fn read_body<B: DeserializeOwned>(kind: Kind, body: &[u8]) -> Result<B, EnvelopeError> {
    let (value, rest) =
        postcard::take_from_bytes(body).map_err(|_error| EnvelopeError::Body(kind))?;
    if rest.is_empty() { Ok(value) } else { Err(EnvelopeError::Trailing(kind, rest.len())) }
}

fn deflate(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).expect("writing to memory cannot fail");
    encoder.finish().expect("writing to memory cannot fail")
}

fn inflate(kind: Kind, deflated: &[u8], bytes_max: usize) -> Result<Vec<u8>, EnvelopeError> {
    let mut plain = Vec::new();
    let mut decoder = flate2::read::DeflateDecoder::new(deflated);
    let read = (&mut decoder).take(bytes_max as u64 + 1).read_to_end(&mut plain);
    if read.is_err() || plain.len() > bytes_max {
        return Err(EnvelopeError::Inflate(kind, bytes_max));
    }
    let n_read = usize::try_from(decoder.total_in()).unwrap_or(usize::MAX);
    match deflated.len().saturating_sub(n_read) {
        0 => Ok(plain),
        left => Err(EnvelopeError::Trailing(kind, left)),
    }
}
