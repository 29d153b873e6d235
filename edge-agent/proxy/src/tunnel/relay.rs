//! The way through the master, for two nodes that do not reach each other.
//!
//! ```text
//! who asks → master     u16 length (LE), postcard of Hello::Reach   ← u8 answer
//! who is asked → master u16 length (LE), postcard of Hello::Fetch   ← u8 answer
//! both, then            bytes, which the master passes on
//! ```
//!
//! The same bytes as `RelayHelloV1` of the wire's crate, which this one does not
//! know; a test on either side pins them. What passes is TLS between the two nodes:
//! the master can hold it up or cut it, and nothing else.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::links::{Connection, Uplink};

/// The purpose of the connection to the master.
pub const ALPN_RELAY: &[u8] = b"pinnace-relay/1";

/// What a node wants of the relay.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Hello<'a> {
    /// To be connected with that node.
    Reach { node: &'a str },
    /// The connection that waits with this ticket.
    Fetch { ticket: [u8; 16] },
}

/// Asks the master for a connection with `peer`.
pub(super) async fn reach(uplink: &dyn Uplink, peer: &str) -> io::Result<Box<dyn Connection>> {
    greet(uplink, &Hello::Reach { node: peer }).await
}

/// Fetches the connection of a node that waits at the master.
pub(super) async fn fetch(
    uplink: &dyn Uplink,
    ticket: [u8; 16],
) -> io::Result<Box<dyn Connection>> {
    greet(uplink, &Hello::Fetch { ticket }).await
}

async fn greet(uplink: &dyn Uplink, hello: &Hello<'_>) -> io::Result<Box<dyn Connection>> {
    let mut connection = uplink.dial(ALPN_RELAY).await?;
    let bytes = postcard::to_stdvec(hello).map_err(io::Error::other)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    connection.write_all(&length.to_le_bytes()).await?;
    connection.write_all(&bytes).await?;
    connection.flush().await?;
    match answer(connection.read_u8().await?) {
        None => Ok(connection),
        Some(error) => Err(error),
    }
}

/// What the master's answer means; `None` where the way is there.
fn answer(byte: u8) -> Option<io::Error> {
    let (kind, what) = match byte {
        0 => return None,
        1 => (io::ErrorKind::HostUnreachable, "the node is not connected to the master"),
        2 => (io::ErrorKind::TimedOut, "the node did not come to the master in time"),
        3 => (io::ErrorKind::ResourceBusy, "the master relays too much already"),
        4 => (io::ErrorKind::NotFound, "the ticket is unknown or too old"),
        _ => (io::ErrorKind::Other, "the master does not relay it"),
    };
    Some(io::Error::new(kind, what))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;
    use tokio::io::DuplexStream;

    use super::*;
    use crate::links::BoxFuture;

    /// One connection to a master.
    #[derive(Debug)]
    struct Wire(Mutex<Option<DuplexStream>>);

    impl Uplink for Wire {
        fn dial<'a>(
            &'a self,
            alpn: &'static [u8],
        ) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
            assert_eq!(alpn, ALPN_RELAY);
            let stream = self.0.lock().unwrap().take().unwrap();
            Box::pin(async { Ok(Box::new(stream) as Box<dyn Connection>) })
        }
    }

    #[tokio::test]
    async fn the_hello_is_what_the_master_reads_and_its_answer_is_understood() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(&[0, 7]).await.unwrap();
        let mut got = reach(&Wire(Mutex::new(Some(near))), "pi").await.unwrap();
        assert_eq!(got.read_u8().await.unwrap(), 7, "what follows is the peer's");
        let mut hello = [0; 6];
        far.read_exact(&mut hello).await.unwrap();
        assert_eq!(hello, [4, 0, 0, 2, b'p', b'i']);

        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(&[4]).await.unwrap();
        let problem = fetch(&Wire(Mutex::new(Some(near))), [9; 16]).await.err().unwrap();
        assert!(problem.to_string().contains("ticket"), "{problem}");
        let mut hello = [0; 19];
        far.read_exact(&mut hello).await.unwrap();
        assert_eq!(hello[..4], [17, 0, 1, 9]);
    }

    proptest! {
        #[test]
        fn any_answer_is_understood(byte: u8) {
            prop_assert_eq!(answer(byte).is_none(), byte == 0);
        }
    }
}
