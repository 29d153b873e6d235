//! What an image was built for, and what a node can run.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// An operating system, an architecture and its variant, as images name them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    /// `linux`, `wasip1`, …
    pub os: Arc<str>,
    /// `amd64`, `arm64`, `arm`, `wasm`, …
    pub architecture: Arc<str>,
    /// `v7`, `v8` or empty.
    pub variant: Arc<str>,
}

/// Why a text is no platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformError;

impl fmt::Display for PlatformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a platform is os/architecture or os/architecture/variant")
    }
}

impl std::error::Error for PlatformError {}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let mut parts = text.split('/');
        let (Some(os), Some(architecture)) = (parts.next(), parts.next()) else {
            return Err(PlatformError);
        };
        let variant = parts.next().unwrap_or("");
        if os.is_empty() || architecture.is_empty() || parts.next().is_some() {
            return Err(PlatformError);
        }
        Ok(Self { os: os.into(), architecture: architecture.into(), variant: variant.into() })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl Platform {
    /// Whether a Linux node of this architecture and variant can run it.
    ///
    /// A newer variant runs what was built for an older one (`v7` runs `v6`).
    /// Nothing else runs across architectures: not every arm64 core has the
    /// 32-bit mode.
    #[must_use]
    pub fn runs_on(&self, architecture: &str, variant: &str) -> bool {
        *self.os == *"linux"
            && *self.architecture == *architecture
            && level(architecture, &self.variant) <= level(architecture, variant)
    }
}

/// The number in a variant; without one, what the architecture usually means.
fn level(architecture: &str, variant: &str) -> u32 {
    let usual = match architecture {
        "arm" => 7,
        "arm64" => 8,
        _ => 1,
    };
    variant.trim_start_matches('v').split('.').next().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_variants_run_older_ones() {
        let rows = [
            ("linux/amd64", "amd64", "", true),
            ("linux/arm64", "amd64", "", false),
            ("linux/arm/v6", "arm", "v7", true),
            ("linux/arm/v7", "arm", "v6", false),
            ("linux/arm", "arm", "v7", true),
            ("linux/arm64/v8", "arm64", "", true),
            ("linux/arm/v7", "arm64", "v8", false),
            ("windows/amd64", "amd64", "", false),
            ("linux/amd64/v3", "amd64", "", false),
        ];
        for (platform, architecture, variant, expected) in rows {
            let parsed: Platform = platform.parse().unwrap();
            assert_eq!(parsed.runs_on(architecture, variant), expected, "{platform}");
            assert_eq!(parsed.to_string(), platform);
        }
        for bad in ["", "linux", "linux/", "/arm", "a/b/c/d"] {
            assert_eq!(bad.parse::<Platform>(), Err(PlatformError), "{bad}");
        }
    }
}
