//! The text form of a join token, `pn1.<base64url of postcard of TokenV1>`, and
//! the bytes that the proofs of [`crate::enrol`] cover. The proofs themselves
//! (HMAC-SHA256) are made by the two ends; this crate has no cryptography.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::enrol::{JoinRequestV1, TokenV1};

/// What every token starts with.
pub const PREFIX: &str = "pn1.";
/// Most characters of a token.
pub const TEXT_MAX: usize = 2048;
/// Most endpoints of a token.
pub const ENDPOINTS_MAX: usize = 16;
/// Most characters of a token's id.
pub const ID_MAX: usize = 63;

/// Why a text is no token. The text is secret, so no message shows it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not even the start fits.
    #[error(
        "a token starts with \"{PREFIX}\": copy the whole line that `pinnace token create` printed"
    )]
    Prefix,
    /// Far too long.
    #[error("a token has at most {TEXT_MAX} characters, this text has {0}")]
    TooLong(usize),
    /// Characters are missing, or do not belong there.
    #[error(
        "the token is damaged or incomplete: copy the whole line that `pinnace token create` printed"
    )]
    Damaged,
    /// It reads well, but holds nothing to use.
    #[error("the token's {0} is not usable: make another one with `pinnace token create`")]
    Content(&'static str),
}

impl TokenV1 {
    /// The line to paste on the board.
    #[must_use]
    pub fn to_text(&self) -> String {
        let bytes = postcard::to_stdvec(self).expect("a token holds only what postcard writes");
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads the line again; space around it is fine.
    ///
    /// # Errors
    /// Says what is wrong with it, without showing it.
    pub fn from_text(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TEXT_MAX {
            return Err(TokenError::TooLong(text.len()));
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_error| TokenError::Damaged)?;
        let (token, rest) =
            postcard::take_from_bytes::<Self>(&bytes).map_err(|_error| TokenError::Damaged)?;
        if !rest.is_empty() {
            return Err(TokenError::Damaged);
        }
        if token.endpoints.is_empty()
            || token.endpoints.len() > ENDPOINTS_MAX
            || token.endpoints.iter().any(|endpoint| !is_endpoint(endpoint))
        {
            return Err(TokenError::Content("list of endpoints"));
        }
        let id_fits = (1..=ID_MAX).contains(&token.id.len())
            && token.id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !id_fits {
            return Err(TokenError::Content("id"));
        }
        Ok(token)
    }
}

/// Whether `text` is `host:port` (an IPv6 address in brackets).
#[must_use]
pub fn is_endpoint(text: &str) -> bool {
    split_endpoint(text).is_some()
}

/// Host and port of `host:port`; the brackets of an IPv6 address are taken off.
#[must_use]
pub fn split_endpoint(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().ok().map(|_address| inner)?,
        None => host,
    };
    let fits = (1..=255).contains(&host.len())
        && (bracketed.is_some()
            || !host.contains(|c: char| c.is_whitespace() || "[]:/@".contains(c)));
    fits.then_some((host, port))
}

impl JoinRequestV1 {
    /// What [`JoinRequestV1::mac`] covers: every other field.
    #[must_use]
    pub fn mac_input(&self) -> Vec<u8> {
        mac_input(
            "pinnace-join-request-1",
            &[self.token_id.as_bytes(), self.node.as_bytes(), &self.nonce, &self.csr],
        )
    }
}

/// What the `mac` of [`crate::enrol::JoinResponseV1::Issued`] covers: the
/// request's nonce and every other field.
#[must_use]
pub fn issued_mac_input(
    nonce: &[u8; 16],
    certificate: &[u8],
    ca: &[u8],
    artifact_key: &[u8; 32],
    labels: &[(String, String)],
) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = vec![nonce, certificate, ca, artifact_key];
    for (key, value) in labels {
        parts.extend([key.as_bytes(), value.as_bytes()]);
    }
    mac_input("pinnace-join-issued-1", &parts)
}

/// A domain tag, and every part behind its length: no two lists give the same bytes.
fn mac_input(tag: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in std::iter::once(&tag.as_bytes()).chain(parts) {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TokenV1 {
        TokenV1 {
            endpoints: vec!["10.0.0.1:8883".into(), "[fd00::1]:8883".into()],
            ca_sha256: [7; 32],
            id: "a1b2c3d4".into(),
            secret: [9; 20],
            ext: Vec::new(),
        }
    }

    #[test]
    fn a_token_reads_back_from_its_line() {
        let text = token().to_text();
        assert!(text.len() < 160, "{} characters", text.len());
        assert_eq!(TokenV1::from_text(&format!("  {text}\n")), Ok(token()));
    }

    #[test]
    fn a_cut_or_changed_line_is_refused_and_never_shown() {
        let text = token().to_text();
        for end in 0..text.len() {
            assert!(TokenV1::from_text(&text[..end]).is_err(), "cut at {end}");
        }
        for bad in ["", "pn2.AAAA", "pn1.", "pn1.!!!", &format!("{text}AA"), &"x".repeat(5000)] {
            let error = TokenV1::from_text(bad).unwrap_err().to_string();
            assert!(!error.contains("AAAA"), "{error}");
        }
    }

    #[test]
    fn a_token_without_a_usable_endpoint_or_id_is_refused() {
        let endpoints = |list: &[&str]| TokenV1 {
            endpoints: list.iter().map(|text| String::from(*text)).collect(),
            ..token()
        };
        for bad in [
            endpoints(&[]),
            endpoints(&["host"]),
            endpoints(&["host:0"]),
            endpoints(&["host:99999"]),
            endpoints(&[":8883"]),
            endpoints(&["a b:8883"]),
            endpoints(&["fd00::1:8883"]),
            endpoints(&["[nonsense]:8883"]),
            endpoints(&["h:1"; 17]),
            TokenV1 { id: String::new(), ..token() },
            TokenV1 { id: "a/b".into(), ..token() },
        ] {
            assert!(
                matches!(TokenV1::from_text(&bad.to_text()), Err(TokenError::Content(_))),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_debug_print_hides_the_secret() {
        assert!(!format!("{:?}", token()).contains("9, 9"));
    }

    #[test]
    fn moving_bytes_between_fields_changes_what_the_proof_covers() {
        let request = |token_id: &str, node: &str| JoinRequestV1 {
            token_id: token_id.into(),
            node: node.into(),
            nonce: [0; 16],
            csr: vec![1],
            mac: [0; 32],
        };
        assert_ne!(request("ab", "c").mac_input(), request("a", "bc").mac_input());
        let label = |key: &str, value: &str| vec![(String::from(key), String::from(value))];
        assert_ne!(
            issued_mac_input(&[0; 16], &[], &[], &[0; 32], &label("ab", "")),
            issued_mac_input(&[0; 16], &[], &[], &[0; 32], &label("a", "b")),
        );
    }
}
