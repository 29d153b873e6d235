//! Signatures of images, in cosign's format for keys of one's own.
//!
//! `cosign sign --key cosign.key IMAGE` pushes a manifest under the tag
//! `sha256-<hex of the image's digest>.sig`. Each of its layers is a small JSON
//! document that names the digest, and carries the signature over its bytes as
//! an annotation: ECDSA on P-256 with SHA-256.
//!
//! What is checked: one of the keys has signed a document of the right type that
//! names this very digest. What is not: transparency logs, certificates, and the
//! repository in the document, which changes when an image is mirrored.
//!
//! Source: <https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::manifest::{self, Document};
use crate::{Digest, ImageError, Reference, Registry};

/// The annotation that holds a signature.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// Type of the documents that are signed.
pub const PAYLOAD_MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const PAYLOAD_TYPE: &str = "cosign container image signature";

/// Longest document that is signed, in bytes.
const PAYLOAD_BYTES_MAX: u64 = 64 << 10;
/// Most signatures of an image that are looked at.
const SIGNATURES_MAX: usize = 64;
/// Most keys of a policy.
const KEYS_MAX: usize = 64;
/// Longest text of keys, in bytes.
const KEYS_BYTES_MAX: usize = 64 << 10;

/// The DER of a P-256 public key, up to its point.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Length of an uncompressed point.
const POINT_BYTES: usize = 65;

/// Public keys whose signatures count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKeys(Vec<Vec<u8>>);

/// A signature and what it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The document that is signed, in base64.
    payload: String,
    /// The signature as ASN.1, in base64.
    signature: String,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

impl TrustedKeys {
    /// Reads one or more public keys, `-----BEGIN PUBLIC KEY-----` each.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_pem(text: &str) -> Result<Self, String> {
        if text.len() > KEYS_BYTES_MAX {
            return Err("the keys are longer than 64 KiB".into());
        }
        let mut keys = Vec::new();
        let mut rest = text;
        while let Some((_, after)) = rest.split_once("-----BEGIN PUBLIC KEY-----") {
            let (body, next) = after
                .split_once("-----END PUBLIC KEY-----")
                .ok_or("a key has a beginning and no end")?;
            let body: String = body.split_whitespace().collect();
            let der = STANDARD.decode(body).map_err(|_| "a key is not base64")?;
            let point = der.strip_prefix(&P256_PREFIX).filter(|p| p.len() == POINT_BYTES);
            let point = point.filter(|point| point[0] == 4).ok_or(
                "a key is not ECDSA on P-256: make one with `cosign generate-key-pair` or \
                 `openssl ecparam -name prime256v1 -genkey`",
            )?;
            keys.push(point.to_vec());
            if keys.len() > KEYS_MAX {
                return Err(format!("there are more than {KEYS_MAX} keys"));
            }
            rest = next;
        }
        if keys.is_empty() {
            return Err("there is no -----BEGIN PUBLIC KEY-----".into());
        }
        keys.sort();
        keys.dedup();
        Ok(Self(keys))
    }

    /// Tells sets of keys apart.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.0.concat())
    }

    /// Checks that one of the signatures is by one of the keys and names one of the
    /// digests.
    ///
    /// # Errors
    /// What was found instead.
    pub fn verify(&self, digests: &[Digest], signatures: &[Signature]) -> Result<(), String> {
        let mut problem = "it has no signature".to_owned();
        for signature in signatures {
            match self.verify_one(digests, signature) {
                Ok(()) => return Ok(()),
                Err(why) => why.clone_into(&mut problem),
            }
        }
        Err(problem)
    }

    fn verify_one(&self, digests: &[Digest], signature: &Signature) -> Result<(), &'static str> {
        let damaged = "its signature is damaged";
        let payload = STANDARD.decode(&signature.payload).map_err(|_| damaged)?;
        let bytes = STANDARD.decode(signature.signature.trim()).map_err(|_| damaged)?;
        let is_by = |key: &Vec<u8>| {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(&payload, &bytes).is_ok()
        };
        if !self.0.iter().any(is_by) {
            return Err("its signature is by another key");
        }
        // Read only now: nobody who is not trusted chooses what the parser sees.
        let payload: Payload =
            serde_json::from_slice(&payload).map_err(|_| "what was signed is no document")?;
        let named: Digest =
            payload.critical.image.digest.parse().map_err(|_| "what was signed names no digest")?;
        if payload.critical.kind != PAYLOAD_TYPE {
            return Err("what was signed is not an image's signature");
        }
        if !digests.contains(&named) {
            return Err("its signature is for another image");
        }
        Ok(())
    }
}

/// Fetches the signatures of what `digest` names in the image's repository; none
/// where there are none.
///
/// # Errors
/// The registry does not answer, or answers nonsense.
pub async fn fetch_signatures(
    registry: &Registry,
    image: &Reference,
    digest: Digest,
) -> Result<Vec<Signature>, ImageError> {
    let place = Reference { tag: Some(tag(digest)), digest: None, ..image.clone() };
    let bytes = match registry.manifest_bytes(&place).await {
        Ok((_, bytes)) => bytes,
        Err(ImageError::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let Ok(Document::Manifest(manifest)) = manifest::parse(&bytes) else {
        return Ok(Vec::new());
    };
    let mut signatures = Vec::new();
    for layer in manifest.layers.iter().take(SIGNATURES_MAX) {
        let Some(signature) = layer.annotations.get(SIGNATURE_ANNOTATION) else { continue };
        if layer.media_type != PAYLOAD_MEDIA_TYPE {
            continue;
        }
        let what = "a signature";
        let payload = registry.blob_bytes(&place, layer.digest, PAYLOAD_BYTES_MAX, what).await?;
        signatures
            .push(Signature { payload: STANDARD.encode(&payload), signature: signature.clone() });
    }
    Ok(signatures)
}

/// The tag under which the signatures of a digest are.
#[must_use]
pub fn tag(digest: Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// The document that is signed for an image.
#[must_use]
pub fn payload(repository: &str, digest: Digest) -> Bytes {
    let value = serde_json::json!({
        "critical": {
            "identity": { "docker-reference": repository },
            "image": { "docker-manifest-digest": digest },
            "type": PAYLOAD_TYPE,
        },
        "optional": null,
    });
    value.to_string().into()
}

/// For tests: a signature made of its parts.
#[must_use]
pub fn assembled(payload: &[u8], signature: &[u8]) -> Signature {
    Signature { payload: STANDARD.encode(payload), signature: STANDARD.encode(signature) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    struct Signer(EcdsaKeyPair);

    impl Signer {
        fn new() -> Self {
            let rng = SystemRandom::new();
            let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).unwrap();
            Self(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &rng).unwrap())
        }

        fn pem(&self) -> String {
            let der = [&P256_PREFIX[..], self.0.public_key().as_ref()].concat();
            let body = STANDARD.encode(der);
            format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
        }

        fn sign(&self, payload: &[u8]) -> Signature {
            let signature = self.0.sign(&SystemRandom::new(), payload).unwrap();
            assembled(payload, signature.as_ref())
        }
    }

    #[test]
    fn only_a_trusted_key_and_the_right_digest_count() {
        let (ours, theirs) = (Signer::new(), Signer::new());
        let keys = TrustedKeys::from_pem(&format!("a comment\n{}", ours.pem())).unwrap();
        let (image, other) = (Digest::of(b"image"), Digest::of(b"other"));
        let good = ours.sign(&payload("r.io/a", image));
        let check = |signatures: &[Signature], expected: Result<(), &str>| {
            let found = keys.verify(&[image], signatures);
            assert_eq!(found.as_ref().map_err(String::as_str).copied(), expected);
        };
        check(std::slice::from_ref(&good), Ok(()));
        check(&[theirs.sign(&payload("r.io/a", image)), good.clone()], Ok(()));
        check(&[], Err("it has no signature"));
        check(&[theirs.sign(&payload("a", image))], Err("its signature is by another key"));
        check(&[ours.sign(&payload("a", other))], Err("its signature is for another image"));
        check(&[ours.sign(b"{}")], Err("what was signed is no document"));
        let text = String::from_utf8(payload("a", image).to_vec()).unwrap();
        let kind = ours.sign(text.replace(PAYLOAD_TYPE, "attestation").as_bytes());
        check(&[kind], Err("what was signed is not an image's signature"));
        let moved = Signature { payload: STANDARD.encode(payload("a", other)), ..good.clone() };
        check(&[moved], Err("its signature is by another key"));
        let torn = Signature { signature: good.signature[..20].to_owned(), ..good.clone() };
        check(&[torn], Err("its signature is by another key"));
        check(&[Signature { signature: "?".into(), ..good }], Err("its signature is damaged"));
        // Two keys: either counts, in any order.
        let both = TrustedKeys::from_pem(&format!("{}{}", theirs.pem(), ours.pem())).unwrap();
        let turned = TrustedKeys::from_pem(&format!("{}{}", ours.pem(), theirs.pem())).unwrap();
        both.verify(&[other, image], &[theirs.sign(&payload("a", image))]).unwrap();
        assert_eq!(both.fingerprint(), turned.fingerprint());
        assert_ne!(both.fingerprint(), keys.fingerprint());
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        for (text, expected) in [
            ("", "there is no -----BEGIN"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA", "no end"),
            ("-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----", "not base64"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "not ECDSA on P-256"),
        ] {
            let error = TrustedKeys::from_pem(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        TrustedKeys::from_pem(&"x".repeat(KEYS_BYTES_MAX + 1)).unwrap_err();
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(text in "(-----BEGIN PUBLIC KEY-----)?[A-Za-z0-9+/=\n-]{0,200}") {
            let _ = TrustedKeys::from_pem(&text);
        }
    }
}
