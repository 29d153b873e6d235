//! What can go wrong with an image, said so that its user can act.

use std::path::PathBuf;

use crate::{Digest, Platform};

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name is none.
    #[error("image name {name:?} is not valid: {why}")]
    BadReference {
        /// As given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The registry does not have it.
    #[error("image {image} does not exist in its registry: check the name and the tag")]
    NotFound {
        /// The image.
        image: String,
    },
    /// The registry wants somebody it knows.
    #[error("registry {registry} refuses image {image}: it is private or does not exist")]
    Unauthorized {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
    },
    /// It has no variant for this machine.
    #[error(
        "image {image} has nothing for {wanted}, only {}: build it for {wanted}",
        list(offered)
    )]
    NoPlatform {
        /// The image.
        image: String,
        /// What was looked for.
        wanted: Platform,
        /// What there is.
        offered: Vec<Platform>,
    },
    /// The registry does not answer, or answers that it cannot now.
    #[error("registry {registry} of image {image} cannot be reached: {why}")]
    Unreachable {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// What happened.
        why: String,
    },
    /// The registry does not take what is pushed.
    #[error("registry {registry} refuses image {image}: {why}")]
    Refused {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// In its words.
        why: String,
    },
    /// Nobody whose key is trusted has signed it.
    #[error("image {image} is not signed by a key that is trusted here: {why}")]
    Unsigned {
        /// The image.
        image: String,
        /// What was looked for, and what was found.
        why: String,
    },
    /// The bytes are not those that were asked for.
    #[error(
        "{what} of image {image} is damaged or forged: it should be {expected} and is {actual}"
    )]
    DigestMismatch {
        /// The image.
        image: String,
        /// Which part of it.
        what: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// More than the limit.
    #[error("{what} of image {image} is larger than {limit} {unit}")]
    TooLarge {
        /// The image.
        image: String,
        /// Which part of it.
        what: String,
        /// The limit.
        limit: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// It is not an image, or not a correct one.
    #[error("{what} of image {image} is not valid: {why}")]
    Malformed {
        /// The image.
        image: String,
        /// Which part of it.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// It is of the other kind.
    #[error("image {image} is {found}, not {wanted}")]
    WrongKind {
        /// The image.
        image: String,
        /// What it is.
        found: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The disk refuses.
    #[error("cannot {operation} {}: {source}", path.display())]
    Disk {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl ImageError {
    /// Whether trying again later may help without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Disk { .. })
    }

    pub(crate) fn disk(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { operation, path, source }
    }
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "nothing that says what it is for".into();
    }
    let names: Vec<String> = platforms.iter().take(20).map(ToString::to_string).collect();
    names.join(", ")
}
