//! The registry's HTTP interface, as far as images need it: manifests and blobs,
//! tokens, and pushing for tests and tools.
//!
//! A client of our own, on reqwest, because the bodies must be bounded and a
//! broken download must go on where it stopped.
//!
//! Source: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE, WWW_AUTHENTICATE};
use reqwest::{Certificate, Client, Method, Response, StatusCode};

use crate::digest::Hasher;
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::{Digest, ImageError, Reference};

/// Longest manifest or index, in bytes: what registries accept.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// Longest answer of a token server, in bytes.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an idle connection is kept for the next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const REDIRECTS_MAX: usize = 5;

/// How registries are spoken to.
#[derive(Clone, Default)]
pub struct RegistryConfig {
    /// Registries (`host` or `host:port`) without TLS.
    pub insecure_http: Vec<String>,
    /// Certificates of authorities trusted besides the system's, in PEM.
    pub ca_pem: Vec<Vec<u8>>,
    /// User and password by registry.
    pub credentials: BTreeMap<String, (String, String)>,
}

// Passwords are not for logs.
impl std::fmt::Debug for RegistryConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryConfig")
            .field("insecure_http", &self.insecure_http)
            .field("n_ca_pem", &self.ca_pem.len())
            .field("credentials_for", &self.credentials.keys())
            .finish()
    }
}

/// A client of any number of registries.
#[derive(Debug)]
pub struct Registry {
    config: RegistryConfig,
    /// Reads the system's certificates, so it is made when first needed.
    secure: OnceLock<Result<Client, String>>,
    plain: OnceLock<Result<Client, String>>,
    /// `Authorization` by registry and scope.
    tokens: Mutex<HashMap<(String, String), String>>,
}

/// A manifest or index, as the registry sent it.
#[derive(Clone, Debug)]
pub(crate) struct RawManifest {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
}

/// What a request is about, for its error.
#[derive(Clone, Copy)]
struct Subject<'a> {
    image: &'a Reference,
}

impl Subject<'_> {
    fn unreachable(&self, why: impl Into<String>) -> ImageError {
        ImageError::Unreachable {
            image: self.image.to_string(),
            registry: self.image.registry.clone(),
            why: why.into(),
        }
    }

    fn unauthorized(&self) -> ImageError {
        ImageError::Unauthorized {
            image: self.image.to_string(),
            registry: self.image.registry.clone(),
        }
    }

    fn malformed(&self, what: &str, why: impl Into<String>) -> ImageError {
        ImageError::Malformed {
            image: self.image.to_string(),
            what: what.to_owned(),
            why: why.into(),
        }
    }

    fn network(&self, error: &reqwest::Error) -> ImageError {
        // The useful part ("connection refused") is the innermost.
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            why = cause.to_string();
            source = cause.source();
        }
        self.unreachable(if error.is_timeout() { "it does not answer in time".into() } else { why })
    }
}

impl Registry {
    /// A client with these settings. Connects to nothing yet.
    #[must_use]
    pub fn new(config: RegistryConfig) -> Self {
        // Nobody is to choose another provider behind our back.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            config,
            secure: OnceLock::new(),
            plain: OnceLock::new(),
            tokens: Mutex::new(HashMap::new()),
        }
    }

    fn is_plain(&self, registry: &str) -> bool {
        self.config.insecure_http.iter().any(|host| host == registry)
    }

    fn client(&self, registry: &str) -> Result<&Client, String> {
        let builder = || {
            Client::builder()
                .user_agent(concat!("pinnace/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                // An idle connection would cost a metered link its keep-alives.
                .pool_idle_timeout(IDLE_TIMEOUT)
                .tcp_keepalive(None)
                .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
                .referer(false)
        };
        let made = if self.is_plain(registry) {
            // Not even the system's certificates are read for it.
            self.plain.get_or_init(|| {
                let client = builder().no_proxy().tls_certs_only([]).build();
                client.map_err(|error| error.to_string())
            })
        } else {
            self.secure.get_or_init(|| {
                let mut certificates = Vec::new();
                for pem in &self.config.ca_pem {
                    let bundle = Certificate::from_pem_bundle(pem);
                    certificates.extend(bundle.map_err(|error| error.to_string())?);
                }
                let client = builder().https_only(true).tls_certs_merge(certificates).build();
                client.map_err(|error| format!("{error}: {:?}", error.source()))
            })
        };
        made.as_ref().map_err(Clone::clone)
    }

    fn url(&self, image: &Reference, rest: &str) -> String {
        let scheme = if self.is_plain(&image.registry) { "http" } else { "https" };
        // Docker's registry answers under another name than its images have.
        let host = match image.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        format!("{scheme}://{host}/v2/{}/{rest}", image.repository)
    }

    /// Fetches a manifest or index; by its digest if the reference has one.
    pub(crate) async fn manifest(&self, image: &Reference) -> Result<RawManifest, ImageError> {
        let subject = Subject { image };
        let name = match (&image.digest, &image.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        };
        let url = self.url(image, &format!("manifests/{name}"));
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
        let response =
            self.send(subject, "pull", |client| client.get(&url).header(ACCEPT, accept.as_str()));
        let response = check(subject, response.await?)?;
        let bytes = read_all(subject, response, MANIFEST_BYTES_MAX, "the manifest").await?;
        let digest = Digest::of(&bytes);
        match image.digest {
            Some(expected) if expected != digest => Err(ImageError::DigestMismatch {
                image: image.to_string(),
                what: "the manifest".into(),
                expected,
                actual: digest,
            }),
            _ => Ok(RawManifest { digest, bytes }),
        }
    }

    /// Begins a blob at a byte. Says where the answer really begins: a registry
    /// may know no ranges and send all of it.
    pub(crate) async fn blob(
        &self,
        image: &Reference,
        digest: Digest,
        offset: u64,
        end: Option<u64>,
    ) -> Result<(u64, BlobStream), ImageError> {
        let subject = Subject { image };
        let url = self.url(image, &format!("blobs/{digest}"));
        let range = match (offset, end) {
            (0, None) => None,
            (start, None) => Some(format!("bytes={start}-")),
            (start, Some(end)) => Some(format!("bytes={start}-{end}")),
        };
        let response = self.send(subject, "pull", |client| match &range {
            Some(range) => client.get(&url).header(RANGE, range),
            None => client.get(&url),
        });
        let response = check(subject, response.await?)?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let start = if partial { offset } else { 0 };
        Ok((start, BlobStream { image: image.clone(), response }))
    }

    /// Fetches a small blob into memory, verified.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn blob_bytes(
        &self,
        image: &Reference,
        digest: Digest,
        limit: u64,
        what: &str,
    ) -> Result<Bytes, ImageError> {
        let (_, stream) = self.blob(image, digest, 0, None).await?;
        let bytes = read_all(Subject { image }, stream.response, limit, what).await?;
        let actual = Digest::of(&bytes);
        if actual != digest {
            return Err(ImageError::DigestMismatch {
                image: image.to_string(),
                what: what.to_owned(),
                expected: digest,
                actual,
            });
        }
        Ok(bytes)
    }

    /// Whether the registry has a blob already.
    pub(crate) async fn has_blob(
        &self,
        image: &Reference,
        digest: Digest,
    ) -> Result<bool, ImageError> {
        let subject = Subject { image };
        let url = self.url(image, &format!("blobs/{digest}"));
        let response = self.send(subject, "pull,push", |client| client.head(&url)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            _ => check(subject, response).map(|_| true),
        }
    }

    /// Uploads a blob in one piece.
    pub(crate) async fn push_blob(
        &self,
        image: &Reference,
        digest: Digest,
        bytes: Bytes,
    ) -> Result<(), ImageError> {
        let subject = Subject { image };
        let url = self.url(image, "blobs/uploads/");
        let begun = self.send(subject, "pull,push", |client| client.post(&url)).await?;
        let begun = check(subject, begun)?;
        let location = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location
            .and_then(|location| begun.url().join(location).ok())
            .ok_or_else(|| subject.malformed("the upload", "the registry names no location"))?;
        let mut location = location;
        location.query_pairs_mut().append_pair("digest", &digest.to_string());
        let response = self.send(subject, "pull,push", |client| {
            client
                .request(Method::PUT, location.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .body(bytes.clone())
        });
        check(subject, response.await?).map(drop)
    }

    /// Uploads a manifest or index under the reference's tag or digest.
    pub(crate) async fn push_manifest(
        &self,
        image: &Reference,
        name: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), ImageError> {
        let subject = Subject { image };
        let url = self.url(image, &format!("manifests/{name}"));
        let response = self.send(subject, "pull,push", |client| {
            client.put(&url).header(CONTENT_TYPE, media_type).body(bytes.clone())
        });
        check(subject, response.await?).map(drop)
    }

    /// Sends a request, with a token if the registry wants one.
    async fn send(
        &self,
        subject: Subject<'_>,
        actions: &str,
        request: impl Fn(&Client) -> reqwest::RequestBuilder,
    ) -> Result<Response, ImageError> {
        let registry = &subject.image.registry;
        let client = self.client(registry).map_err(|why| subject.unreachable(why))?;
        let key = (registry.clone(), format!("{}:{actions}", subject.image.repository));
        let mut token = self.tokens().get(&key).cloned();
        for fresh in [false, true] {
            let mut built = request(client);
            if let Some(token) = &token {
                built = built.header(AUTHORIZATION, token);
            }
            let response = built.send().await.map_err(|error| subject.network(&error))?;
            if response.status() != StatusCode::UNAUTHORIZED || fresh {
                return Ok(response);
            }
            let challenges = response.headers().get_all(WWW_AUTHENTICATE);
            let challenge =
                challenges.iter().find_map(|value| parse_challenge(value.to_str().ok()?));
            let Some(challenge) = challenge else { return Err(subject.unauthorized()) };
            let made = self.token(subject, client, &challenge, actions).await?;
            self.tokens().insert(key.clone(), made.clone());
            token = Some(made);
        }
        Err(subject.unauthorized())
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), String>> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() > 1000 {
            tokens.clear();
        }
        tokens
    }

    /// Makes the value of `Authorization` that a challenge asks for.
    async fn token(
        &self,
        subject: Subject<'_>,
        client: &Client,
        challenge: &Challenge,
        actions: &str,
    ) -> Result<String, ImageError> {
        let image = subject.image;
        let basic = self.config.credentials.get(&image.registry).map(|(user, password)| {
            let pair = format!("{user}:{password}");
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
        });
        let (realm, service) = match challenge {
            Challenge::Basic => return basic.ok_or_else(|| subject.unauthorized()),
            Challenge::Bearer { realm, service } => (realm, service),
        };
        let mut url = reqwest::Url::parse(realm)
            .map_err(|_| subject.malformed("the token server", format!("{realm:?} is no URL")))?;
        if url.scheme() != "https" && !self.is_plain(&image.registry) {
            // A password would travel in the clear.
            return Err(subject.malformed("the token server", format!("{realm:?} is not https")));
        }
        let scope = format!("repository:{}:{actions}", image.repository);
        url.query_pairs_mut().append_pair("service", service).append_pair("scope", &scope);
        let mut request = client.get(url);
        if let Some(basic) = basic {
            request = request.header(AUTHORIZATION, basic);
        }
        let response = request.send().await.map_err(|error| subject.network(&error))?;
        if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(subject.unauthorized());
        }
        let response = check(subject, response)?;
        let bytes = read_all(subject, response, TOKEN_BYTES_MAX, "the token").await?;
        let json: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|error| subject.malformed("the token", error.to_string()))?;
        let token = json["token"].as_str().or_else(|| json["access_token"].as_str());
        let token = token.ok_or_else(|| subject.malformed("the token", "there is none"))?;
        Ok(format!("Bearer {token}"))
    }
}

/// A blob on its way.
pub(crate) struct BlobStream {
    image: Reference,
    response: Response,
}

impl BlobStream {
    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        let subject = Subject { image: &self.image };
        self.response.chunk().await.map_err(|error| subject.network(&error))
    }
}

/// Reads a bounded body.
async fn read_all(
    subject: Subject<'_>,
    mut response: Response,
    limit: u64,
    what: &str,
) -> Result<Bytes, ImageError> {
    let too_large = || ImageError::TooLarge {
        image: subject.image.to_string(),
        what: what.to_owned(),
        limit,
        unit: "bytes",
    };
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| subject.network(&error))? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// Turns a status into an error.
fn check(subject: Subject<'_>, response: Response) -> Result<Response, ImageError> {
    let status = response.status();
    match status {
        _ if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => Err(ImageError::NotFound { image: subject.image.to_string() }),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(subject.unauthorized()),
        StatusCode::TOO_MANY_REQUESTS => {
            Err(subject.unreachable("it has had too many requests from here; try again later"))
        }
        _ => Err(subject.unreachable(format!("it answers {status}"))),
    }
}

/// What a registry wants before it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: String },
}

/// Reads `Bearer realm="…",service="…",scope="…"`.
fn parse_challenge(header: &str) -> Option<Challenge> {
    let header = header.trim();
    let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
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
    Some(Challenge::Bearer { realm: realm?, service })
}

/// Writes what comes, and knows its digest and length.
#[derive(Clone, Default)]
pub(crate) struct Verifier {
    pub(crate) hasher: Hasher,
    pub(crate) length: u64,
}

impl Verifier {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
    }
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
            assert_eq!(parse_challenge(header), expected, "{header}");
        };
        check(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b:pull,push""#,
            Some(("https://auth.docker.io/token", "registry.docker.io")),
        );
        check(r#"bearer service=x, realm="https://a/b""#, Some(("https://a/b", "x")));
        check(r#"Bearer realm="open"#, None);
        check("Bearer", None);
        check("Negotiate abc", None);
        assert_eq!(parse_challenge(r#"Basic realm="x""#), Some(Challenge::Basic));
    }

    #[test]
    fn passwords_are_not_printed() {
        let mut config = RegistryConfig::default();
        config.credentials.insert("a.b".into(), ("user".into(), "hunter2".into()));
        let text = format!("{config:?}");
        assert!(text.contains("a.b") && !text.contains("hunter2"), "{text}");
    }
}
