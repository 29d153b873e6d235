//! Tokens of ServiceAccounts: who gets one, and who is at the other end of one.
//!
//! ```text
//! issue         account and what the token is bound to exist ─► claims ─► signature
//! authenticate  signature ─► claims ─► time ─► audience ─► account and bound objects still exist
//! ```
//!
//! A token is a JWT with upstream's claims ([`claims`]), signed with ES256 by the
//! cluster's key ([`jwt`]). It ends with its time, with its ServiceAccount, or with
//! the pod, Secret or Node it is bound to, each told by its uid; an object that is
//! being deleted counts for 60 s more, as upstream has it.
//!
//! Unlike upstream's default, a token that asks for 3607 s lives that long and not
//! a year.

mod claims;
mod jwt;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::resource::{self, Resource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::http::TokenAuthenticator;
use crate::identity::{AUTHENTICATED, Identity, SERVICE_ACCOUNTS};
use crate::object;
use crate::status::Status;
use crate::verbs::{Api, Target};
use claims::{Claims, Reference};
pub use jwt::{KeyError, TokenKey};

/// Who issues tokens, and the audience that the API server is, as upstream's
/// default.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Shortest and longest life, in seconds; more is cut.
pub(crate) const EXPIRATION_S: std::ops::RangeInclusive<i64> = 600..=365 * 24 * 3600;
/// How far clocks may be apart, and how long a deleted object still counts.
const LEEWAY: Duration = Duration::from_secs(60);

/// What issues and checks tokens.
#[derive(Debug)]
pub struct TokenIssuer {
    key: TokenKey,
    clock: fn() -> SystemTime,
}

impl TokenIssuer {
    /// Signs with `key`; `clock` tells the time.
    #[must_use]
    pub fn new(key: TokenKey, clock: fn() -> SystemTime) -> Self {
        Self { key, clock }
    }

    fn now_s(&self) -> i64 {
        let since = (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }

    /// The keys that verify tokens, as RFC 7517 has it.
    pub(crate) fn key_set(&self) -> Value {
        json!({"keys": [self.key.public()]})
    }
}

/// What a token is to be.
#[derive(Clone, Copy, Debug)]
pub struct TokenWish<'a> {
    /// Namespace of the ServiceAccount.
    pub namespace: &'a str,
    /// The ServiceAccount.
    pub account: &'a str,
    /// For whom it is; empty for the API server.
    pub audiences: &'a [String],
    /// How long it is to be good, in seconds.
    pub expiration_s: i64,
    /// The object it ends with: a Pod, Secret or Node as it is stored.
    pub bound: Option<&'a Value>,
}

/// A token that was issued.
#[derive(Clone)]
pub struct IssuedToken {
    /// The token.
    pub token: String,
    /// How long it is good, in seconds.
    pub lifetime_s: i64,
    /// When it ends.
    pub expires: Timestamp,
}

// It is a secret.
impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedToken").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Why a token is nobody's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// No JWT, or one that this cluster has not signed.
    #[error("the token is not one of this cluster: {0}")]
    Signature(&'static str),
    /// The claims are not those of a ServiceAccount's token.
    #[error("the token's claims cannot be read")]
    Claims,
    /// It is for somebody else.
    #[error("token audiences {0:?} is invalid for the target audiences {1:?}")]
    Audience(Vec<String>, Vec<String>),
    /// Its time is over, or has not come.
    #[error("{0}")]
    Time(&'static str),
    /// The account, or what it is bound to, is gone.
    #[error("service account token has been invalidated: {0}")]
    Gone(String),
    /// The store cannot be read, or there is no key.
    #[error("tokens cannot be checked")]
    Unavailable,
}

impl TokenAuthenticator for Api {
    fn authenticate(&self, token: &str) -> Option<Identity> {
        match self.authenticate_token(token, &[]) {
            Ok((who, _)) => Some(who),
            Err(error) => {
                tracing::debug!(%error, "bearer token refused");
                None
            }
        }
    }
}

impl Api {
    /// Issues a token for an account that exists.
    ///
    /// # Errors
    /// `NotFound` for the account; `ServiceUnavailable` where there is no key.
    pub fn issue_token(&self, wish: &TokenWish<'_>) -> Result<IssuedToken, Status> {
        let issuer = self.token_issuer().ok_or_else(|| {
            Status::unavailable("tokens are not available: this server has no key for them")
        })?;
        let accounts = resource_of("ServiceAccount");
        let target = Target::object(accounts, wish.namespace, wish.account);
        let (account, _) = self.read(&target)?.ok_or_else(|| target.not_found())?;
        let (mut pod, mut secret, mut node) = (None, None, None);
        if let Some(bound) = wish.bound {
            let reference = Some(Reference::of(bound));
            match object::text(bound, &["kind"]) {
                "Secret" => secret = reference,
                "Node" => node = reference,
                _ => {
                    pod = reference;
                    let name = object::text(bound, &["spec", "nodeName"]);
                    let host = Target::object(resource_of("Node"), "", name);
                    if !name.is_empty() {
                        node = self.read(&host)?.map(|(host, _)| Reference::of(&host));
                    }
                }
            }
        }
        let now_s = issuer.now_s();
        let lifetime_s = wish.expiration_s.clamp(*EXPIRATION_S.start(), *EXPIRATION_S.end());
        let api_server = [ISSUER.to_owned()];
        let audiences = if wish.audiences.is_empty() { &api_server } else { wish.audiences };
        let claims = Claims {
            issuer: ISSUER.to_owned(),
            audiences: audiences.to_vec(),
            issued_s: now_s,
            not_before_s: now_s,
            expires_s: now_s.saturating_add(lifetime_s),
            id: uuid::Uuid::new_v4().to_string(),
            namespace: wish.namespace.to_owned(),
            account: Reference::of(&account),
            pod,
            secret,
            node,
        };
        let expires = Timestamp::from_second(claims.expires_s).unwrap_or(Timestamp::MAX);
        Ok(IssuedToken { token: issuer.key.sign(&claims.to_value()), lifetime_s, expires })
    }

    /// Whose token it is, and which of `audiences` it is for; no audience means
    /// the API server's own.
    pub(crate) fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(Identity, Vec<String>), TokenError> {
        let issuer = self.token_issuer().ok_or(TokenError::Unavailable)?;
        let claims = issuer.key.verify(token).map_err(TokenError::Signature)?;
        let claims = Claims::of(&claims).ok_or(TokenError::Claims)?;
        if claims.issuer != ISSUER {
            return Err(TokenError::Claims);
        }
        let (now_s, leeway_s) = (issuer.now_s(), i64::try_from(LEEWAY.as_secs()).unwrap_or(0));
        if claims.expires_s < now_s.saturating_sub(leeway_s) {
            return Err(TokenError::Time("service account token has expired"));
        }
        if now_s.saturating_add(leeway_s) < claims.not_before_s {
            return Err(TokenError::Time("service account token is not valid yet"));
        }
        let api_server = [ISSUER.to_owned()];
        let wanted = if audiences.is_empty() { &api_server } else { audiences };
        let common: Vec<String> =
            wanted.iter().filter(|one| claims.audiences.contains(one)).cloned().collect();
        if common.is_empty() {
            return Err(TokenError::Audience(claims.audiences, wanted.to_vec()));
        }
        self.still_holds(&claims, now_s - leeway_s)?;
        Ok((identity(&claims), common))
    }

    /// Whether the account and what a token is bound to are still there; what was to
    /// be gone before `limit_s` is not.
    fn still_holds(&self, claims: &Claims, limit_s: i64) -> Result<(), TokenError> {
        let check = |kind: &str, namespace: &str, reference: &Reference| {
            let target = Target::object(resource_of(kind), namespace, &reference.name);
            let gone = |why: &str| {
                let word = kind.to_lowercase();
                TokenError::Gone(format!("{word} \"{}\" {why}", reference.name))
            };
            let found = self.read(&target).map_err(|_| TokenError::Unavailable)?;
            let (found, _) = found.ok_or_else(|| gone("is gone"))?;
            if object::meta(&found, "uid") != reference.uid {
                return Err(gone("is another one by now"));
            }
            let deleted = object::meta(&found, "deletionTimestamp");
            let deleted = deleted.parse::<Timestamp>().ok().map(Timestamp::as_second);
            if deleted.is_some_and(|deleted_s| deleted_s < limit_s) {
                return Err(gone("was deleted"));
            }
            Ok(())
        };
        check("ServiceAccount", &claims.namespace, &claims.account)?;
        if let Some(secret) = &claims.secret {
            check("Secret", &claims.namespace, secret)?;
        }
        match (&claims.pod, &claims.node) {
            // A pod goes with its node by itself.
            (Some(pod), _) => check("Pod", &claims.namespace, pod),
            (None, Some(node)) => check("Node", "", node),
            (None, None) => Ok(()),
        }
    }

    /// What `/.well-known/openid-configuration` says, where tokens are issued.
    pub(crate) fn openid_configuration(&self, server: &str) -> Option<Value> {
        self.token_issuer()?;
        Some(json!({
            "issuer": ISSUER,
            "jwks_uri": format!("https://{server}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [jwt::ALGORITHM],
        }))
    }
}

/// The user that a token's account is.
fn identity(claims: &Claims) -> Identity {
    let (namespace, account) = (&claims.namespace, &claims.account);
    let of_namespace = format!("{SERVICE_ACCOUNTS}:{namespace}");
    let groups = [SERVICE_ACCOUNTS, of_namespace.as_str(), AUTHENTICATED];
    let mut who = Identity::authenticated(&claims.subject(), &groups);
    who.uid.clone_from(&account.uid);
    let mut add = |name: &str, value: String| {
        who.extra.insert(format!("authentication.kubernetes.io/{name}"), vec![value]);
    };
    add("credential-id", format!("JTI={}", claims.id));
    for (kind, reference) in [("pod", &claims.pod), ("node", &claims.node)] {
        if let Some(reference) = reference {
            add(&format!("{kind}-name"), reference.name.clone());
            add(&format!("{kind}-uid"), reference.uid.clone());
        }
    }
    who
}

fn resource_of(kind: &str) -> &'static Resource {
    resource::by_kind("", kind).expect("in the table of resources")
}

#[cfg(test)]
mod tests;
