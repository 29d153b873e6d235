//! Enrolment tokens as Secrets, so that they are made, listed and deleted like
//! any object, and what a client must know of the cluster to make one.
//!
//! | Secret `kube-system/pinnace-token-<id>`, type [`SECRET_TYPE`] | |
//! | --- | --- |
//! | `secret` | 20 random bytes; the board proves that it knows them |
//! | `expires` | seconds since 1970, decimal |
//! | `uses-left` | how many more nodes may be made with it, decimal |
//! | `node-names` | the only names it is good for, separated by commas; absent for any |
//! | `labels` | `key=value` pairs for the nodes, separated by commas |
//! | `issued` | JSON list of the uses so far, so that a lost answer can be given again |
//!
//! ConfigMap `kube-public/cluster-info`, key `node-endpoints`: where nodes
//! connect, as `host:port`, best first, separated by commas.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::meta;

/// Type of a Secret that holds a token.
pub const SECRET_TYPE: &str = "pinnace.io/enrolment-token";
/// Namespace of the tokens.
pub const NAMESPACE: &str = "kube-system";
/// What a token's Secret is named, before its id.
pub const NAME_PREFIX: &str = "pinnace-token-";
/// Namespace of the cluster's description.
pub const INFO_NAMESPACE: &str = "kube-public";
/// Name of the ConfigMap that describes the cluster.
pub const INFO_NAME: &str = "cluster-info";
/// Key of the node endpoints in it.
pub const INFO_ENDPOINTS: &str = "node-endpoints";

/// A token, as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentToken {
    /// Names the token; not secret.
    pub id: String,
    /// What the board has to know.
    pub secret: [u8; 20],
    /// End of its life, in seconds since 1970.
    pub expires_s: u64,
    /// How many more nodes may be made with it.
    pub uses_left: u32,
    /// The only names it is good for; empty for any.
    pub node_names: Vec<String>,
    /// Labels for the nodes made with it.
    pub labels: Vec<(String, String)>,
    /// Its uses so far.
    pub issued: Vec<Use>,
}

/// One use of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// The node that was made.
    pub node: String,
    /// SHA-256 of its request, hexadecimal.
    pub request: String,
    /// The certificate: DER in base64.
    pub certificate: String,
}

impl std::fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolmentToken")
            .field("id", &self.id)
            .field("expires_s", &self.expires_s)
            .field("uses_left", &self.uses_left)
            .finish_non_exhaustive()
    }
}

/// Why a Secret is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Secret {name} is not an enrolment token: {problem}; delete it and make a new one")]
pub struct NotAToken {
    name: String,
    problem: String,
}

/// The name of the Secret of token `id`.
#[must_use]
pub fn secret_name(id: &str) -> String {
    format!("{NAME_PREFIX}{id}")
}

impl EnrolmentToken {
    /// The data of the Secret, as base64.
    #[must_use]
    pub fn data(&self) -> Value {
        let pairs: Vec<String> =
            self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let issued = serde_json::to_vec(&self.issued).expect("texts only");
        json!({
            "secret": STANDARD.encode(self.secret),
            "expires": STANDARD.encode(self.expires_s.to_string()),
            "uses-left": STANDARD.encode(self.uses_left.to_string()),
            "node-names": STANDARD.encode(self.node_names.join(",")),
            "labels": STANDARD.encode(pairs.join(",")),
            "issued": STANDARD.encode(issued),
        })
    }

    /// The Secret.
    #[must_use]
    pub fn to_secret(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": secret_name(&self.id), "namespace": NAMESPACE},
            "type": SECRET_TYPE,
            "data": self.data(),
        })
    }

    /// Reads a Secret.
    ///
    /// # Errors
    /// Where it holds something else.
    pub fn from_secret(secret: &Value) -> Result<Self, NotAToken> {
        let name = meta::name(secret);
        let problem =
            |problem: &str| NotAToken { name: name.to_owned(), problem: problem.to_owned() };
        let id = name.strip_prefix(NAME_PREFIX).ok_or_else(|| problem("its name is another"))?;
        if secret["type"] != SECRET_TYPE {
            return Err(problem("its type is another"));
        }
        let bytes = |key: &str| -> Result<Vec<u8>, NotAToken> {
            let text = secret["data"][key].as_str().unwrap_or_default();
            STANDARD.decode(text).map_err(|_| problem(&format!("{key} is not base64")))
        };
        let text = |key: &str| -> Result<String, NotAToken> {
            String::from_utf8(bytes(key)?).map_err(|_| problem(&format!("{key} is not text")))
        };
        let list = |text: String| -> Vec<String> {
            text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let issued = bytes("issued")?;
        let issued = if issued.is_empty() {
            Vec::new()
        } else {
            serde_json::from_slice(&issued).map_err(|_| problem("issued is not a list of uses"))?
        };
        Ok(Self {
            id: id.to_owned(),
            secret: bytes("secret")?
                .try_into()
                .map_err(|_| problem("secret does not have 20 bytes"))?,
            expires_s: text("expires")?
                .parse()
                .map_err(|_| problem("expires is not a number of seconds"))?,
            uses_left: text("uses-left")?
                .parse()
                .map_err(|_| problem("uses-left is not a number"))?,
            node_names: list(text("node-names")?),
            labels: list(text("labels")?)
                .iter()
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            issued,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> EnrolmentToken {
        EnrolmentToken {
            id: "a1b2c3d4".to_owned(),
            secret: [7; 20],
            expires_s: 1_800_000_000,
            uses_left: 2,
            node_names: vec!["pi-1".to_owned(), "pi-2".to_owned()],
            labels: vec![("zone".to_owned(), "north".to_owned())],
            issued: vec![Use {
                node: "pi-1".to_owned(),
                request: "00".to_owned(),
                certificate: "MA==".to_owned(),
            }],
        }
    }

    #[test]
    fn a_token_survives_its_secret() {
        assert_eq!(EnrolmentToken::from_secret(&token().to_secret()), Ok(token()));
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_named() {
        let check = |key: &str, value: &str, expected: &str| {
            let mut secret = token().to_secret();
            secret["data"][key] = json!(value);
            let err = EnrolmentToken::from_secret(&secret).unwrap_err().to_string();
            assert!(err.contains(expected), "{err}");
        };
        check("secret", "AAAA", "secret does not have 20 bytes");
        check("expires", "eA==", "expires is not a number of seconds");
        check("uses-left", "!", "uses-left is not base64");
        check("issued", "e30=", "issued is not a list of uses");
    }
}
