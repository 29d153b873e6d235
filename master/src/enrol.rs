//! Makes boards nodes: reads the token a request names, lets
//! [`dispatch::enrol`] decide, signs, and writes the use before it answers.
//!
//! A request that was granted before is granted again with the same
//! certificate, so a lost answer costs nothing. The node's object is made with
//! the certificate; deleting it is how an operator takes the name back.

use api::enrolment::{EnrolmentToken, NAMESPACE, Use, secret_name};
use api::resource::{Resource, by_kind};
use apiserver::{Api, Identity, Reason, Status, Target, WriteOptions};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dispatch::enrol::{Decision, Issued, TokenRecord, check_request, denied, issued};
use serde_json::json;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use tracing::{info, warn};
use wire::enrol::{JoinRequestV1, JoinResponseV1};

use crate::clock;
use crate::pki::Pki;

/// The annotation that says which key a node enrolled with: SHA-256 of its
/// certificate, hexadecimal.
pub(crate) const CERTIFICATE_ANNOTATION: &str = "pinnace.io/certificate-sha256";

/// Tries against other writers of the same token.
const TRIES: usize = 5;

/// Decides about boards that want to join.
pub(crate) struct Enrolment {
    api: Api,
    pki: Arc<Pki>,
    identity: Identity,
    options: WriteOptions,
}

impl Enrolment {
    pub(crate) fn new(api: Api, pki: Arc<Pki>) -> Self {
        let name = "pinnace:enrolment";
        Self { api, pki, identity: Identity::master(name), options: WriteOptions::by(name) }
    }

    /// The answer to `request`.
    pub(crate) async fn join(&self, request: &JoinRequestV1) -> JoinResponseV1 {
        for _ in 0..TRIES {
            match self.try_join(request).await {
                Ok(response) => return response,
                Err(status) if status.reason == Reason::Conflict => (),
                Err(status) => {
                    warn!(node = request.node, error = status.message, "cannot enrol");
                    break;
                }
            }
        }
        JoinResponseV1::Denied("the master cannot enrol nodes now: try again later".to_owned())
    }

    async fn try_join(&self, request: &JoinRequestV1) -> Result<JoinResponseV1, Status> {
        let secrets = resource("Secret");
        let name = secret_name(&request.token_id);
        let target = Target::object(secrets, NAMESPACE, &name);
        let stored = match self.api.get_value(&self.identity, &target) {
            Ok(secret) => EnrolmentToken::from_secret(&secret).ok().map(|token| (secret, token)),
            Err(status) if status.reason == Reason::NotFound => None,
            Err(status) => return Err(status),
        };
        let record = stored.as_ref().map(|(_, token)| record(token));
        let now_s = clock::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let taken = self.node_exists(&request.node)?;
        let decision = check_request(record.as_ref(), request, now_s, taken);
        let (secret, mut token) = match (decision, stored) {
            (Decision::Deny(denial), _) => {
                warn!(node = request.node, token = request.token_id, %denial, "join refused");
                return Ok(denied(&denial));
            }
            (_, None) => {
                return Err(Status::internal("a join was granted without a token"));
            }
            (Decision::Repeat(certificate), Some((_, token))) => {
                info!(node = request.node, token = token.id, "join answered again");
                return Ok(self.issue(&token, request, certificate));
            }
            (Decision::Issue, Some(stored)) => stored,
        };
        let certificate = match self.pki.sign_node(&request.node, &request.csr) {
            Ok(certificate) => certificate.to_vec(),
            Err(err) => {
                warn!(node = request.node, %err, "join refused");
                return Ok(JoinResponseV1::Denied(format!("the certificate request: {err}")));
            }
        };
        token.uses_left = token.uses_left.saturating_sub(1);
        token.issued.push(Use {
            node: request.node.clone(),
            request: hex(&dispatch::sha256(&request.csr)),
            certificate: STANDARD.encode(&certificate),
        });
        let mut secret = secret;
        secret["data"] = token.data();
        // Its revision rides along: of two boards with one token, one loses here.
        self.api.update(&self.identity, &target, secret, &self.options).await?;
        self.make_node(request, &token, &certificate).await?;
        info!(node = request.node, token = token.id, "node enrolled");
        Ok(self.issue(&token, request, certificate))
    }

    fn node_exists(&self, name: &str) -> Result<bool, Status> {
        if wire::topic::check_node_name(name).is_err() {
            return Ok(false);
        }
        match self.api.get(&self.identity, &Target::object(resource("Node"), "", name)) {
            Ok(_) => Ok(true),
            Err(status) if status.reason == Reason::NotFound => Ok(false),
            Err(status) => Err(status),
        }
    }

    async fn make_node(
        &self,
        request: &JoinRequestV1,
        token: &EnrolmentToken,
        certificate: &[u8],
    ) -> Result<(), Status> {
        let mut labels = serde_json::Map::new();
        labels.insert("kubernetes.io/hostname".to_owned(), json!(request.node));
        labels.insert("kubernetes.io/os".to_owned(), json!("linux"));
        labels.extend(token.labels.iter().map(|(key, value)| (key.clone(), json!(value))));
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": request.node,
                "labels": labels,
                "annotations": {CERTIFICATE_ANNOTATION: hex(&dispatch::sha256(certificate))},
            },
        });
        let created =
            self.api.create(&self.identity, resource("Node"), "", node, &self.options).await;
        match created {
            Err(status) if status.reason != Reason::AlreadyExists => Err(status),
            _ => Ok(()),
        }
    }

    fn issue(
        &self,
        token: &EnrolmentToken,
        request: &JoinRequestV1,
        certificate: Vec<u8>,
    ) -> JoinResponseV1 {
        issued(
            &record(token),
            request,
            certificate,
            self.pki.ca.to_vec(),
            self.pki.artifact_public_key(),
        )
    }
}

/// The resource of a core kind.
pub(crate) fn resource(kind: &str) -> &'static Resource {
    by_kind("", kind).expect("core kinds are in the table of resources")
}

fn record(token: &EnrolmentToken) -> TokenRecord {
    TokenRecord {
        id: token.id.clone(),
        secret: token.secret,
        expires_s: token.expires_s,
        uses_left: token.uses_left,
        node_names: token.node_names.clone(),
        labels: token.labels.clone(),
        issued: token.issued.iter().filter_map(issued_before).collect(),
    }
}

fn issued_before(one: &Use) -> Option<Issued> {
    let digits: Vec<u8> = (0..one.request.len() / 2)
        .filter_map(|i| u8::from_str_radix(one.request.get(2 * i..2 * i + 2)?, 16).ok())
        .collect();
    Some(Issued {
        node: one.node.clone(),
        csr_sha256: digits.try_into().ok()?,
        certificate: STANDARD.decode(&one.certificate).ok()?,
    })
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
