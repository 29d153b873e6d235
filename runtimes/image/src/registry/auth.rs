//! What a registry wants before it answers, and how a credential becomes the
//! value of `Authorization`.
//!
//! Source: <https://distribution.github.io/distribution/spec/auth/token/>.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Client, StatusCode};

use super::{Endpoint, Subject, check, read_all};
use crate::ImageError;
use crate::keyring::{Credential, basic_header};

/// Longest answer of a token server, in bytes.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// Who asks, where the server wants to know.
const CLIENT_ID: &str = "pinnace";

/// What a registry wants before it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: String },
}

impl Challenge {
    /// Reads `Bearer realm="…",service="…",scope="…"`.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let header = header.trim();
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, String::new());
        let mut rest = rest;
        while let Some((name, after)) = rest.split_once('=') {
            let after = after.trim_start();
            let (value, next) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            match name.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => value.clone_into(&mut service),
                _ => {}
            }
            rest = next.trim_start_matches([',', ' ']);
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

/// Makes the value of `Authorization` that a challenge asks for.
pub(super) async fn authorization(
    subject: Subject<'_>,
    at: &Endpoint,
    client: &Client,
    challenge: &Challenge,
    actions: &str,
    credential: Option<&Credential>,
) -> Result<String, ImageError> {
    let (realm, service) = match (challenge, credential) {
        (Challenge::Basic, Some(Credential::Basic { user, password })) => {
            return Ok(basic_header(user, password));
        }
        (_, Some(Credential::Bearer(token))) => return Ok(format!("Bearer {token}")),
        (Challenge::Basic, _) => return Err(subject.unauthorized()),
        (Challenge::Bearer { realm, service }, _) => (realm, service),
    };
    let url = reqwest::Url::parse(realm)
        .map_err(|_| subject.malformed("the token server", format!("{realm:?} is no URL")))?;
    if url.scheme() != "https" && !at.http {
        // A password would travel in the clear.
        return Err(subject.malformed("the token server", format!("{realm:?} is not https")));
    }
    let scope = format!("repository:{}:{actions}", at.repository(subject.image));
    let mut url = url;
    let request = if let Some(Credential::Refresh(token)) = credential {
        let body = form(&[
            ("grant_type", "refresh_token"),
            ("service", service),
            ("client_id", CLIENT_ID),
            ("scope", &scope),
            ("refresh_token", token),
        ]);
        client.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
    } else {
        url.query_pairs_mut().append_pair("service", service).append_pair("scope", &scope);
        let mut request = client.get(url);
        if let Some(Credential::Basic { user, password }) = credential {
            request = request.header(AUTHORIZATION, basic_header(user, password));
        }
        request
    };
    let response = request.send().await.map_err(|error| subject.network(at, &error))?;
    if matches!(
        response.status(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
    ) {
        return Err(subject.unauthorized());
    }
    let response = check(subject, at, response)?;
    let bytes = read_all(subject, at, response, TOKEN_BYTES_MAX, "the token").await?;
    let json: serde_json::Value = serde_json::from_slice(&bytes)
        .map_err(|error| subject.malformed("the token", error.to_string()))?;
    let token = json["token"].as_str().or_else(|| json["access_token"].as_str());
    let token = token.ok_or_else(|| subject.malformed("the token", "there is none"))?;
    Ok(format!("Bearer {token}"))
}

/// A form's body.
fn form(pairs: &[(&str, &str)]) -> String {
    let mut url = reqwest::Url::parse("http://form").expect("a URL");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let check = |header: &str, expected: Option<(&str, &str)>| {
            let expected = expected.map(|(realm, service)| Challenge::Bearer {
                realm: realm.into(),
                service: service.into(),
            });
            assert_eq!(Challenge::parse(header), expected, "{header}");
        };
        check(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b:pull,push""#,
            Some(("https://auth.docker.io/token", "registry.docker.io")),
        );
        check(r#"bearer service=x, realm="https://a/b""#, Some(("https://a/b", "x")));
        check(r#"Bearer realm="open"#, None);
        check("Bearer", None);
        check("Negotiate abc", None);
        assert_eq!(Challenge::parse(r#"Basic realm="x""#), Some(Challenge::Basic));
    }

    #[test]
    fn forms_escape_what_they_hold() {
        assert_eq!(form(&[("a", "x y&z"), ("b", "é")]), "a=x+y%26z&b=%C3%A9");
    }
}
