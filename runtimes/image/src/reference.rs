//! Names of images, read as Docker, containerd and the kubelet read them.
//!
//! | written | means |
//! |---|---|
//! | `nginx` | `docker.io/library/nginx:latest` |
//! | `team/app:v1` | `docker.io/team/app:v1` |
//! | `localhost/app` | `localhost/app:latest` |
//! | `host:5000/app@sha256:…` | that manifest, whatever a tag says |

use std::fmt;
use std::str::FromStr;

use crate::{Digest, ImageError};

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `docker.io`, `host` or `host:port`.
    pub registry: String,
    /// Path in the registry, such as `library/nginx`.
    pub repository: String,
    /// `latest` where neither tag nor digest is given.
    pub tag: Option<String>,
    /// Names one manifest for good; wins over the tag.
    pub digest: Option<Digest>,
}

impl Reference {
    /// The same repository at a digest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(name: &str) -> Result<Self, ImageError> {
        let bad = |why| ImageError::BadReference { name: name.chars().take(300).collect(), why };
        if name.is_empty() || name.len() > 512 {
            return Err(bad("it has to be 1 to 512 characters"));
        }
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse().map_err(|_| bad("its digest is not sha256 in hexadecimal"))?),
            ),
            None => (name, None),
        };
        // A colon after the last slash begins a tag; one before, a port.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match rest[last..].find(':') {
            Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("its tag has to be 1 to 128 of letters, digits, '_', '.' and '-'"));
        }
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => {
                (first, rest.to_owned())
            }
            Some(_) => ("docker.io", path.to_owned()),
            None => ("docker.io", format!("library/{path}")),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        if !is_host(registry) {
            return Err(bad("its registry is not a host name with an optional port"));
        }
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(bad(
                "its path has to be lower-case letters and digits, separated by '.', '_', '-' or '/'",
            ));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len())
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (part.bytes().next(), part.bytes().last()) else {
        return false;
    };
    alphanumeric(first)
        && alphanumeric(last)
        && part.bytes().all(|b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-'))
        && !part.contains("..")
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                if address.parse::<std::net::Ipv6Addr>().is_err() {
                    return false;
                }
                ("v6", port.strip_prefix(':'))
            }
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253
        && name.split('.').all(label)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(name: &str, expected: &str) {
        match name.parse::<Reference>() {
            Ok(reference) => assert_eq!(reference.to_string(), expected),
            Err(error) => assert!(error.to_string().contains(expected), "{name}: {error}"),
        }
    }

    #[test]
    fn names_are_read_as_docker_reads_them() {
        check("nginx", "docker.io/library/nginx:latest");
        check("team/app:v1", "docker.io/team/app:v1");
        check("index.docker.io/library/nginx", "docker.io/library/nginx:latest");
        check("localhost/app", "localhost/app:latest");
        check("host:5000/a/b/c", "host:5000/a/b/c:latest");
        check("[::1]:5000/app:v1", "[::1]:5000/app:v1");
        check("ghcr.io/a/b:V1.2-x_y", "ghcr.io/a/b:V1.2-x_y");
        let digest = Digest::of(b"");
        check(&format!("a.b/c@{digest}"), &format!("a.b/c@{digest}"));
        check(&format!("a.b/c:t@{digest}"), &format!("a.b/c:t@{digest}"));
    }

    #[test]
    fn what_is_no_name_says_why() {
        check("", "1 to 512");
        check("Nginx", "lower-case");
        check("a//b", "lower-case");
        check("../../etc/passwd", "not a host name");
        check("a/../b", "lower-case");
        check("nginx:", "its tag");
        check("nginx:a/b", "not a host name");
        check("nginx@sha256:12", "its digest");
        check("host:0/a", "not a host name");
        check("host:x/a", "not a host name");
        check("a b", "lower-case");
        check("-a.b/c", "not a host name");
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(name in "[a-z0-9.:/@_-]{0,40}") {
            if let Ok(reference) = name.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                prop_assert_eq!(again, reference);
            }
        }
    }
}
