//! Whether compiled code may be mapped: it is what the cluster signed, byte for
//! byte, and it is for this engine.
//!
//! This is the only gate between bytes on a disk and code in a process, so it
//! runs at every start and not just at the download: an SD card may change them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use ring::{digest, signature};
use runtime::{ArtifactSignature, World};
use wire::artifact::{ArtifactV1, WorldV1};
use wire::node::WasmTargetV1;

/// Why compiled code was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The bytes are not the ones that were signed.
    #[error("{path} is damaged: its bytes are not the ones the master signed")]
    Damaged {
        /// The file.
        path: String,
    },
    /// The signature is not the cluster's.
    #[error("the signature of module {module} is not by this cluster's artifact key")]
    Signature {
        /// The module's digest.
        module: String,
    },
    /// The code is for another engine.
    #[error("module {module} was compiled for {compiled}, this node runs {here}")]
    Target {
        /// The module's digest.
        module: String,
        /// What it was compiled for.
        compiled: String,
        /// What this node runs.
        here: String,
    },
}

/// Checks the signature of an artifact's description.
///
/// # Errors
///
/// [`ArtifactError::Signature`].
pub fn verify_signature(described: &ArtifactV1, key: &[u8; 32]) -> Result<(), ArtifactError> {
    signature::UnparsedPublicKey::new(&signature::ED25519, key)
        .verify(&described.signed_bytes(), &described.signature)
        .map_err(|_| ArtifactError::Signature { module: described.module.clone() })
}

/// The description as it crossed the link, which is what was signed.
fn described(sha256: [u8; 32], signed: &ArtifactSignature) -> ArtifactV1 {
    ArtifactV1 {
        module: signed.module.clone(),
        target: WasmTargetV1 {
            engine: signed.engine.clone(),
            target: signed.target.clone(),
            profile: signed.profile,
        },
        world: match signed.world {
            World::Command => WorldV1::Command,
            World::Http => WorldV1::Http,
        },
        sha256,
        size: signed.size,
        signature: signed.bytes.clone(),
    }
}

/// Opens the compiled code at `path` once it is known to be what `signed` says,
/// and for `here`, what this engine maps.
///
/// The returned file is the one that was hashed, so nothing can be put in its
/// place between the check and the mapping.
///
/// # Errors
///
/// Where the description is not signed by `key`, is for another engine, or does
/// not describe the file.
pub fn open_verified(
    path: &Path,
    sha256: [u8; 32],
    signed: &ArtifactSignature,
    key: &[u8; 32],
    here: &str,
) -> Result<File, ArtifactError> {
    verify_signature(&described(sha256, signed), key)?;
    let fits = signed.target == here
        && signed.engine == crate::engine::ENGINE_VERSION
        && signed.profile == crate::engine::PROFILE;
    if !fits {
        return Err(ArtifactError::Target {
            module: signed.module.clone(),
            compiled: format!("{} {} profile {}", signed.engine, signed.target, signed.profile),
            here: format!(
                "{} {here} profile {}",
                crate::engine::ENGINE_VERSION,
                crate::engine::PROFILE
            ),
        });
    }
    let name = || path.display().to_string();
    let read = |source| ArtifactError::Read { path: name(), source };
    let mut file = File::open(path).map_err(read)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 64 << 10];
    let mut size = 0_u64;
    loop {
        let n = file.read(&mut buffer).map_err(read)?;
        if n == 0 {
            break;
        }
        size += n as u64;
        context.update(&buffer[..n]);
    }
    if size != signed.size || context.finish().as_ref() != sha256 {
        return Err(ArtifactError::Damaged { path: name() });
    }
    file.seek(SeekFrom::Start(0)).map_err(read)?;
    Ok(file)
}
