//! The way through the master for two nodes that do not reach each other.
//!
//! ```text
//! who asks → master     u16 length (LE), postcard of RelayHelloV1::Reach
//! master → who is asked CommandV1::Relay, over the link
//! who is asked → master u16 length (LE), postcard of RelayHelloV1::Fetch
//! master → both         u8 RelayAnswer
//! both, then            bytes, which the master passes on
//! ```
//!
//! Both dial the node port with ALPN `pinnace-relay/1`. What passes is sealed between
//! the two nodes; the master reads none of it.

use serde::{Deserialize, Serialize};

/// Most bytes of a [`RelayHelloV1`].
pub const HELLO_BYTES_MAX: usize = 300;

/// What a node wants of the relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayHelloV1 {
    /// To be connected with that node.
    Reach {
        /// Its name.
        node: String,
    },
    /// The connection that waits with this ticket.
    Fetch {
        /// Of [`crate::command::CommandV1::Relay`].
        ticket: [u8; 16],
    },
}

/// What the master says to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RelayAnswer {
    /// The other node follows.
    Connected = 0,
    /// The other node is unknown, or not connected.
    NotConnected = 1,
    /// The other node did not come in time.
    TimedOut = 2,
    /// Too much is relayed already.
    Busy = 3,
    /// The ticket is not good, or not any more.
    UnknownTicket = 4,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data plane of the agent writes the same bytes and does not know this crate.
    #[test]
    fn the_layout_is_fixed() {
        let bytes = |hello: &RelayHelloV1| postcard::to_stdvec(hello).unwrap();
        let reach = RelayHelloV1::Reach { node: "pi".into() };
        assert_eq!(bytes(&reach), [0, 2, b'p', b'i']);
        let fetch = bytes(&RelayHelloV1::Fetch { ticket: [9; 16] });
        assert_eq!((fetch.len(), &fetch[..2]), (17, [1, 9].as_slice()));
        let longest = RelayHelloV1::Reach { node: "x".repeat(253) };
        assert!(bytes(&longest).len() <= HELLO_BYTES_MAX);
    }
}
