//! The registry's HTTP interface, as far as images need it: manifests and blobs,
//! tokens, and pushing.
//!
//! A client of our own, on reqwest, because the bodies must be bounded and a
//! broken download must go on where it stopped.
//!
//! ```text
//! an image of HOST ─► mirrors of HOST ─► HOST itself ─► the master, for a node
//!                     (what fails here is asked of the next)
//! ```
//!
//! Images of [`MASTER_REGISTRY`] are the master's own, and come from an
//! [`Origin`] or from the address that a [`HostRule`] gives.
//!
//! Source: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>.

mod auth;
mod origin;
mod upload;

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, RANGE, WWW_AUTHENTICATE};
use reqwest::{Certificate, Client, Response, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;

pub use origin::{Begun, BoxFuture, Origin, Pieces};
pub use upload::{Content, Upload};

use crate::digest::Hasher;
use crate::keyring::{Credential, Keyring, is_host_like};
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::{Digest, ImageError, Reference};
use auth::Challenge;

/// The name under which manifests say that an image is in the master's own registry.
pub const MASTER_REGISTRY: &str = "pinnace.local";

/// Longest manifest or index, in bytes: what registries accept.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an idle connection is kept for the next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const REDIRECTS_MAX: usize = 5;

/// How long a registry that could not be reached is passed over, where there is
/// another way.
const DOWN_FOR: Duration = Duration::from_secs(60);

/// How registries are spoken to.
#[derive(Clone, Debug, Default)]
pub struct RegistryConfig {
    /// Registries (`host` or `host:port`) without TLS.
    pub insecure_http: Vec<String>,
    /// Certificates of authorities trusted besides the system's, in PEM.
    pub ca_pem: Vec<Vec<u8>>,
    /// What is special about single registries; the most exact name counts.
    pub hosts: Vec<HostRule>,
    /// Who we are where a pull brings no credentials of its own.
    pub keyring: Keyring,
}

/// What is special about a registry.
#[derive(Clone, Debug, Default)]
pub struct HostRule {
    /// `host[:port]`, `*.example.com`, or `*` for every registry without another rule.
    pub host: String,
    /// Where it is, as `host[:port]`, if not where its name says.
    pub address: Option<String>,
    /// Who is asked before it.
    pub mirrors: Vec<Mirror>,
    /// Whether it speaks without TLS.
    pub http: bool,
    /// Certificates of its authorities besides all others, in PEM.
    pub ca_pem: Vec<u8>,
    /// Whether a node asks the master for its images.
    pub through_master: ThroughMaster,
}

/// A copy of a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    /// `host` or `host:port`.
    pub host: String,
    /// What precedes the names of images there; empty for nothing.
    pub path: String,
    /// Whether it speaks without TLS.
    pub http: bool,
}

/// Whether a node asks the master for the images of a registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThroughMaster {
    /// Once the registry cannot be reached.
    #[default]
    Fallback,
    /// At once, and nobody else.
    Always,
    /// Never.
    Never,
}

/// A client of any number of registries. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
    keyring: Arc<Keyring>,
}

type Clients = HashMap<(bool, Option<usize>), Result<Client, String>>;
type Tokens = HashMap<(String, String, Option<Digest>), String>;

struct Shared {
    config: RegistryConfig,
    /// By whether they speak TLS, and the rule with their authorities. Reading the
    /// system's certificates costs memory, so each is made when first needed.
    clients: Mutex<Clients>,
    /// `Authorization` by host, scope and credential.
    tokens: Mutex<Tokens>,
    /// Since when hosts do not answer.
    down: Mutex<HashMap<String, Instant>>,
    master: OnceLock<Arc<dyn Origin>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// A manifest or index, as the registry sent it.
#[derive(Clone, Debug)]
pub(crate) struct RawManifest {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
}

/// Somewhere to ask for an image.
#[derive(Clone, Debug)]
struct Endpoint {
    http: bool,
    host: String,
    /// What precedes the repository.
    path: String,
    /// The name its credentials are kept under.
    name: String,
    /// Whether it is a copy of the registry that is meant.
    is_mirror: bool,
    rule: Option<usize>,
}

impl Endpoint {
    fn repository(&self, image: &Reference) -> String {
        match self.path.as_str() {
            "" => image.repository.clone(),
            path => format!("{path}/{}", image.repository),
        }
    }

    fn url(&self, image: &Reference, rest: &str) -> String {
        let scheme = if self.http { "http" } else { "https" };
        format!("{scheme}://{}/v2/{}/{rest}", self.host, self.repository(image))
    }
}

enum Route {
    Http(Endpoint),
    Master(Arc<dyn Origin>),
}

/// What a request is about, for its error.
#[derive(Clone, Copy)]
struct Subject<'a> {
    image: &'a Reference,
}

impl Subject<'_> {
    fn unreachable(&self, registry: &str, why: impl Into<String>) -> ImageError {
        ImageError::Unreachable {
            image: self.image.to_string(),
            registry: registry.to_owned(),
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

    fn network(&self, at: &Endpoint, error: &reqwest::Error) -> ImageError {
        // The useful part ("connection refused") is the innermost.
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            why = cause.to_string();
            source = cause.source();
        }
        let why = if error.is_timeout() { "it does not answer in time".into() } else { why };
        self.unreachable(&at.name, why)
    }
}

impl Registry {
    /// A client with these settings. Connects to nothing yet.
    #[must_use]
    pub fn new(config: RegistryConfig) -> Self {
        // Nobody is to choose another provider behind our back.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let keyring = Arc::new(config.keyring.clone());
        let shared = Shared {
            config,
            clients: Mutex::default(),
            tokens: Mutex::default(),
            down: Mutex::default(),
            master: OnceLock::new(),
        };
        Self { shared: Arc::new(shared), keyring }
    }

    /// Says who has the images of [`MASTER_REGISTRY`], and for a node those that it
    /// cannot reach itself. Only the first call counts.
    pub fn set_master(&self, master: Arc<dyn Origin>) {
        let _ = self.shared.master.set(master);
    }

    /// The same client, which also shows these credentials; they go first.
    #[must_use]
    pub fn with_keyring(&self, keyring: Keyring) -> Self {
        let mut all = keyring;
        all.add(self.shared.config.keyring.clone());
        Self { shared: Arc::clone(&self.shared), keyring: Arc::new(all) }
    }

    /// Fingerprints of the credentials that are shown for an image's registry.
    #[must_use]
    pub fn credentials_for(&self, image: &Reference) -> Vec<Digest> {
        let found = self.keyring.find(&image.registry, &image.repository);
        found.into_iter().map(Credential::fingerprint).collect()
    }

    fn rule(&self, registry: &str) -> Option<usize> {
        let hosts = &self.shared.config.hosts;
        let exact = hosts.iter().position(|rule| rule.host == registry);
        let like = || hosts.iter().position(|rule| is_host_like(&rule.host, registry));
        exact.or_else(like).or_else(|| hosts.iter().position(|rule| rule.host == "*"))
    }

    fn is_plain(&self, registry: &str) -> bool {
        self.shared.config.insecure_http.iter().any(|host| host == registry)
    }

    /// The registry itself.
    fn endpoint(&self, image: &Reference) -> Endpoint {
        let rule = self.rule(&image.registry);
        let known = rule.map(|rule| &self.shared.config.hosts[rule]);
        let host = match (known.and_then(|rule| rule.address.as_deref()), &*image.registry) {
            (Some(address), _) => address,
            // Docker's registry answers under another name than its images have.
            (None, "docker.io") => "registry-1.docker.io",
            (None, host) => host,
        };
        Endpoint {
            http: known.is_some_and(|rule| rule.http) || self.is_plain(&image.registry),
            host: host.to_owned(),
            path: String::new(),
            name: image.registry.clone(),
            is_mirror: false,
            rule,
        }
    }

    /// Who is asked for an image, in order.
    fn routes(&self, image: &Reference) -> Vec<Route> {
        let direct = self.endpoint(image);
        let rule = direct.rule.map(|rule| &self.shared.config.hosts[rule]);
        let master = self.shared.master.get().map(Arc::clone);
        let through = rule.map_or(ThroughMaster::Fallback, |rule| rule.through_master);
        let is_masters = image.registry == MASTER_REGISTRY;
        if let Some(master) = &master
            && (is_masters || through == ThroughMaster::Always)
        {
            return vec![Route::Master(Arc::clone(master))];
        }
        let mut routes = Vec::new();
        for mirror in rule.into_iter().flat_map(|rule| &rule.mirrors) {
            routes.push(Route::Http(Endpoint {
                http: mirror.http || self.is_plain(&mirror.host),
                host: mirror.host.clone(),
                path: mirror.path.clone(),
                name: mirror.host.clone(),
                is_mirror: true,
                rule: self.rule(&mirror.host).or(direct.rule),
            }));
        }
        routes.push(Route::Http(direct));
        if through == ThroughMaster::Fallback {
            routes.extend(master.map(Route::Master));
        }
        // What does not answer is not waited for again while there is another way.
        let down = self.down();
        let is_up = |route: &Route| match route {
            Route::Http(at) => down.get(&at.host).is_none_or(|since| since.elapsed() > DOWN_FOR),
            Route::Master(_) => true,
        };
        let (mut up, rest): (Vec<_>, Vec<_>) = routes.into_iter().partition(is_up);
        up.extend(rest);
        up
    }

    fn down(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        let mut down = self.shared.down.lock().unwrap_or_else(PoisonError::into_inner);
        down.retain(|_, since| since.elapsed() <= DOWN_FOR);
        down
    }

    fn note(&self, at: &Endpoint, error: Option<&ImageError>) {
        match error {
            Some(ImageError::Unreachable { .. }) => {
                self.down().insert(at.host.clone(), Instant::now());
            }
            _ => {
                self.down().remove(&at.host);
            }
        }
    }

    fn client(&self, at: &Endpoint) -> Result<Client, String> {
        let with_ca = |rule: &usize| !self.shared.config.hosts[*rule].ca_pem.is_empty();
        let rule = at.rule.filter(with_ca).filter(|_| !at.http);
        let mut clients = self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.entry((at.http, rule)).or_insert_with(|| self.new_client(at.http, rule)).clone()
    }

    fn new_client(&self, http: bool, rule: Option<usize>) -> Result<Client, String> {
        let builder = Client::builder()
            .user_agent(concat!("pinnace/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // An idle connection would cost a metered link its keep-alives.
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_keepalive(None)
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
            .referer(false);
        if http {
            // Not even the system's certificates are read for it.
            let client = builder.no_proxy().tls_certs_only([]).build();
            return client.map_err(|error| error.to_string());
        }
        let own = rule.map(|rule| &self.shared.config.hosts[rule].ca_pem);
        let mut certificates = Vec::new();
        for pem in self.shared.config.ca_pem.iter().chain(own) {
            let bundle = Certificate::from_pem_bundle(pem);
            certificates.extend(bundle.map_err(|error| error.to_string())?);
        }
        let client = builder.https_only(true).tls_certs_merge(certificates).build();
        client.map_err(|error| format!("{error}: {:?}", error.source()))
    }

    /// Finds out what a reference names now: the digest of an index or manifest.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn resolve(&self, image: &Reference) -> Result<Digest, ImageError> {
        self.manifest(image).await.map(|raw| raw.digest)
    }

    /// Fetches the bytes of an index or manifest; by its digest if the reference
    /// has one, and verified then.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn manifest_bytes(&self, image: &Reference) -> Result<(Digest, Bytes), ImageError> {
        self.manifest(image).await.map(|raw| (raw.digest, raw.bytes))
    }

    /// Fetches a manifest or index; by its digest if the reference has one.
    pub(crate) async fn manifest(&self, image: &Reference) -> Result<RawManifest, ImageError> {
        let mut failed = None;
        for route in self.routes(image) {
            let bytes = match &route {
                Route::Http(at) => {
                    let result = self.manifest_at(image, at).await;
                    self.note(at, result.as_ref().err());
                    result
                }
                Route::Master(origin) => origin.manifest(image).await,
            };
            let verified = bytes.and_then(|bytes| {
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
            });
            match verified {
                Ok(raw) => return Ok(raw),
                Err(error) => {
                    if keep(&mut failed, error, &route) {
                        break;
                    }
                }
            }
        }
        Err(failed.unwrap_or_else(|| no_route(image)))
    }

    async fn manifest_at(&self, image: &Reference, at: &Endpoint) -> Result<Bytes, ImageError> {
        let subject = Subject { image };
        let name = match (&image.digest, &image.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        };
        let url = at.url(image, &format!("manifests/{name}"));
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
        let response = self
            .send(subject, at, "pull", |client| client.get(&url).header(ACCEPT, accept.as_str()));
        let response = check(subject, at, response.await?)?;
        read_all(subject, at, response, MANIFEST_BYTES_MAX, "the manifest").await
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
        let mut failed = None;
        for route in self.routes(image) {
            let begun = match &route {
                Route::Http(at) => {
                    let result = self.blob_at(image, at, digest, offset, end).await;
                    self.note(at, result.as_ref().err());
                    result
                }
                Route::Master(origin) => {
                    let begun = origin.blob(image, digest, offset).await;
                    begun.map(|(start, pieces)| {
                        (start, BlobStream { image: image.clone(), from: From::Master(pieces) })
                    })
                }
            };
            match begun {
                Ok(begun) => return Ok(begun),
                Err(error) => {
                    if keep(&mut failed, error, &route) {
                        break;
                    }
                }
            }
        }
        Err(failed.unwrap_or_else(|| no_route(image)))
    }

    async fn blob_at(
        &self,
        image: &Reference,
        at: &Endpoint,
        digest: Digest,
        offset: u64,
        end: Option<u64>,
    ) -> Result<(u64, BlobStream), ImageError> {
        let subject = Subject { image };
        let url = at.url(image, &format!("blobs/{digest}"));
        let range = match (offset, end) {
            (0, None) => None,
            (start, None) => Some(format!("bytes={start}-")),
            (start, Some(end)) => Some(format!("bytes={start}-{end}")),
        };
        let response = self.send(subject, at, "pull", |client| match &range {
            Some(range) => client.get(&url).header(RANGE, range),
            None => client.get(&url),
        });
        let response = check(subject, at, response.await?)?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let start = if partial { offset } else { 0 };
        let from = From::Http(Box::new(response), at.clone());
        Ok((start, BlobStream { image: image.clone(), from }))
    }

    /// Begins a blob at a byte, for somebody who passes it on and verifies it.
    /// Says where the answer really begins.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn blob_pieces(
        &self,
        image: &Reference,
        digest: Digest,
        offset: u64,
    ) -> Result<(u64, BlobStream), ImageError> {
        self.blob(image, digest, offset, None).await
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
        let (_, mut stream) = self.blob(image, digest, 0, None).await?;
        let too_large = || ImageError::TooLarge {
            image: image.to_string(),
            what: what.to_owned(),
            limit,
            unit: "bytes",
        };
        if stream.length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await? {
            if (bytes.len() + piece.len()) as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece);
        }
        let actual = Digest::of(&bytes);
        if actual != digest {
            return Err(ImageError::DigestMismatch {
                image: image.to_string(),
                what: what.to_owned(),
                expected: digest,
                actual,
            });
        }
        Ok(bytes.into())
    }

    /// Sends a request, as whoever the registry takes us for.
    async fn send(
        &self,
        subject: Subject<'_>,
        at: &Endpoint,
        actions: &str,
        request: impl Fn(&Client) -> reqwest::RequestBuilder,
    ) -> Result<Response, ImageError> {
        let client = self.client(at).map_err(|why| subject.unreachable(&at.name, why))?;
        let found = self.keyring.find(&at.name, &at.repository(subject.image));
        let credentials: Vec<Option<&Credential>> =
            if found.is_empty() { vec![None] } else { found.into_iter().map(Some).collect() };
        let mut refused = None;
        for credential in credentials {
            match self.send_as(subject, at, &client, actions, credential, &request).await {
                Ok(response)
                    if matches!(
                        response.status(),
                        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
                    ) =>
                {
                    refused = Some(Ok(response));
                }
                Err(error @ ImageError::Unauthorized { .. }) => refused = Some(Err(error)),
                answer => return answer,
            }
        }
        refused.unwrap_or_else(|| Err(subject.unauthorized()))
    }

    async fn send_as(
        &self,
        subject: Subject<'_>,
        at: &Endpoint,
        client: &Client,
        actions: &str,
        credential: Option<&Credential>,
        request: &impl Fn(&Client) -> reqwest::RequestBuilder,
    ) -> Result<Response, ImageError> {
        let scope = format!("{}:{actions}", at.repository(subject.image));
        let key = (at.host.clone(), scope, credential.map(Credential::fingerprint));
        let mut token = self.tokens().get(&key).cloned();
        let mut fresh = false;
        loop {
            let mut built = request(client);
            if let Some(token) = &token {
                built = built.header(AUTHORIZATION, token);
            }
            let response = built.send().await.map_err(|error| subject.network(at, &error))?;
            if response.status() != StatusCode::UNAUTHORIZED || fresh {
                return Ok(response);
            }
            let challenges = response.headers().get_all(WWW_AUTHENTICATE);
            let challenge =
                challenges.iter().find_map(|value| Challenge::parse(value.to_str().ok()?));
            let Some(challenge) = challenge else { return Err(subject.unauthorized()) };
            let made =
                auth::authorization(subject, at, client, &challenge, actions, credential).await?;
            self.tokens().insert(key.clone(), made.clone());
            token = Some(made);
            fresh = true;
        }
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Tokens> {
        let mut tokens = self.shared.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() > 1000 {
            tokens.clear();
        }
        tokens
    }
}

/// Keeps the error that says most; whether there is no point in asking on: what
/// the registry itself refuses, nobody else is asked for.
fn keep(failed: &mut Option<ImageError>, error: ImageError, route: &Route) -> bool {
    let is_down = |error: &ImageError| matches!(error, ImageError::Unreachable { .. });
    let is_registrys = matches!(route, Route::Http(at) if !at.is_mirror);
    let is_final = is_registrys && !is_down(&error);
    let says_more = match failed {
        None => true,
        Some(old) => is_registrys || is_down(old) && !is_down(&error),
    };
    if says_more {
        *failed = Some(error);
    }
    is_final
}

fn no_route(image: &Reference) -> ImageError {
    let why = if image.registry == MASTER_REGISTRY {
        "this program does not know the master"
    } else {
        "nobody is to be asked for it"
    };
    Subject { image }.unreachable(&image.registry, why)
}

/// A blob on its way.
pub struct BlobStream {
    image: Reference,
    from: From,
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream").field("image", &self.image).finish_non_exhaustive()
    }
}

enum From {
    Http(Box<Response>, Endpoint),
    Master(Box<dyn Pieces>),
}

impl BlobStream {
    /// How much is still to come, where that was said.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match &self.from {
            From::Http(response, _) => response.content_length(),
            From::Master(_) => None,
        }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        let subject = Subject { image: &self.image };
        match &mut self.from {
            From::Http(response, at) => {
                response.chunk().await.map_err(|error| subject.network(at, &error))
            }
            From::Master(pieces) => {
                let piece = pieces.next().await;
                piece.map_err(|error| subject.unreachable("of the master", error.to_string()))
            }
        }
    }
}

/// Reads a bounded body.
async fn read_all(
    subject: Subject<'_>,
    at: &Endpoint,
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
    while let Some(chunk) = response.chunk().await.map_err(|error| subject.network(at, &error))? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// Turns a status into an error.
fn check(subject: Subject<'_>, at: &Endpoint, response: Response) -> Result<Response, ImageError> {
    let status = response.status();
    match status {
        _ if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => Err(ImageError::NotFound { image: subject.image.to_string() }),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(subject.unauthorized()),
        StatusCode::TOO_MANY_REQUESTS => {
            let why = "it has had too many requests from here; try again later";
            Err(subject.unreachable(&at.name, why))
        }
        _ => Err(subject.unreachable(&at.name, format!("it answers {status}"))),
    }
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
mod tests;
