//! Which machine an image is for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and its variant, in the words of image indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `windows`, `wasip1`, …
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, `arm`, `wasm`, …
    #[serde(default)]
    pub architecture: String,
    /// `v6`, `v7`, `v8`, or empty.
    #[serde(default)]
    pub variant: String,
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
    /// Linux on an architecture.
    #[must_use]
    pub fn linux(architecture: &str, variant: &str) -> Self {
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// This machine, as far as this program was built for it.
    #[must_use]
    pub fn host() -> Self {
        let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
        Self::of(std::env::consts::ARCH, &machine)
    }

    /// `built` is Rust's word for what the program was built for, `machine` the kernel's.
    fn of(built: &str, machine: &str) -> Self {
        match built {
            "x86_64" => Self::linux("amd64", ""),
            "aarch64" => Self::linux("arm64", "v8"),
            "x86" => Self::linux("386", ""),
            // A program built for version 6 also runs on 7; the kernel knows better.
            "arm" if machine.starts_with("armv6") => Self::linux("arm", "v6"),
            "arm" if machine.starts_with("armv5") => Self::linux("arm", "v5"),
            "arm" => Self::linux("arm", "v7"),
            other => Self::linux(other, ""),
        }
    }

    /// Whether it names WebAssembly.
    #[must_use]
    pub fn is_wasm(&self) -> bool {
        matches!(self.architecture.as_str(), "wasm" | "wasm32")
    }

    /// The best of what is offered for this machine; `None` if nothing runs here.
    ///
    /// 32-bit arm runs older versions of itself, newest first. On amd64 only the
    /// baseline is taken: nobody knows here what the processor adds to it.
    #[must_use]
    pub fn choose(&self, offered: &[Self]) -> Option<usize> {
        let ranks = offered.iter().map(|candidate| self.rank(candidate)).enumerate();
        // The first of the best, as other runtimes take it.
        let best = ranks.filter_map(|(n, rank)| Some((rank?, std::cmp::Reverse(n)))).max();
        best.map(|(_, std::cmp::Reverse(n))| n)
    }

    fn rank(&self, candidate: &Self) -> Option<u32> {
        if candidate.os != self.os || candidate.architecture != self.architecture {
            return None;
        }
        let version = |variant: &str| variant.strip_prefix('v').and_then(|n| n.parse::<u32>().ok());
        match (self.architecture.as_str(), candidate.variant.as_str()) {
            // No variant means the oldest that is common: v7 for arm, v8 for arm64, v1 for amd64.
            ("arm", "") => (version(&self.variant)? >= 7).then_some(1),
            ("arm", variant) => {
                let (have, need) = (version(&self.variant)?, version(variant)?);
                (need <= have).then_some(need)
            }
            ("arm64", "" | "v8") | ("amd64", "" | "v1") => Some(1),
            ("arm64" | "amd64", _) => None,
            (_, variant) => (variant == self.variant).then_some(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &Platform, offered: &[(&str, &str, &str)], expected: Option<usize>) {
        let offered: Vec<Platform> = offered
            .iter()
            .map(|(os, architecture, variant)| Platform {
                os: (*os).into(),
                architecture: (*architecture).into(),
                variant: (*variant).into(),
            })
            .collect();
        assert_eq!(host.choose(&offered), expected, "{host} {offered:?}");
    }

    #[test]
    fn the_newest_variant_that_runs_is_chosen() {
        let all = [
            ("linux", "amd64", ""),
            ("linux", "arm", "v5"),
            ("linux", "arm", "v7"),
            ("linux", "arm", "v6"),
            ("linux", "arm64", "v8"),
            ("windows", "amd64", ""),
        ];
        check(&Platform::linux("amd64", ""), &all, Some(0));
        check(&Platform::linux("arm", "v7"), &all, Some(2));
        check(&Platform::linux("arm", "v6"), &all, Some(3));
        check(&Platform::linux("arm64", "v8"), &all, Some(4));
        check(&Platform::linux("riscv64", ""), &all, None);
        check(&Platform::linux("arm", "v6"), &[("linux", "arm", "v7"), ("linux", "arm", "")], None);
        check(&Platform::linux("arm", "v7"), &[("linux", "arm", "")], Some(0));
        check(&Platform::linux("arm64", "v8"), &[("linux", "arm64", "")], Some(0));
        check(&Platform::linux("amd64", ""), &[("linux", "amd64", "v3")], None);
        check(
            &Platform::linux("amd64", ""),
            &[("linux", "amd64", ""), ("linux", "amd64", "")],
            Some(0),
        );
        check(&Platform::linux("amd64", ""), &[], None);
    }

    #[test]
    fn the_kernel_tells_the_version_of_arm() {
        assert_eq!(Platform::of("arm", "armv6l").to_string(), "linux/arm/v6");
        assert_eq!(Platform::of("arm", "armv7l").to_string(), "linux/arm/v7");
        assert_eq!(Platform::of("arm", "aarch64").to_string(), "linux/arm/v7");
        assert_eq!(Platform::of("aarch64", "aarch64").to_string(), "linux/arm64/v8");
    }
}
