//! Who we are to which registry: `~/.docker/config.json`, and Secrets of the
//! types `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`.
//!
//! | key in the file | matches |
//! |---|---|
//! | `registry.example.com` | every image there |
//! | `registry.example.com:5000/team` | images below `team/` |
//! | `*.example.com` | one label for the star |
//! | `https://index.docker.io/v1/`, `docker.io` | Docker's registry |
//!
//! All that match are tried, the longest key first, as the kubelet does.
//!
//! Source: <https://kubernetes.io/docs/concepts/containers/images/#config-json>.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::Digest;

/// Longest file of credentials, in bytes: what a Secret may hold.
pub const KEYRING_BYTES_MAX: usize = 1 << 20;
/// Most keys of one file.
const KEYS_MAX: usize = 1024;

/// How one registry is to know us.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User and password.
    Basic {
        /// User.
        user: String,
        /// Password.
        password: String,
    },
    /// A token that is exchanged for one for each request (`identitytoken`).
    Refresh(String),
    /// A token that is sent as it is (`registrytoken`).
    Bearer(String),
}

// Passwords are not for logs.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { user, .. } => f.debug_struct("Basic").field("user", user).finish(),
            Self::Refresh(_) => f.write_str("Refresh"),
            Self::Bearer(_) => f.write_str("Bearer"),
        }
    }
}

impl Credential {
    /// Tells credentials apart without showing them.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        let parts = match self {
            Self::Basic { user, password } => ["basic", user, password],
            Self::Refresh(token) => ["refresh", token, ""],
            Self::Bearer(token) => ["bearer", token, ""],
        };
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        Digest::of(&bytes)
    }
}

/// The text is no file of credentials. Says nothing of what it holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadKeyring(&'static str);

/// Credentials by the registries they are for.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    /// The longest key first; of one key, the first given first.
    entries: Vec<(Key, Credential)>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|(key, _)| key)).finish()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    host: String,
    /// Components of the path that images have to be below.
    path: Vec<String>,
}

#[derive(Deserialize)]
struct RawFile {
    auths: Option<BTreeMap<String, RawEntry>>,
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl Keyring {
    /// Reads `{"auths": {…}}`.
    ///
    /// # Errors
    /// It is something else, or larger than any Secret.
    pub fn from_docker_config(json: &[u8]) -> Result<Self, BadKeyring> {
        check_size(json)?;
        let file: RawFile = serde_json::from_slice(json)
            .map_err(|_| BadKeyring("it is not JSON of the form {\"auths\": {…}}"))?;
        Self::of(file.auths.unwrap_or_default())
    }

    /// Reads the older form: the inner map alone.
    ///
    /// # Errors
    /// It is something else, or larger than any Secret.
    pub fn from_dockercfg(json: &[u8]) -> Result<Self, BadKeyring> {
        check_size(json)?;
        let entries = serde_json::from_slice(json)
            .map_err(|_| BadKeyring("it is not JSON of the form {\"REGISTRY\": {\"auth\": …}}"))?;
        Self::of(entries)
    }

    /// The credentials in a Secret's data, whichever of the two types it has;
    /// empty where it has neither key.
    ///
    /// # Errors
    /// Its content is not what its key says.
    pub fn from_secret<'a>(
        data: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, BadKeyring> {
        let mut keyring = Self::default();
        for (key, bytes) in data {
            match key {
                ".dockerconfigjson" => keyring.add(Self::from_docker_config(bytes)?),
                ".dockercfg" => keyring.add(Self::from_dockercfg(bytes)?),
                _ => {}
            }
        }
        Ok(keyring)
    }

    /// One credential for one registry (`host` or `host:port`).
    #[must_use]
    pub fn single(registry: &str, credential: Credential) -> Self {
        Self { entries: vec![(Key::parse(registry), credential)] }
    }

    fn of(entries: BTreeMap<String, RawEntry>) -> Result<Self, BadKeyring> {
        if entries.len() > KEYS_MAX {
            return Err(BadKeyring("it holds more than 1024 registries"));
        }
        let mut keyring = Self::default();
        for (key, entry) in entries {
            if let Some(credential) = entry.credential()? {
                keyring.entries.push((Key::parse(&key), credential));
            }
        }
        keyring.sort();
        Ok(keyring)
    }

    /// Adds what another has, after its own of the same key.
    pub fn add(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.sort();
    }

    fn sort(&mut self) {
        let specific = |key: &Key| (key.path.len(), !key.host.contains('*'), key.host.len());
        self.entries.sort_by_key(|(key, _)| std::cmp::Reverse(specific(key)));
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What fits an image (`repository`, may be empty) of a registry, best first,
    /// each once.
    #[must_use]
    pub fn find(&self, registry: &str, repository: &str) -> Vec<&Credential> {
        let mut found: Vec<&Credential> = Vec::new();
        for (key, credential) in &self.entries {
            if key.matches(registry, repository) && !found.contains(&credential) {
                found.push(credential);
            }
        }
        found
    }
}

fn check_size(json: &[u8]) -> Result<(), BadKeyring> {
    if json.len() > KEYRING_BYTES_MAX {
        return Err(BadKeyring("it is larger than 1 MiB"));
    }
    Ok(())
}

impl RawEntry {
    fn credential(self) -> Result<Option<Credential>, BadKeyring> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::Bearer(self.registrytoken)));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::Refresh(self.identitytoken)));
        }
        if !self.auth.is_empty() {
            let bad = BadKeyring("an \"auth\" in it is not base64 of user:password");
            // Some writers leave the padding out, or end with a line feed.
            let text = self.auth.trim().trim_end_matches('=');
            let bytes = base64::engine::general_purpose::STANDARD_NO_PAD
                .decode(text)
                .map_err(|_| bad.clone())?;
            let text = String::from_utf8(bytes).map_err(|_| bad.clone())?;
            let (user, password) = text.split_once(':').ok_or(bad)?;
            // `docker login` pads the password with zero bytes.
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Some(Credential::Basic { user: user.to_owned(), password }));
        }
        let none = self.username.is_empty() && self.password.is_empty();
        let basic = Credential::Basic { user: self.username, password: self.password };
        Ok((!none).then_some(basic))
    }
}

impl Key {
    fn parse(text: &str) -> Self {
        let text = text.trim();
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let (host, path) =
            rest.unwrap_or(text).split_once('/').unwrap_or_else(|| (rest.unwrap_or(text), ""));
        // The version of the protocol is no part of an image's name.
        let path = path.strip_prefix("v1").or_else(|| path.strip_prefix("v2")).unwrap_or(path);
        let path = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned);
        Self { host: docker_name(host).to_ascii_lowercase(), path: path.collect() }
    }

    fn matches(&self, registry: &str, repository: &str) -> bool {
        let mut parts = repository.split('/');
        is_host_like(&self.host, &docker_name(registry).to_ascii_lowercase())
            && self.path.iter().all(|part| parts.next() == Some(part))
    }
}

/// Docker's registry has several names.
fn docker_name(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
        host => host,
    }
}

/// Whether a host is what a pattern names; a star stands for anything in one label.
pub(crate) fn is_host_like(pattern: &str, host: &str) -> bool {
    let split = |text: &str| match text.rsplit_once(':') {
        Some((name, port)) => (name.to_owned(), Some(port.to_owned())),
        None => (text.to_owned(), None),
    };
    let ((pattern, pattern_port), (name, port)) = (split(pattern), split(host));
    let (wanted, given) =
        (pattern.split('.').collect::<Vec<_>>(), name.split('.').collect::<Vec<_>>());
    pattern_port == port
        && wanted.len() == given.len()
        && wanted.iter().zip(given).all(|(wanted, given)| is_label_like(wanted, given))
}

fn is_label_like(pattern: &str, label: &str) -> bool {
    let (pattern, label) = (pattern.as_bytes(), label.as_bytes());
    let (mut p, mut l) = (0, 0);
    // Where the last star was, and what it has swallowed up to.
    let mut star: Option<(usize, usize)> = None;
    while l < label.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, l));
            p += 1;
        } else if pattern.get(p) == Some(&label[l]) {
            (p, l) = (p + 1, l + 1);
        } else if let Some((at, swallowed)) = star {
            star = Some((at, swallowed + 1));
            (p, l) = (at + 1, swallowed + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// `Basic …`, the value of a header.
pub(crate) fn basic_header(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn users(keyring: &Keyring, registry: &str, repository: &str) -> Vec<String> {
        let found = keyring.find(registry, repository).into_iter();
        found
            .map(|credential| match credential {
                Credential::Basic { user, .. } => user.clone(),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn what_fits_best_is_tried_first() {
        let auth = |user: &str| STANDARD.encode(format!("{user}:secret"));
        let json = serde_json::json!({ "auths": {
            "https://index.docker.io/v1/": { "auth": auth("docker") },
            "a.example.com": { "auth": auth("all") },
            "a.example.com/team": { "username": "team", "password": "p" },
            "*.example.com": { "auth": auth("star") },
            "a.example.com:5000": { "auth": auth("port") },
            "empty.example.com": {},
            "token.io": { "identitytoken": "t", "auth": auth("x") },
            "raw.io": { "registrytoken": "t" },
        }});
        let keyring = Keyring::from_docker_config(json.to_string().as_bytes()).unwrap();
        let check = |registry: &str, repository: &str, expected: &[&str]| {
            assert_eq!(users(&keyring, registry, repository), expected, "{registry}/{repository}");
        };
        check("docker.io", "library/nginx", &["docker"]);
        check("a.example.com", "team/app", &["team", "all", "star"]);
        check("a.example.com", "teams/app", &["all", "star"]);
        check("a.example.com:5000", "x", &["port"]);
        check("b.example.com", "x", &["star"]);
        check("b.c.example.com", "x", &[]);
        check("empty.example.com", "x", &["star"]);
        check("token.io", "x", &["Refresh"]);
        check("raw.io", "x", &["Bearer"]);
        check("example.com", "x", &[]);
    }

    #[test]
    fn both_types_of_secrets_are_read() {
        let old = br#"{"r.io":{"auth":"dTpw"}}"#;
        let new = br#"{"auths":{"r.io":{"auth":"djpxOnI="}}}"#;
        let data: [(&str, &[u8]); 3] =
            [(".dockercfg", old), (".dockerconfigjson", new), ("other", b"x")];
        let keyring = Keyring::from_secret(data).unwrap();
        assert_eq!(users(&keyring, "r.io", "a"), ["u", "v"]);
        let basic = |user: &str, password: &str| Credential::Basic {
            user: user.into(),
            password: password.into(),
        };
        assert_eq!(keyring.find("r.io", "a"), [&basic("u", "p"), &basic("v", "q:r")]);
        assert_ne!(basic("u", "p").fingerprint(), basic("up", "").fingerprint());
        assert!(Keyring::from_secret([("x", &b"y"[..])]).unwrap().is_empty());
    }

    #[test]
    fn stars_stand_for_parts_of_one_label() {
        for (pattern, host, expected) in [
            ("*", "a", true),
            ("*.io", "a.io", true),
            ("a*c.io", "abbc.io", true),
            ("a*b*c.io", "aXbYbZc.io", true),
            ("a*c.io", "abbd.io", false),
            ("*.io", "a.b.io", false),
            ("*:5000", "a:5000", true),
            ("*", "a:5000", false),
            (&"*a".repeat(30), &"a".repeat(63), true),
        ] {
            assert_eq!(is_host_like(pattern, host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for bad in ["", "[]", "{\"auths\":7}", "{\"auths\":{\"a\":{\"auth\":\"hunter2!\"}}}"] {
            let error = Keyring::from_docker_config(bad.as_bytes()).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        Keyring::from_docker_config(&vec![b' '; KEYRING_BYTES_MAX + 1]).unwrap_err();
        let keyring = Keyring::from_dockercfg(br#"{"r.io":{"auth":"dTpodW50ZXIy"}}"#).unwrap();
        let shown = format!("{keyring:?} {:?}", keyring.find("r.io", ""));
        assert!(shown.contains("r.io") && !shown.contains("hunter2"), "{shown}");
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Keyring::from_docker_config(&bytes);
            let _ = Keyring::from_dockercfg(&bytes);
        }

        #[test]
        fn patterns_end(pattern in "[a*.:]{0,20}", host in "[a.:]{0,20}") {
            let _ = is_host_like(&pattern, &host);
        }
    }
}
