//! The file that says how registries are reached, the same for master and agent
//! (`--registries FILE`), in TOML.
//!
//! ```toml
//! # Credentials of this machine, as `docker login` writes them.
//! auth_file = "/etc/pinnace/registry-auth.json"
//!
//! [[registry]]
//! host = "docker.io"            # or "*.example.com", or "*" for every other
//! mirrors = ["https://mirror.site:5000", "http://10.0.0.2:5000/docker-hub"]
//!
//! [[registry]]
//! host = "registry.site:5000"
//! http = true                   # no TLS
//! ca = "/etc/pinnace/site-ca.pem"
//! through_master = "always"     # or "never", or "fallback" (the default)
//! ```
//!
//! Mirrors are asked first, in their order; what fails there is asked of the
//! registry itself.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::keyring::{BadKeyring, KEYRING_BYTES_MAX, Keyring};
use crate::registry::{HostRule, Mirror, RegistryConfig, ThroughMaster};

/// Longest file, and longest file of certificates, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("{}: cannot read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{}: {why}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The credentials cannot be read.
    #[error("{}: {source}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BadKeyring,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSettings {
    auth_file: Option<PathBuf>,
    #[serde(default)]
    registry: Vec<RawRegistry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegistry {
    host: String,
    #[serde(default)]
    mirrors: Vec<String>,
    #[serde(default)]
    http: bool,
    ca: Option<PathBuf>,
    through_master: Option<ThroughMaster>,
}

/// Reads the file, and those it names.
///
/// # Errors
/// See [`SettingsError`].
pub fn read(path: &Path) -> Result<RegistryConfig, SettingsError> {
    let bytes = read_bounded(path, FILE_BYTES_MAX)?;
    let bad = |why: String| SettingsError::Bad { path: path.to_owned(), why };
    let text = String::from_utf8(bytes).map_err(|_| bad("it is not UTF-8".into()))?;
    let raw: RawSettings = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let keyring = match &raw.auth_file {
        Some(file) => read_docker_config(&folder.join(file))?,
        None => Keyring::default(),
    };
    let mut hosts = Vec::new();
    for registry in raw.registry {
        let mirrors = registry.mirrors.iter().map(|text| mirror(text));
        let mirrors = mirrors.collect::<Result<Vec<_>, _>>().map_err(bad)?;
        if registry.host.is_empty() || registry.host.contains('/') {
            return Err(bad(format!("host = {:?} is not HOST[:PORT]", registry.host)));
        }
        let ca_pem = match &registry.ca {
            Some(file) => read_ca(&folder.join(file))?,
            None => Vec::new(),
        };
        hosts.push(HostRule {
            host: registry.host,
            address: None,
            mirrors,
            http: registry.http,
            ca_pem,
            through_master: registry.through_master.unwrap_or_default(),
        });
    }
    Ok(RegistryConfig { hosts, keyring, ..RegistryConfig::default() })
}

/// Reads a file of credentials, as `docker login` writes it.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn read_docker_config(path: &Path) -> Result<Keyring, SettingsError> {
    let bytes = read_bounded(path, KEYRING_BYTES_MAX as u64)?;
    Keyring::from_docker_config(&bytes)
        .map_err(|source| SettingsError::Credentials { path: path.to_owned(), source })
}

/// Reads certificates.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub fn read_ca(path: &Path) -> Result<Vec<u8>, SettingsError> {
    let pem = read_bounded(path, FILE_BYTES_MAX)?;
    if !pem.windows(27).any(|window| window == b"-----BEGIN CERTIFICATE-----") {
        let why = "it holds no certificate in PEM".to_owned();
        return Err(SettingsError::Bad { path: path.to_owned(), why });
    }
    Ok(pem)
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, SettingsError> {
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(std::io::Error::other(format!("it is larger than {limit} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(|source| SettingsError::Read { path: path.to_owned(), source })
}

/// `https://HOST[:PORT][/PATH]`, or the same with http.
fn mirror(text: &str) -> Result<Mirror, String> {
    let bad = || format!("mirror {text:?} is not [http[s]://]HOST[:PORT][/PATH]");
    let (http, rest) = match text.split_once("://") {
        Some(("http", rest)) => (true, rest),
        Some(("https", rest)) => (false, rest),
        Some(_) => return Err(bad()),
        None => (false, text),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.trim_matches('/');
    let is_plain = |text: &str, more: &str| {
        text.bytes().all(|b| b.is_ascii_alphanumeric() || more.as_bytes().contains(&b))
    };
    if host.is_empty() || !is_plain(host, ".:-[]") || !is_plain(path, "._-/") {
        return Err(bad());
    }
    Ok(Mirror { host: host.to_owned(), path: path.to_owned(), http })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<RegistryConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("auth.json"), r#"{"auths":{"r.io":{"auth":"dTpw"}}}"#)
            .unwrap();
        std::fs::write(folder.path().join("ca.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
        std::fs::write(folder.path().join("registries.toml"), text).unwrap();
        read(&folder.path().join("registries.toml")).map_err(|error| {
            use std::error::Error;
            let source = error.source().map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        })
    }

    #[test]
    fn the_file_is_read_with_those_it_names() {
        let config = check(
            "auth_file = 'auth.json'\n[[registry]]\nhost = 'docker.io'\n\
             mirrors = ['mirror.site:5000', 'http://10.0.0.2:5000/hub/']\n\
             [[registry]]\nhost = '*'\nhttp = true\nca = 'ca.pem'\nthrough_master = 'always'\n",
        )
        .unwrap();
        assert_eq!(config.keyring.find("r.io", "a").len(), 1);
        let mirrors = &config.hosts[0].mirrors;
        assert_eq!((mirrors[0].host.as_str(), mirrors[0].http), ("mirror.site:5000", false));
        assert_eq!((mirrors[1].path.as_str(), mirrors[1].http), ("hub", true));
        assert_eq!(config.hosts[0].through_master, ThroughMaster::Fallback);
        assert!(config.hosts[1].http && !config.hosts[1].ca_pem.is_empty());
        assert_eq!(config.hosts[1].through_master, ThroughMaster::Always);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("[[registry]]\nhots = 'x'", "unknown field `hots`"),
            ("[[registry]]\nhost = 'https://x'", "is not HOST[:PORT]"),
            ("[[registry]]\nhost = 'x'\nmirrors = ['ftp://y']", "mirror \"ftp://y\" is not"),
            ("[[registry]]\nhost = 'x'\nmirrors = ['y/../z@1']", "is not [http[s]://]HOST"),
            ("[[registry]]\nhost = 'x'\nca = 'none.pem'", "none.pem: cannot read it: No such"),
            ("[[registry]]\nhost = 'x'\nca = 'auth.json'", "it holds no certificate"),
            ("auth_file = 'ca.pem'", "is not JSON"),
            ("[[registry]]\nhost = 'x'\nthrough_master = 'maybe'", "unknown variant `maybe`"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
