//! The master's own registry: who may use it and how they say who they are, how
//! the master itself reads from it, and when it is tidied.
//!
//! | path | what |
//! | --- | --- |
//! | `/v2/…` | the distribution protocol, for the administrators (`authorize_path`) |
//! | `/pinnace/v1/registry/token?seconds=N` | a password for it, for whoever asks |
//!
//! A password is a token: whose it is and until when, signed by a key of this
//! cluster (HMAC with SHA-256, `pki/registry.key`). It is good for the registry
//! alone, names its owner as the API knows them, and cannot be taken back before
//! its time but by replacing the key. The user's name beside it does not matter.
//! So a client that knows nothing but passwords (docker, skopeo, oras) is the
//! same user as with its certificate.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{Api, BoxFuture, Identity, Mount, MountBody};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use image::registry::{Origin, Pieces};
use image::{Digest, ImageError, Reference};
use registry::{Code, Files, Name, Protocol, RegistryError};
use ring::hmac;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock;
use crate::pki::{random, write_private};

/// What a password begins with.
const TOKEN_PREFIX: &str = "prt1.";
/// The key's file, in the folder of keys.
const KEY_FILE: &str = "registry.key";
/// How long a password is good where nothing else is asked for.
const LIFE_DEFAULT_S: u64 = 12 * 3600;
/// How long one is good at most: a year.
const LIFE_MAX_S: u64 = 366 * 24 * 3600;
/// Longest password, in bytes.
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// How often the registry is tidied.
const COLLECT_EVERY: Duration = Duration::from_secs(600);

/// Makes and knows passwords.
#[derive(Clone)]
pub(crate) struct Passwords {
    key: hmac::Key,
}

impl Passwords {
    /// Reads the key, or makes it.
    pub(crate) fn open(pki: &Path) -> io::Result<Self> {
        let path = pki.join(KEY_FILE);
        let key = match std::fs::read(&path) {
            Ok(key) if key.len() == 32 => key,
            Ok(_) => {
                let message = format!("{}: it is damaged; remove it", path.display());
                return Err(io::Error::other(message));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key: [u8; 32] = random();
                write_private(&path, &key).map_err(io::Error::other)?;
                key.to_vec()
            }
            Err(error) => return Err(error),
        };
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key) })
    }

    fn make(&self, who: &Identity, expires_s: u64) -> String {
        let payload = json!({"u": who.user, "g": who.groups, "e": expires_s}).to_string();
        let payload = URL_SAFE_NO_PAD.encode(payload);
        let signature = hmac::sign(&self.key, payload.as_bytes());
        format!("{TOKEN_PREFIX}{payload}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn read(&self, text: &str, now_s: u64) -> Option<Identity> {
        let rest = text.strip_prefix(TOKEN_PREFIX).filter(|_| text.len() <= TOKEN_BYTES_MAX)?;
        let (payload, signature) = rest.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&self.key, payload.as_bytes(), &signature).ok()?;
        let payload: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        if payload["e"].as_u64()? <= now_s {
            return None;
        }
        let groups: Option<Vec<&str>> =
            payload["g"].as_array()?.iter().map(Value::as_str).collect();
        Some(Identity::authenticated(payload["u"].as_str()?, &groups?))
    }
}

fn now_s() -> u64 {
    u64::try_from(clock::timestamp().as_second()).unwrap_or(0)
}

/// `/v2/…`
pub(crate) struct V2 {
    protocol: Protocol,
    passwords: Passwords,
}

impl V2 {
    pub(crate) fn new(files: &Arc<Files>, passwords: Passwords) -> Arc<Self> {
        Arc::new(Self { protocol: Protocol::new(Arc::clone(files)), passwords })
    }
}

impl Mount for V2 {
    fn prefix(&self) -> &'static str {
        "/v2"
    }

    fn password(&self, _user: &str, password: &str) -> Option<Identity> {
        self.passwords.read(password, now_s())
    }

    fn serve<'a>(
        &'a self,
        who: &'a Identity,
        request: Request<MountBody>,
    ) -> BoxFuture<'a, Response<MountBody>> {
        Box::pin(async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let answer = self.protocol.handle(request).await;
            let is_change =
                matches!(method, Method::PUT | Method::DELETE) && path.contains("/manifests/");
            if is_change && answer.status().is_success() {
                info!(user = who.user, %method, path, "registry changed");
            }
            answer
        })
    }

    fn refuse(&self, who: &Identity) -> Response<MountBody> {
        refusal(who)
    }
}

fn refusal(who: &Identity) -> Response<MountBody> {
    let error = if who.is_anonymous() {
        let message = "sign in: `pinnace image login` makes a password";
        RegistryError::new(Code::Unauthorized, message)
    } else {
        RegistryError::new(Code::Denied, format!("user {:?} may not do that here", who.user))
    };
    registry::failure(&error)
}

/// `/pinnace/v1/registry/token`
pub(crate) struct Tokens {
    passwords: Passwords,
}

impl Tokens {
    pub(crate) fn new(passwords: Passwords) -> Arc<Self> {
        Arc::new(Self { passwords })
    }
}

impl Mount for Tokens {
    fn prefix(&self) -> &'static str {
        "/pinnace/v1/registry/token"
    }

    // A password makes no other password: what is lent for an hour stays so.
    fn password(&self, _user: &str, _password: &str) -> Option<Identity> {
        None
    }

    fn serve<'a>(
        &'a self,
        who: &'a Identity,
        request: Request<MountBody>,
    ) -> BoxFuture<'a, Response<MountBody>> {
        Box::pin(async move {
            if request.method() != Method::POST {
                return text(StatusCode::METHOD_NOT_ALLOWED, &json!({"message": "use POST"}));
            }
            let seconds = request.uri().query().and_then(|query| query.strip_prefix("seconds="));
            let seconds = seconds.map_or(Ok(LIFE_DEFAULT_S), str::parse);
            let Some(seconds) = seconds.ok().filter(|n| (1..=LIFE_MAX_S).contains(n)) else {
                let message = format!("seconds: use 1 to {LIFE_MAX_S}");
                return text(StatusCode::BAD_REQUEST, &json!({"message": message}));
            };
            let expires_s = now_s() + seconds;
            let password = self.passwords.make(who, expires_s);
            info!(user = who.user, seconds, "password for the registry made");
            let answer = json!({"user": who.user, "password": password, "expires": expires_s});
            text(StatusCode::OK, &answer)
        })
    }

    fn refuse(&self, who: &Identity) -> Response<MountBody> {
        refusal(who)
    }
}

fn text(status: StatusCode, value: &Value) -> Response<MountBody> {
    let bytes = Bytes::from(value.to_string());
    let body: MountBody = Box::pin(futures::stream::once(async { Ok(bytes) }));
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let kind = http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    answer
}

/// The registry's images, for the master itself and for nodes.
#[derive(Debug)]
pub(crate) struct Own(pub(crate) Arc<Files>);

impl Own {
    fn name(image: &Reference) -> Result<Name, ImageError> {
        Name::parse(&image.repository).map_err(|_| not_found(image))
    }
}

fn not_found(image: &Reference) -> ImageError {
    ImageError::NotFound { image: image.to_string() }
}

impl Origin for Own {
    fn manifest<'a>(
        &'a self,
        image: &'a Reference,
    ) -> image::registry::BoxFuture<'a, Result<Bytes, ImageError>> {
        Box::pin(async move {
            let reference = match (&image.digest, &image.tag) {
                (Some(digest), _) => digest.to_string(),
                (None, tag) => tag.clone().unwrap_or_else(|| "latest".to_owned()),
            };
            let found = self.0.manifest(&Self::name(image)?, &reference);
            found.map(|(_, _, bytes)| bytes).map_err(|_| not_found(image))
        })
    }

    fn blob<'a>(
        &'a self,
        image: &'a Reference,
        digest: Digest,
        offset: u64,
    ) -> image::registry::BoxFuture<'a, Result<(u64, Box<dyn Pieces>), ImageError>> {
        Box::pin(async move {
            let blob =
                self.0.open_blob(&Self::name(image)?, digest).map_err(|_| not_found(image))?;
            let file = crate::blobs::FilePieces::open(blob.file, offset.min(blob.size)).await;
            let disk =
                |source| ImageError::Disk { operation: "read", path: "registry".into(), source };
            Ok((offset.min(blob.size), Box::new(file.map_err(disk)?) as Box<dyn Pieces>))
        })
    }
}

/// Tidies the registry now and then, until `shutdown`.
pub(crate) async fn tidy(files: Arc<Files>, api: Api, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(COLLECT_EVERY) => (),
        }
        let Some(in_use) = in_use(&api) else { continue };
        match files.collect(&in_use).await {
            Ok(swept) if swept == registry::Swept::default() => (),
            Ok(swept) => info!(?swept, used_bytes = files.used_bytes(), "registry tidied"),
            Err(error) => warn!(%error, "the registry cannot be tidied"),
        }
    }
}

/// Digests that pods have, by their names or by what their names stood for;
/// `None` where they cannot be listed.
fn in_use(api: &Api) -> Option<BTreeSet<Digest>> {
    let who = Identity::master("pinnace:registry");
    let pods = crate::enrol::resource("Pod");
    let mut pages = api.list_pages(&who, pods, "", &apiserver::ListOptions::default()).ok()?;
    let mut digests = BTreeSet::new();
    while let Some(items) = pages.next_page().ok()? {
        for item in &items {
            let text = String::from_utf8_lossy(&item.object).into_owned();
            // Wherever it stands: in a name, in a record, in a status.
            for at in text.match_indices("sha256:").map(|(at, _)| at) {
                digests
                    .extend(text.get(at..at + 71).and_then(|digest| digest.parse::<Digest>().ok()));
            }
        }
    }
    Some(digests)
}

/// One body into another, for tests.
#[cfg(test)]
async fn read(body: MountBody) -> Vec<u8> {
    use futures::StreamExt;
    body.map(|piece| piece.unwrap().to_vec()).concat().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_its_owner_until_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let passwords = Passwords::open(folder.path()).unwrap();
        let who = Identity::authenticated("anna", &["team"]);
        let tokens = Tokens::new(passwords.clone());
        let ask = async |method: Method, query: &str| {
            let uri = format!("/pinnace/v1/registry/token{query}");
            let body: MountBody = Box::pin(futures::stream::empty());
            let request = Request::builder().method(method).uri(uri).body(body).unwrap();
            let (head, body) = tokens.serve(&who, request).await.into_parts();
            (head.status.as_u16(), serde_json::from_slice::<Value>(&read(body).await).unwrap())
        };
        let (status, answer) = ask(Method::POST, "?seconds=60").await;
        assert_eq!(status, 200);
        let password = answer["password"].as_str().unwrap();
        let expires_s = answer["expires"].as_u64().unwrap();
        // The key outlives the process.
        let again = Passwords::open(folder.path()).unwrap();
        assert_eq!(again.read(password, expires_s - 1), Some(who.clone()));
        assert_eq!(again.read(password, expires_s), None);
        // A changed one, and one of another cluster, are nobody's.
        let payload = json!({"u": "root", "g": ["system:masters"], "e": u64::MAX}).to_string();
        let forged = format!(
            "{TOKEN_PREFIX}{}.{}",
            URL_SAFE_NO_PAD.encode(payload),
            password.rsplit('.').next().unwrap()
        );
        let other = tempfile::tempdir().unwrap();
        let theirs = Passwords::open(other.path()).unwrap().make(&who, u64::MAX);
        for bad in ["", "x", TOKEN_PREFIX, &forged, &theirs, &password[..password.len() - 2]] {
            assert_eq!(again.read(bad, 0), None, "{bad}");
        }
        assert_eq!(ask(Method::GET, "").await.0, 405);
        assert_eq!(ask(Method::POST, "?seconds=0").await.0, 400);
        assert_eq!(ask(Method::POST, "?seconds=99999999999").await.0, 400);
        assert_eq!(ask(Method::POST, "").await.0, 200);
    }
}
