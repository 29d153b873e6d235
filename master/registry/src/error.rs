//! Every refusal, with the code and the status of the specification.

use std::io;

use image::Digest;
use serde_json::json;

/// The codes of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// No such blob in the repository.
    BlobUnknown,
    /// The upload cannot go on so.
    BlobUploadInvalid,
    /// No such upload.
    BlobUploadUnknown,
    /// The content is not what its digest says.
    DigestInvalid,
    /// A manifest names a blob that is not there.
    ManifestBlobUnknown,
    /// Not a manifest.
    ManifestInvalid,
    /// No such manifest.
    ManifestUnknown,
    /// Not the name of a repository.
    NameInvalid,
    /// No such repository.
    NameUnknown,
    /// The length is wrong.
    SizeInvalid,
    /// Nobody who is known.
    Unauthorized,
    /// Not allowed, or no room.
    Denied,
    /// No such operation.
    Unsupported,
    /// Too much at once.
    TooManyRequests,
    /// Something is wrong here.
    Unknown,
}

impl Code {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// The HTTP status that goes with it.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown => 404,
            Self::BlobUploadInvalid => 416,
            Self::DigestInvalid
            | Self::ManifestBlobUnknown
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::SizeInvalid => 400,
            Self::Unauthorized => 401,
            Self::Denied => 403,
            Self::Unsupported => 405,
            Self::TooManyRequests => 429,
            Self::Unknown => 500,
        }
    }
}

/// A refusal.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RegistryError {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
}

impl RegistryError {
    /// A refusal.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn bad_name(text: &str) -> Self {
        let shown: String = text.chars().take(100).collect();
        let why = "lower-case letters and digits, separated by '.', '_', '-' or '/'";
        Self::new(Code::NameInvalid, format!("{shown:?} is no repository: use {why}"))
    }

    pub(crate) fn bad_tag(text: &str) -> Self {
        let shown: String = text.chars().take(150).collect();
        Self::new(Code::ManifestInvalid, format!("{shown:?} is neither a tag nor a digest"))
    }

    pub(crate) fn bad_digest(text: &str) -> Self {
        let shown: String = text.chars().take(150).collect();
        let message = format!("{shown:?} is not sha256: and 64 hexadecimal digits");
        Self::new(Code::DigestInvalid, message)
    }

    pub(crate) fn mismatch(wanted: Digest, found: Digest) -> Self {
        let message = format!("the content is {found}, not {wanted}");
        Self::new(Code::DigestInvalid, message)
    }

    pub(crate) fn no_blob(digest: Digest) -> Self {
        Self::new(Code::BlobUnknown, format!("blob {digest} is not in this repository"))
    }

    pub(crate) fn no_manifest(reference: &str) -> Self {
        Self::new(Code::ManifestUnknown, format!("{reference} is not in this repository"))
    }

    pub(crate) fn no_upload() -> Self {
        Self::new(Code::BlobUploadUnknown, "there is no such upload: begin it again")
    }

    pub(crate) fn unsupported() -> Self {
        Self::new(Code::Unsupported, "the registry does not know this operation")
    }

    /// The body that the specification wants.
    #[must_use]
    pub fn body(&self) -> String {
        json!({"errors": [{"code": self.code.as_str(), "message": self.message, "detail": null}]})
            .to_string()
    }
}

impl From<io::Error> for RegistryError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::new(Code::Denied, "the master's disk is full: delete images, or make room")
            }
            _ => {
                tracing::warn!(%error, "the registry's files cannot be used");
                Self::new(Code::Unknown, format!("the registry's files cannot be used: {error}"))
            }
        }
    }
}
