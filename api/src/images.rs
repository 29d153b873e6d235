//! What is recorded on a Pod about its images, and what runs them.
//!
//! One annotation, `pinnace.io/images`, a JSON object from the container's name
//! to a [`Record`]. One annotation and not one a container, because the name of
//! an annotation has no room for the longest name of a container. A record also
//! carries the image it is about and counts only while the container still
//! names that image, so that a copied annotation never runs the wrong one.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::meta;
use crate::view::Container;

/// The `runtimeClassName` of OCI containers.
pub const RUNTIME_CLASS_OCI: &str = "oci";
/// The `runtimeClassName` of WASM modules.
pub const RUNTIME_CLASS_WASM: &str = "wasm";

/// The annotation.
pub const IMAGES_ANNOTATION: &str = "pinnace.io/images";
/// Longest annotation that is read, in bytes.
const TEXT_MAX: usize = 128 * 1024;
/// Most platforms of an image that are kept.
pub const PLATFORMS_MAX: usize = 32;

/// What one image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The image as the container named it when it was looked up.
    pub image: String,
    /// `sha256:…` of the index or manifest (OCI) or of the module (WASM).
    pub digest: String,
    /// What runs it.
    pub runtime: Runtime,
    /// What it was built for, as `os/architecture[/variant]`.
    pub platforms: Vec<String>,
}

/// Which backend runs a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// An OCI image.
    Oci,
    /// A WASM module.
    Wasm,
}

impl Runtime {
    /// As `runtimeClassName` and the records of images spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Oci => RUNTIME_CLASS_OCI,
            Self::Wasm => RUNTIME_CLASS_WASM,
        }
    }

    /// The inverse of [`Runtime::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            RUNTIME_CLASS_OCI => Some(Self::Oci),
            RUNTIME_CLASS_WASM => Some(Self::Wasm),
            _ => None,
        }
    }

    /// What runs a container: what `runtimeClassName` says, else what its image
    /// is, else OCI.
    #[must_use]
    pub fn of(class: Option<&str>, record: Option<&Record>) -> Self {
        class.and_then(Self::parse).or_else(|| Some(record?.runtime)).unwrap_or(Self::Oci)
    }
}

/// The records of one pod, by container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageRecords(BTreeMap<String, Record>);

impl ImageRecords {
    /// Reads a pod's records; what cannot be read counts as not recorded.
    #[must_use]
    pub fn of(pod: &Value) -> Self {
        let text = meta::annotation(pod, IMAGES_ANNOTATION).filter(|text| text.len() <= TEXT_MAX);
        let parsed: Option<Value> = text.and_then(|text| serde_json::from_str(text).ok());
        let Some(Value::Object(map)) = parsed else {
            return Self::default();
        };
        let records = map.iter().filter_map(|(name, value)| Some((name.clone(), read(value)?)));
        Self(records.collect())
    }

    /// What is known of a container's image.
    #[must_use]
    pub fn get(&self, container: &Container) -> Option<&Record> {
        self.0.get(&container.name).filter(|record| record.image == container.image)
    }

    /// Records what a container's image is.
    pub fn set(&mut self, container: &str, record: Record) {
        self.0.insert(container.to_owned(), record);
    }

    /// Forgets containers that `keep` does not name.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| keep(name));
    }

    /// The text of the annotation.
    #[must_use]
    pub fn text(&self) -> String {
        let map: serde_json::Map<String, Value> = self
            .0
            .iter()
            .map(|(name, record)| {
                let value = json!({
                    "image": record.image,
                    "digest": record.digest,
                    "runtime": record.runtime.as_str(),
                    "platforms": record.platforms,
                });
                (name.clone(), value)
            })
            .collect();
        Value::Object(map).to_string()
    }
}

fn read(value: &Value) -> Option<Record> {
    let text = |field: &str| value.get(field)?.as_str().map(str::to_owned);
    let digest = text("digest")?;
    if !is_digest(&digest) {
        return None;
    }
    let platforms = value.get("platforms").and_then(Value::as_array);
    let platforms = platforms.into_iter().flatten().filter_map(Value::as_str);
    Some(Record {
        image: text("image")?,
        digest,
        runtime: Runtime::parse(&text("runtime")?)?,
        platforms: platforms.take(PLATFORMS_MAX).map(str::to_owned).collect(),
    })
}

/// Whether it is `algorithm:hex`, so that nothing else reaches a node as one.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    let algorithm_ok = matches!(algorithm, "sha256" | "sha384" | "sha512");
    let hex_ok = (64..=128).contains(&hex.len())
        && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    algorithm_ok && hex_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(image: &str, runtime: Runtime) -> Record {
        Record {
            image: image.to_owned(),
            digest: format!("sha256:{}", "ab".repeat(32)),
            runtime,
            platforms: vec!["linux/arm64".to_owned()],
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut records = ImageRecords::default();
        records.set("a", record("r/a:1", Runtime::Oci));
        records.set("b", record("r/b:1", Runtime::Wasm));
        let pod = json!({"metadata": {"annotations": {IMAGES_ANNOTATION: records.text()}}});
        assert_eq!(ImageRecords::of(&pod), records);
        let container = |name: &str, image: &str| Container {
            name: name.to_owned(),
            image: image.to_owned(),
            ..Container::default()
        };
        assert!(records.get(&container("a", "r/a:1")).is_some());
        assert!(records.get(&container("a", "r/a:2")).is_none());
        assert!(records.get(&container("c", "r/a:1")).is_none());
    }

    #[test]
    fn what_cannot_be_read_counts_as_unknown() {
        for text in [
            "",
            "[]",
            "{\"a\": 1}",
            "{\"a\":{\"image\":\"i\",\"digest\":\"../x\",\"runtime\":\"oci\"}}",
        ] {
            let pod = json!({"metadata": {"annotations": {IMAGES_ANNOTATION: text}}});
            assert_eq!(ImageRecords::of(&pod), ImageRecords::default(), "{text}");
        }
        assert!(is_digest(&format!("sha256:{}", "0".repeat(64))));
        for bad in ["sha256:", "md5:0", "sha256:XY", "", "0"] {
            assert!(!is_digest(bad), "{bad}");
        }
    }
}
