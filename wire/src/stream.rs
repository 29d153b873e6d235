//! The frames of a byte stream between master and agent, whatever carries them:
//! a connection of its own now, MQTT messages where there is only a broker.
//!
//! ```text
//! u8 channel, u24 length (LE), bytes
//! ```
//!
//! | channel | direction | content |
//! |---|---|---|
//! | 0 | master → agent | standard input |
//! | 1 | agent → master | standard output, or log lines |
//! | 2 | agent → master | standard error |
//! | 3 | agent → master | postcard of [`StreamEndV1`], the last frame |
//! | 4 | master → agent | size of the terminal: u16 columns, u16 rows |
//! | 5 | master → agent | the end of standard input |
//! | 6 | both | credit: u8 channel, u32 bytes that were taken off it |
//! | 7 | both | nothing: the sender is there |
//! | 8 | master → agent | forwarded connection: u16 number, u16 port to connect to |
//! | 9 | both | its bytes: u16 number, bytes |
//! | 10 | both | the sender's last byte was sent: u16 number |
//! | 11 | both | it is broken, or could not be made: u16 number, UTF-8 why |
//! | 12 | both | its credit: u16 number, u32 bytes |
//!
//! All numbers are little-endian. Flow control is per channel and connection:
//! a sender may have as many bytes under way as the receiver's window, and gets
//! more as they are taken off. So a receiver never holds more than the window,
//! always reads on, and one slow reader holds up nobody else. A frame of data has at
//! least one byte, so that the window bounds their number as well. Log streams have
//! one reader and one channel, and use the connection's own flow control.

use crate::command::StreamEndV1;

/// Most bytes of a frame's content.
pub const FRAME_BYTES_MAX: usize = 64 << 10;
/// Most bytes of a data frame's content that are sent at once.
pub const DATA_BYTES_MAX: usize = 16 << 10;
/// Bytes in front of the content.
pub const HEAD_BYTES: usize = 4;
/// Bytes that may be under way to an agent on one channel or connection.
pub const AGENT_WINDOW: u32 = 64 << 10;
/// Bytes that may be under way to a master on one channel or connection.
pub const MASTER_WINDOW: u32 = 256 << 10;
/// Most forwarded connections of one stream at a time.
pub const CONNECTIONS_MAX: usize = 64;
/// A side that has nothing to send says so after this many seconds.
pub const PING_SECONDS: u64 = 20;
/// A side that has not been heard for this many seconds is gone.
pub const SILENCE_SECONDS: u64 = 60;

/// Standard input.
pub const STDIN: u8 = 0;
/// Standard output, or log lines.
pub const STDOUT: u8 = 1;
/// Standard error.
pub const STDERR: u8 = 2;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of standard input.
    Stdin(Vec<u8>),
    /// Bytes of standard output.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// The last one.
    End(StreamEndV1),
    /// The terminal's size, in characters.
    Resize {
        /// Width.
        columns: u16,
        /// Height.
        rows: u16,
    },
    /// Standard input has ended.
    StdinEnd,
    /// Bytes were taken off a channel.
    Credit {
        /// 0, 1 or 2.
        channel: u8,
        /// How many.
        bytes: u32,
    },
    /// The sender is there.
    Ping,
    /// Connect to a port of the pod.
    Open {
        /// Chosen by the master; not one that is in use.
        connection: u16,
        /// The port.
        port: u16,
    },
    /// Bytes of a connection.
    Data {
        /// Which.
        connection: u16,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// No more bytes come from this side.
    Finish {
        /// Which.
        connection: u16,
    },
    /// The connection is broken or was refused; nothing more comes of it.
    Reset {
        /// Which.
        connection: u16,
        /// Why, for people; empty where the sender has just lost interest.
        why: String,
    },
    /// Bytes were taken off a connection.
    ConnectionCredit {
        /// Which.
        connection: u16,
        /// How many.
        bytes: u32,
    },
    /// Of a newer version; to be skipped.
    Unknown(u8),
}

/// Why bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes; at most {FRAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// The content does not fit the channel.
    #[error("a frame on channel {0} whose content makes no sense")]
    Content(u8),
}

impl Frame {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let at = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        let channel = match self {
            Self::Stdin(bytes) => put(out, STDIN, &[bytes]),
            Self::Stdout(bytes) => put(out, STDOUT, &[bytes]),
            Self::Stderr(bytes) => put(out, STDERR, &[bytes]),
            Self::End(end) => {
                // Only strings and numbers: it always serialises.
                put(out, 3, &[&postcard::to_stdvec(end).unwrap_or_default()])
            }
            Self::Resize { columns, rows } => {
                put(out, 4, &[&columns.to_le_bytes(), &rows.to_le_bytes()])
            }
            Self::StdinEnd => put(out, 5, &[]),
            Self::Credit { channel, bytes } => put(out, 6, &[&[*channel], &bytes.to_le_bytes()]),
            Self::Ping => put(out, 7, &[]),
            Self::Open { connection, port } => {
                put(out, 8, &[&connection.to_le_bytes(), &port.to_le_bytes()])
            }
            Self::Data { connection, bytes } => put(out, 9, &[&connection.to_le_bytes(), bytes]),
            Self::Finish { connection } => put(out, 10, &[&connection.to_le_bytes()]),
            Self::Reset { connection, why } => {
                let why = &why.as_bytes()[..why.len().min(1024)];
                put(out, 11, &[&connection.to_le_bytes(), why])
            }
            Self::ConnectionCredit { connection, bytes } => {
                put(out, 12, &[&connection.to_le_bytes(), &bytes.to_le_bytes()])
            }
            Self::Unknown(channel) => *channel,
        };
        let length = u32::try_from(out.len() - at - HEAD_BYTES).unwrap_or(u32::MAX).to_le_bytes();
        out[at..at + HEAD_BYTES].copy_from_slice(&[channel, length[0], length[1], length[2]]);
    }

    /// Reads a frame's content.
    ///
    /// # Errors
    /// It does not fit the channel.
    pub fn decode(channel: u8, content: &[u8]) -> Result<Self, FrameError> {
        let bad = || FrameError::Content(channel);
        let mut rest = content;
        let mut u16 = || {
            let (head, tail) = rest.split_first_chunk::<2>().ok_or_else(bad)?;
            rest = tail;
            Ok(u16::from_le_bytes(*head))
        };
        let u32_of = |bytes: &[u8]| {
            let bytes: [u8; 4] = bytes.try_into().map_err(|_| bad())?;
            Ok(u32::from_le_bytes(bytes))
        };
        Ok(match channel {
            // A frame of no bytes would need no credit, and a receiver could not bound them.
            STDIN | STDOUT | STDERR if content.is_empty() => return Err(bad()),
            STDIN => Self::Stdin(content.to_vec()),
            STDOUT => Self::Stdout(content.to_vec()),
            STDERR => Self::Stderr(content.to_vec()),
            3 => Self::End(postcard::from_bytes(content).map_err(|_| bad())?),
            4 => Self::Resize { columns: u16()?, rows: u16()? },
            5 => Self::StdinEnd,
            6 => {
                let (channel, bytes) = content.split_first().ok_or_else(bad)?;
                Self::Credit { channel: *channel, bytes: u32_of(bytes)? }
            }
            7 => Self::Ping,
            8 => Self::Open { connection: u16()?, port: u16()? },
            9 if content.len() <= 2 => return Err(bad()),
            9 => Self::Data { connection: u16()?, bytes: rest.to_vec() },
            10 => Self::Finish { connection: u16()? },
            11 => {
                let connection = u16()?;
                Self::Reset { connection, why: String::from_utf8_lossy(rest).into_owned() }
            }
            12 => {
                let connection = u16()?;
                Self::ConnectionCredit { connection, bytes: u32_of(rest)? }
            }
            other => Self::Unknown(other),
        })
    }
}

fn put(out: &mut Vec<u8>, channel: u8, pieces: &[&[u8]]) -> u8 {
    for piece in pieces {
        out.extend_from_slice(piece);
    }
    channel
}

/// Channel and length of the frame that a head announces.
///
/// # Errors
/// It is too long.
pub fn head(bytes: [u8; HEAD_BYTES]) -> Result<(u8, usize), FrameError> {
    let length = usize::from(bytes[1]) | usize::from(bytes[2]) << 8 | usize::from(bytes[3]) << 16;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    Ok((bytes[0], length))
}

/// How many bytes a sender may still have under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit(u32);

impl Credit {
    /// A window that nothing has been sent into.
    #[must_use]
    pub fn new(window: u32) -> Self {
        Self(window)
    }

    /// How many bytes may be sent now.
    #[must_use]
    pub fn left(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Takes bytes that are sent. False if there is not so much: the sender broke the rules.
    #[must_use]
    pub fn take(&mut self, bytes: usize) -> bool {
        let left = u32::try_from(bytes).ok().and_then(|bytes| self.0.checked_sub(bytes));
        self.0 = left.unwrap_or(0);
        left.is_some()
    }

    /// Gives bytes back that the receiver has taken off.
    pub fn give(&mut self, bytes: u32) {
        self.0 = self.0.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> Vec<Frame> {
        vec![
            Frame::Stdin(b"in".to_vec()),
            Frame::Stdout(vec![0]),
            Frame::Stderr(vec![0; DATA_BYTES_MAX]),
            Frame::End(StreamEndV1::Done),
            Frame::End(StreamEndV1::Exited(-1)),
            Frame::End(StreamEndV1::Failed("no".into())),
            Frame::Resize { columns: 80, rows: 24 },
            Frame::StdinEnd,
            Frame::Credit { channel: 1, bytes: 70_000 },
            Frame::Ping,
            Frame::Open { connection: 513, port: 8080 },
            Frame::Data { connection: 513, bytes: b"x".to_vec() },
            Frame::Finish { connection: 1 },
            Frame::Reset { connection: 2, why: "refused".into() },
            Frame::ConnectionCredit { connection: 3, bytes: 1 << 20 },
            Frame::Unknown(200),
        ]
    }

    #[test]
    fn frames_come_back_as_they_were() {
        for frame in all() {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            let (channel, length) = head(bytes[..HEAD_BYTES].try_into().unwrap()).unwrap();
            assert_eq!(length, bytes.len() - HEAD_BYTES);
            assert_eq!(Frame::decode(channel, &bytes[HEAD_BYTES..]).unwrap(), frame);
        }
    }

    #[test]
    fn the_layout_is_fixed() {
        let bytes = |frame: Frame| {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            bytes
        };
        assert_eq!(bytes(Frame::Stdin(b"ab".to_vec())), [0, 2, 0, 0, b'a', b'b']);
        assert_eq!(bytes(Frame::Resize { columns: 1, rows: 256 }), [4, 4, 0, 0, 1, 0, 0, 1]);
        assert_eq!(bytes(Frame::Open { connection: 1, port: 80 }), [8, 4, 0, 0, 1, 0, 80, 0]);
        assert_eq!(bytes(Frame::End(StreamEndV1::Exited(3))), [3, 2, 0, 0, 3, 6]);
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused() {
        assert_eq!(head([1, 1, 0, 1]), Err(FrameError::TooLong(65_537)));
        assert_eq!(head([1, 0, 0, 1]), Ok((1, 65_536)));
    }

    #[test]
    fn data_of_no_bytes_is_refused() {
        for channel in [STDIN, STDOUT, STDERR] {
            assert_eq!(Frame::decode(channel, &[]), Err(FrameError::Content(channel)));
        }
        assert_eq!(Frame::decode(9, &[1, 0]), Err(FrameError::Content(9)));
    }

    #[test]
    fn credit_is_never_overdrawn() {
        let mut credit = Credit::new(10);
        assert!(credit.take(10) && credit.left() == 0);
        assert!(!credit.take(1));
        credit.give(u32::MAX);
        credit.give(1);
        assert!(credit.take(1 << 20));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(channel in any::<u8>(), content in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(frame) = Frame::decode(channel, &content) {
                let mut bytes = Vec::new();
                frame.encode(&mut bytes);
                prop_assert!(bytes.len() >= HEAD_BYTES);
            }
        }
    }
}
