//! Whether a board may become a node: a pure decision about a request, the
//! token it names and the time. The caller keeps the tokens, signs the
//! certificate and counts the use, in one write, before it sends the answer.
//!
//! ```text
//! check_request ──► Issue  : sign, write the use with the certificate, answer with `issued`
//!               ├─► Repeat : answer with `issued` and the certificate of the first time
//!               └─► Deny   : answer with `denied`, log the same words
//! ```

use ring::hmac;
use wire::enrol::{JoinRequestV1, JoinResponseV1, TokenV1};
use wire::token::issued_mac_input;
use wire::topic::{NodeNameError, check_node_name};

/// Most bytes of a certificate signing request; one with a P-256 key has about 250.
pub const CSR_BYTES_MAX: usize = 4096;

/// A token as the master keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Names the token.
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
    /// Which requests it was used for.
    pub issued: Vec<Issued>,
}

impl std::fmt::Debug for TokenRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenRecord")
            .field("id", &self.id)
            .field("expires_s", &self.expires_s)
            .field("uses_left", &self.uses_left)
            .finish_non_exhaustive()
    }
}

/// A use of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The node that was made.
    pub node: String,
    /// SHA-256 of its request for a certificate: the same again is a lost answer.
    pub csr_sha256: [u8; 32],
    /// The certificate, DER.
    pub certificate: Vec<u8>,
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Sign a certificate for the request's node and key, and count the use.
    Issue,
    /// The same request was granted before: send this certificate again.
    Repeat(Vec<u8>),
    /// Refuse.
    Deny(Denial),
}

/// Why a board is refused. The board shows the text to its user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// No such token (any more).
    #[error("token {0} is unknown: make one with `pinnace token create`")]
    UnknownToken(String),
    /// The board does not know the secret.
    #[error(
        "the proof does not fit token {0}: copy the whole line that `pinnace token create` printed"
    )]
    Proof(String),
    /// Too late.
    #[error("token {0} has expired: make a new one with `pinnace token create`")]
    Expired(String),
    /// As many nodes as it was made for.
    #[error("token {0} is used up: make a new one with `pinnace token create`")]
    UsedUp(String),
    /// The wanted name is none.
    #[error(transparent)]
    NodeName(#[from] NodeNameError),
    /// The token is for other names.
    #[error("token {token} is not for a node named \"{node}\"")]
    NameNotAllowed {
        /// The token.
        token: String,
        /// The wanted name.
        node: String,
    },
    /// Another board has this name.
    #[error(
        "a node named \"{0}\" exists with another key: choose another name with --node-name, or delete the node first"
    )]
    NameTaken(String),
    /// No sensible signing request.
    #[error("the certificate request has {0} bytes, at most {CSR_BYTES_MAX} are taken")]
    Csr(usize),
}

/// Decides about `request`. `record` is the token it names, `now_s` the seconds
/// since 1970, `name_taken` whether a node of the wanted name exists.
#[must_use]
pub fn check_request(
    record: Option<&TokenRecord>,
    request: &JoinRequestV1,
    now_s: u64,
    name_taken: bool,
) -> Decision {
    match check(record, request, now_s, name_taken) {
        Ok(decision) => decision,
        Err(denial) => Decision::Deny(denial),
    }
}

fn check(
    record: Option<&TokenRecord>,
    request: &JoinRequestV1,
    now_s: u64,
    name_taken: bool,
) -> Result<Decision, Denial> {
    let id: String = request.token_id.chars().take(wire::token::ID_MAX).collect();
    let record = record
        .filter(|record| record.id == request.token_id)
        .ok_or_else(|| Denial::UnknownToken(id.clone()))?;
    // Nothing else is said to a board that does not know the secret.
    let key = hmac::Key::new(hmac::HMAC_SHA256, &record.secret);
    hmac::verify(&key, &request.mac_input(), &request.mac)
        .map_err(|_unspecified| Denial::Proof(id.clone()))?;
    check_node_name(&request.node)?;
    if request.csr.len() > CSR_BYTES_MAX || request.csr.is_empty() {
        return Err(Denial::Csr(request.csr.len()));
    }
    let csr_sha256 = crate::sha256(&request.csr);
    let again = record
        .issued
        .iter()
        .find(|issued| issued.node == request.node && issued.csr_sha256 == csr_sha256);
    if let Some(issued) = again {
        return Ok(Decision::Repeat(issued.certificate.clone()));
    }
    if now_s >= record.expires_s {
        return Err(Denial::Expired(id));
    }
    if record.uses_left == 0 {
        return Err(Denial::UsedUp(id));
    }
    if !record.node_names.is_empty() && !record.node_names.contains(&request.node) {
        return Err(Denial::NameNotAllowed { token: id, node: request.node.clone() });
    }
    if name_taken {
        return Err(Denial::NameTaken(request.node.clone()));
    }
    Ok(Decision::Issue)
}

/// The answer to a request that was granted, with its proof.
#[must_use]
pub fn issued(
    record: &TokenRecord,
    request: &JoinRequestV1,
    certificate: Vec<u8>,
    ca: Vec<u8>,
    artifact_key: [u8; 32],
) -> JoinResponseV1 {
    let labels = record.labels.clone();
    let input = issued_mac_input(&request.nonce, &certificate, &ca, &artifact_key, &labels);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &record.secret);
    let mac = hmac::sign(&key, &input);
    let mac = mac.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes");
    JoinResponseV1::Issued { certificate, ca, artifact_key, labels, mac }
}

/// The answer to a request that was refused.
#[must_use]
pub fn denied(denial: &Denial) -> JoinResponseV1 {
    JoinResponseV1::Denied(denial.to_string())
}

/// The token for a record: `random` is 24 bytes from the system's generator, of
/// which the first four name the token.
#[must_use]
pub fn make_token(endpoints: Vec<String>, ca_der: &[u8], random: [u8; 24]) -> TokenV1 {
    let (name, secret) = random.split_at(4);
    TokenV1 {
        endpoints,
        ca_sha256: crate::sha256(ca_der),
        id: name.iter().map(|byte| format!("{byte:02x}")).collect(),
        secret: secret.try_into().expect("24 bytes without 4 are 20"),
        ext: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> TokenRecord {
        TokenRecord {
            id: "a1b2c3d4".into(),
            secret: [7; 20],
            expires_s: 1000,
            uses_left: 1,
            node_names: Vec::new(),
            labels: vec![("zone".into(), "a".into())],
            issued: Vec::new(),
        }
    }

    fn signed(mut request: JoinRequestV1, secret: [u8; 20]) -> JoinRequestV1 {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        request.mac = hmac::sign(&key, &request.mac_input()).as_ref().try_into().unwrap();
        request
    }

    fn request(node: &str) -> JoinRequestV1 {
        signed(
            JoinRequestV1 {
                token_id: "a1b2c3d4".into(),
                node: node.into(),
                nonce: [3; 16],
                csr: vec![0x30; 200],
                mac: [0; 32],
            },
            [7; 20],
        )
    }

    fn decide(record: &TokenRecord, request: &JoinRequestV1, now_s: u64) -> Decision {
        check_request(Some(record), request, now_s, false)
    }

    #[test]
    fn a_good_request_is_granted_once_and_repeated_as_often_as_asked() {
        let mut record = record();
        let first = request("board");
        assert_eq!(decide(&record, &first, 10), Decision::Issue);
        record.uses_left = 0;
        record.issued.push(Issued {
            node: "board".into(),
            csr_sha256: crate::sha256(&first.csr),
            certificate: vec![1, 2, 3],
        });
        let later = check_request(Some(&record), &first, 5000, true);
        assert_eq!(later, Decision::Repeat(vec![1, 2, 3]), "the answer was lost");
        assert_eq!(
            decide(&record, &request("other"), 10),
            Decision::Deny(Denial::UsedUp("a1b2c3d4".into()))
        );
    }

    #[test]
    fn every_reason_to_refuse_is_named() {
        let good = request("board");
        let id = || String::from("a1b2c3d4");
        let deny = |record: Option<&TokenRecord>, request: &JoinRequestV1, now_s, taken| {
            match check_request(record, request, now_s, taken) {
                Decision::Deny(denial) => denial,
                other => panic!("{other:?}"),
            }
        };
        let record = record();
        assert_eq!(deny(None, &good, 10, false), Denial::UnknownToken(id()));
        let other = TokenRecord { id: "ffffffff".into(), ..record.clone() };
        assert_eq!(deny(Some(&other), &good, 10, false), Denial::UnknownToken(id()));
        let forged = signed(good.clone(), [8; 20]);
        assert_eq!(deny(Some(&record), &forged, 10, false), Denial::Proof(id()));
        let moved = JoinRequestV1 { node: "admin".into(), ..good.clone() };
        assert_eq!(deny(Some(&record), &moved, 10, false), Denial::Proof(id()));
        assert_eq!(deny(Some(&record), &good, 1000, false), Denial::Expired(id()));
        assert!(matches!(deny(Some(&record), &request("a/+"), 10, false), Denial::NodeName(_)));
        assert_eq!(deny(Some(&record), &good, 10, true), Denial::NameTaken("board".into()));
        let named = TokenRecord { node_names: vec!["other".into()], ..record.clone() };
        assert!(matches!(deny(Some(&named), &good, 10, false), Denial::NameNotAllowed { .. }));
        let huge = signed(JoinRequestV1 { csr: vec![0; 5000], ..good }, [7; 20]);
        assert_eq!(deny(Some(&record), &huge, 10, false), Denial::Csr(5000));
    }

    #[test]
    fn an_unproven_board_learns_nothing_but_that() {
        let used_up = TokenRecord { uses_left: 0, expires_s: 0, ..record() };
        let forged = signed(request("board"), [8; 20]);
        assert!(matches!(decide(&used_up, &forged, 10), Decision::Deny(Denial::Proof(_))));
    }

    #[test]
    fn the_answer_is_proven_with_the_tokens_secret() {
        let request = request("board");
        let JoinResponseV1::Issued { certificate, ca, artifact_key, labels, mac } =
            issued(&record(), &request, vec![1], vec![2], [5; 32])
        else {
            panic!("denied")
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 20]);
        let input = issued_mac_input(&request.nonce, &certificate, &ca, &artifact_key, &labels);
        assert_eq!(hmac::verify(&key, &input, &mac), Ok(()));
        let input = issued_mac_input(&[4; 16], &certificate, &ca, &artifact_key, &labels);
        assert!(hmac::verify(&key, &input, &mac).is_err(), "bound to the request's nonce");
    }

    #[test]
    fn a_made_token_reads_back_from_its_line() {
        let token = make_token(vec!["10.0.0.1:8883".into()], b"ca", [0xab; 24]);
        assert_eq!(token.id, "abababab");
        assert_eq!(TokenV1::from_text(&token.to_text()), Ok(token));
    }

    #[test]
    fn a_debug_print_hides_the_secret() {
        assert!(!format!("{:?}", record()).contains("7, 7"));
    }
}
