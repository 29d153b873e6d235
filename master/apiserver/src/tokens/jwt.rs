//! JSON Web Tokens of exactly one kind: compact, ES256, one key.
//!
//! ```text
//! base64url({"alg":"ES256","kid":…}) . base64url(claims) . base64url(64 bytes r, s)
//! ```
//!
//! Nothing of a token is believed before its signature is verified, and the header
//! chooses nothing: an algorithm other than the key's own, or a key of another
//! name, is a token of somebody else. Knows no claim.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use serde_json::{Value, json};

/// The one algorithm.
pub(super) const ALGORITHM: &str = "ES256";
/// Longest token that is looked at, in bytes.
const BYTES_MAX: usize = 16 << 10;
/// What precedes a P-256 point in a `SubjectPublicKeyInfo` (RFC 5480).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Bytes that are no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a P-256 key in PKCS#8: {0}")]
pub struct KeyError(String);

/// The key that signs tokens, and verifies them.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    id: String,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl TokenKey {
    /// A new key, as PKCS#8.
    #[must_use]
    pub fn generate() -> Vec<u8> {
        let random = SystemRandom::new();
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .expect("the system has randomness")
            .as_ref()
            .to_vec()
    }

    /// Reads a key that [`TokenKey::generate`] made.
    ///
    /// # Errors
    /// It is none.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, bytes, &random)
            .map_err(|rejected| KeyError(rejected.to_string()))?;
        let spki = [&SPKI_PREFIX, pair.public_key().as_ref()].concat();
        let digest = ring::digest::digest(&ring::digest::SHA256, &spki);
        Ok(Self { pair, random, id: URL_SAFE_NO_PAD.encode(digest) })
    }

    /// The token of these claims.
    pub(super) fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": ALGORITHM, "kid": self.id});
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&header), encode(claims));
        let signature =
            self.pair.sign(&self.random, message.as_bytes()).expect("the system has randomness");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The claims of a token that this key has signed, or why it is none.
    pub(super) fn verify(&self, token: &str) -> Result<Value, &'static str> {
        if token.len() > BYTES_MAX {
            return Err("it is too long");
        }
        let (message, signature) = token.rsplit_once('.').ok_or("it is no JWT")?;
        let (header, claims) = message.split_once('.').ok_or("it is no JWT")?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| "it is no JWT");
        let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key())
            .verify(message.as_bytes(), &signature)
            .map_err(|_| "its signature is not by this cluster's key")?;
        let header: Value = serde_json::from_slice(&header).map_err(|_| "it is no JWT")?;
        if header["alg"] != ALGORITHM || header["kid"] != self.id.as_str() {
            return Err("its header names another key");
        }
        serde_json::from_slice(&claims).map_err(|_| "its claims are no JSON")
    }

    /// The public half, as RFC 7517 has it.
    pub(super) fn public(&self) -> Value {
        // 0x04, then the two coordinates.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        json!({
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": ALGORITHM,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> TokenKey {
        TokenKey::from_pkcs8(&TokenKey::generate()).unwrap()
    }

    fn encoded(value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    /// `header.claims` with a signature by `key`, whatever the header says.
    fn signed(key: &TokenKey, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encoded(header), encoded(claims));
        let signature = key.pair.sign(&key.random, message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn only_what_the_key_has_signed_as_it_signs_is_believed() {
        let (ours, other) = (key(), key());
        let claims = json!({"sub": "me", "n": 1});
        let token = ours.sign(&claims);
        assert_eq!(ours.verify(&token), Ok(claims.clone()));
        assert_ne!(token, ours.sign(&claims), "a signature is never the same twice");
        let (message, signature) = token.rsplit_once('.').unwrap();
        let header = message.split_once('.').unwrap().0;
        let wrong_signature = "its signature is not by this cluster's key";
        let wrong_header = "its header names another key";
        let named = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid});
        let unsigned = format!("{}.{}.", encoded(&named("none", &ours.id)), encoded(&claims));
        let mut trailing = token.clone();
        trailing.push('=');
        let table = [
            (other.sign(&claims), wrong_signature),
            (signed(&other, &named(ALGORITHM, &ours.id), &claims), wrong_signature),
            (unsigned, wrong_signature),
            (format!("{message}."), wrong_signature),
            (format!("{header}.{}.{signature}", encoded(&json!({"sub": "root"}))), wrong_signature),
            (format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 64])), wrong_signature),
            (format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 63])), wrong_signature),
            (signed(&ours, &named("none", &ours.id), &claims), wrong_header),
            (signed(&ours, &named("HS256", &ours.id), &claims), wrong_header),
            (signed(&ours, &named(ALGORITHM, &other.id), &claims), wrong_header),
            (signed(&ours, &json!({"alg": ALGORITHM}), &claims), wrong_header),
            (signed(&ours, &json!([]), &claims), wrong_header),
            (trailing, "it is no JWT"),
            (message.to_owned(), "it is no JWT"),
            (format!("a.{token}"), "it is no JWT"),
            (String::new(), "it is no JWT"),
            ("..".to_owned(), wrong_signature),
            (format!("{token}{}", "A".repeat(BYTES_MAX)), "it is too long"),
            (ours.sign(&json!({"x": "y".repeat(BYTES_MAX)})), "it is too long"),
        ];
        for (token, why) in table {
            let short: String = token.chars().take(200).collect();
            assert_eq!(ours.verify(&token), Err(why), "{short}");
        }
    }

    #[test]
    fn the_public_key_verifies_and_its_name_follows_from_it() {
        let bytes = TokenKey::generate();
        let (first, again) =
            (TokenKey::from_pkcs8(&bytes).unwrap(), TokenKey::from_pkcs8(&bytes).unwrap());
        assert_eq!(first.public(), again.public());
        assert_eq!(again.verify(&first.sign(&json!({}))), Ok(json!({})));
        let public = first.public();
        let coordinate =
            |name: &str| URL_SAFE_NO_PAD.decode(public[name].as_str().unwrap()).unwrap();
        let point = [vec![4], coordinate("x"), coordinate("y")].concat();
        let token = first.sign(&json!({"a": 1}));
        let (message, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(message.as_bytes(), &signature)
            .unwrap();
        TokenKey::from_pkcs8(b"not a key").unwrap_err();
        assert!(!format!("{first:?}").contains("pair"));
    }

    proptest! {
        #[test]
        fn garbage_is_no_token(text in ".{0,300}") {
            prop_assert!(key().verify(&text).is_err());
        }

        #[test]
        fn a_changed_token_is_no_token(at in 0_usize..200, new in "[A-Za-z0-9_.-]") {
            let key = key();
            let token = key.sign(&json!({"sub": "system:serviceaccount:a:b", "exp": 7}));
            let at = at % token.len();
            let mut bad = token.clone();
            bad.replace_range(at..=at, &new);
            prop_assume!(bad != token);
            prop_assert!(key.verify(&bad).is_err());
        }
    }
}
