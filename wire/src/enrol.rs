//! How a board becomes a node: a one-time token, a proof, a certificate.
//!
//! The token is one line: `pn1.<base64url of TokenV1>`. Its secret never
//! leaves the two ends: the request and the answer carry HMAC-SHA256 over
//! their content, so neither a broker nor another board can steal or forge.

use serde::{Deserialize, Serialize};

use crate::Ext;

/// What a token carries.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenV1 {
    /// Where the node port is, as `host:port`, best first.
    pub endpoints: Vec<String>,
    /// SHA-256 of the CA certificate's DER form.
    pub ca_sha256: [u8; 32],
    /// Names the token; not secret.
    pub id: String,
    /// 160 random bits.
    pub secret: [u8; 20],
    /// Room for later fields (what proves an external broker).
    pub ext: Ext,
}

impl std::fmt::Debug for TokenV1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenV1")
            .field("endpoints", &self.endpoints)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Asks for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequestV1 {
    /// Which token proves it.
    pub token_id: String,
    /// The name the node wants: a DNS label of at most 63 characters.
    pub node: String,
    /// Random; the answer is bound to it.
    pub nonce: [u8; 16],
    /// Certificate signing request, DER. Only its public key is used.
    pub csr: Vec<u8>,
    /// HMAC-SHA256 with the token's secret over the fields above.
    pub mac: [u8; 32],
}

/// The answer to [`JoinRequestV1`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinResponseV1 {
    /// The node's certificate.
    Issued {
        /// The certificate, DER.
        certificate: Vec<u8>,
        /// The CA certificate, DER, whose hash the token pins.
        ca: Vec<u8>,
        /// The Ed25519 public key that signs WASM artifacts.
        artifact_key: [u8; 32],
        /// Labels for the node.
        labels: Vec<(String, String)>,
        /// HMAC-SHA256 with the token's secret over the nonce and the fields above.
        mac: [u8; 32],
    },
    /// Refused; says why and what to do.
    Denied(String),
}
