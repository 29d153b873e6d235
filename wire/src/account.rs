//! Tokens of pods' ServiceAccounts: a node asks for those of its own pods, and
//! the master answers with one for each source of their projected volumes.
//!
//! ```text
//! agent → master   TokensWantedV1   again until answered, and before they expire
//! master → agent   TokensV1         what could be made; a pod it does not name is asked for again
//! ```
//!
//! They are no part of the set: the set follows from stored objects alone, and a
//! token is new every hour.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Uid;

/// Most pods in one question.
pub const PODS_MAX: usize = 64;
/// Most tokens of one pod.
pub const TOKENS_OF_POD_MAX: usize = 32;
/// Bytes of tokens after which an answer names no further pod.
pub const ANSWER_BYTES_MAX: usize = 160 << 10;

/// The node wants the tokens of these pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensWantedV1 {
    /// Which boot of the agent.
    pub boot_id: Uid,
    /// The pods, at most [`PODS_MAX`].
    pub pods: Vec<Uid>,
}

/// The answer to [`TokensWantedV1`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensV1 {
    /// The boot of the agent that asked.
    pub boot_id: Uid,
    /// The pods that could be looked at.
    pub pods: Vec<PodTokensV1>,
}

/// The tokens of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodTokensV1 {
    /// The pod.
    pub pod: Uid,
    /// All its tokens; none where there is a problem.
    pub tokens: Vec<TokenV1>,
    /// Why there are none, for people; empty where there are.
    pub problem: String,
}

/// One token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenV1 {
    /// As the pod asks for it; empty for the API server.
    pub audience: String,
    /// As the pod asks for it.
    pub expiration_s: u32,
    /// Seconds from now that it is good for. No clock of the node matters.
    pub lifetime_s: u32,
    /// The token.
    pub token: String,
}

// It is a secret.
impl fmt::Debug for TokenV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenV1")
            .field("audience", &self.audience)
            .field("expiration_s", &self.expiration_s)
            .field("lifetime_s", &self.lifetime_s)
            .finish_non_exhaustive()
    }
}
