//! What crosses the link between the master and its nodes: topics, the
//! envelope, and the messages inside it. No I/O, and nothing of Kubernetes:
//! [`pod::PodV1`] is what a node needs to run a pod, filled by the master.
//!
//! Bodies are postcard of the closed structs of this crate. postcard does not
//! describe itself, so the rules of evolution are strict:
//!
//! 1. A published struct never changes. A new form is a new struct with a new
//!    [`envelope::Kind`], and a sender uses the newest that both sides know
//!    (`proto_max` in [`node::HelloV1`]).
//! 2. Enums grow at the end only, and a new variant is sent only to a peer
//!    whose `caps` say it knows it.
//! 3. Optional additions travel as [`Ext`]: tags a reader does not know are
//!    skipped.
//! 4. No `flatten`, `untagged`, `skip_serializing_if`, `serde_json::Value`,
//!    `usize` or `HashMap`: none survives postcard.

pub mod account;
pub mod artifact;
pub mod command;
pub mod encoded;
pub mod enrol;
pub mod envelope;
pub mod network;
pub mod node;
pub mod part;
pub mod pod;
pub mod relay;
pub mod set;
mod signal;
pub mod status;
pub mod stream;
pub mod token;
pub mod topic;
pub mod usage;

pub use signal::signal_number;

/// Optional additions to a published struct: tag and bytes. Unknown tags are
/// skipped; no tag is given out yet.
pub type Ext = Vec<(u16, Vec<u8>)>;

/// The identity of an object, as its 16 bytes (RFC 9562).
pub type Uid = [u8; 16];

/// The identity of a store: made with it, and anew when a backup is restored.
pub type Epoch = u128;

/// The ALPN name of the artifact protocol on the node port, see [`artifact`].
pub const ALPN_BLOB: &[u8] = b"pinnace-blob/1";
/// The ALPN name of byte streams on the node port, see [`command`].
pub const ALPN_STREAM: &[u8] = b"pinnace-stream/1";
/// The ALPN name under which a node's pods reach the API through the node port: the
/// bytes of their own TLS with it.
pub const ALPN_API: &[u8] = b"pinnace-api/1";
/// The ALPN name of connections between two nodes through the master, see [`relay`].
pub const ALPN_RELAY: &[u8] = b"pinnace-relay/1";
/// The ALPN name of MQTT on the node port; a client that offers none gets MQTT too.
pub const ALPN_MQTT: &[u8] = b"mqtt";
/// Most bytes of one MQTT packet, in both directions.
pub const PACKET_BYTES_MAX: usize = 1 << 20;
/// Most bytes of a message that travels in one packet; a larger one is split
/// ([`part`]).
pub const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Most bytes of a message in parts, and of any body once it is inflated.
pub const ASSEMBLED_BYTES_MAX: usize = 16 << 20;
/// The protocol version this crate speaks (`proto_min` and `proto_max`).
pub const PROTOCOL_VERSION: u8 = 1;
/// The name in the master's certificate, which agents verify whatever the
/// address they dialled.
pub const MASTER_SERVER_NAME: &str = "pinnace-master";
