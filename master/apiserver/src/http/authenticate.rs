//! Who is at the other end: a client certificate or a bearer token.
//!
//! The TLS layer has verified the certificate against the authority it was
//! given; here it is only read: the common name is the user, each organization
//! is a group.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{AUTHENTICATED, Identity, UNAUTHENTICATED};
use crate::status::Status;

/// Knows bearer tokens.
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// Whose token it is; `None` where it is nobody's.
    fn authenticate(&self, token: &str) -> Option<Identity>;
}

/// The user of a verified certificate; `None` where it has no common name.
pub(super) fn certificate_identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?;
    if user.is_empty() {
        return None;
    }
    let groups: Vec<&str> = subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok())
        // Nobody can be both signed in and not.
        .filter(|group| *group != UNAUTHENTICATED && *group != AUTHENTICATED)
        .collect();
    Some(Identity::authenticated(user, &groups))
}

/// Longest bearer token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// The user of a request: of its connection's certificate, else of its token.
pub(super) fn request_identity(
    certificate: Option<&Identity>,
    headers: &HeaderMap,
    tokens: Option<&dyn TokenAuthenticator>,
) -> Result<Identity, Status> {
    if let Some(identity) = certificate {
        return Ok(identity.clone());
    }
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(Identity::anonymous()) };
    let token = header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| token.len() <= TOKEN_BYTES_MAX);
    // Credentials that are wrong are an error, not nobody's.
    token.and_then(|token| tokens?.authenticate(token)).ok_or_else(Status::unauthorized)
}
