//! The documents of an image: index, manifest, configuration. As they come from
//! a registry, so everything is optional until it was checked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Platform};

/// Most layers of an image; overlayfs takes up to 500, Docker makes at most 127.
pub(crate) const LAYERS_MAX: usize = 256;

/// Most manifests of an index.
pub(crate) const MANIFESTS_MAX: usize = 1024;

/// Media types of a single image.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media types of an index.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The CNCF's layout for WebAssembly.
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub(crate) const WASM_LAYER: &str = "application/wasm";
/// What came before it.
pub(crate) const OLD_WASM_CONFIG: &str = "application/vnd.wasm.config.v1+json";
pub(crate) const OLD_WASM_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";

/// Marks an OCI image whose layers hold a module.
const COMPAT: [(&str, &str); 2] =
    [("module.wasm.image/variant", "compat"), ("run.oci.handler", "wasm")];

/// Points to a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// An index or a manifest, told apart by what they hold.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// One image.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// The blob that is a bare module, in the layouts that have one.
    pub(crate) fn module(&self) -> Option<&Descriptor> {
        let typed = matches!(self.config.media_type.as_str(), WASM_CONFIG | OLD_WASM_CONFIG);
        let is_module =
            |l: &&Descriptor| matches!(l.media_type.as_str(), WASM_LAYER | OLD_WASM_LAYER);
        match self.layers.iter().find(is_module) {
            Some(layer) => Some(layer),
            None if typed => self.layers.first(),
            None => None,
        }
    }

    /// Whether annotations say that the layers hold a module.
    pub(crate) fn is_compat(&self) -> bool {
        COMPAT.iter().any(|(key, value)| self.annotations.get(*key).is_some_and(|v| v == value))
    }
}

/// Reads an index or a manifest.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Document, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Either {
        #[serde(default)]
        schema_version: u32,
        manifests: Option<Vec<serde_json::Value>>,
        config: Option<Descriptor>,
        layers: Option<Vec<Descriptor>>,
        annotations: Option<BTreeMap<String, String>>,
    }
    let either: Either = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if either.schema_version != 2 {
        return Err(format!("schema version {} is not 2", either.schema_version));
    }
    if let Some(entries) = either.manifests {
        if entries.len() > MANIFESTS_MAX {
            return Err(format!("it lists more than {MANIFESTS_MAX} manifests"));
        }
        // An entry with another digest algorithm or without a platform is no reason
        // to refuse the others.
        let known = entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok());
        return Ok(Document::Index(known.collect()));
    }
    let Some(config) = either.config else {
        return Err("it has neither manifests nor a config".into());
    };
    let layers = either.layers.unwrap_or_default();
    if layers.len() > LAYERS_MAX {
        return Err(format!("it has more than {LAYERS_MAX} layers"));
    }
    let annotations = either.annotations.unwrap_or_default();
    Ok(Document::Manifest(Manifest { config, layers, annotations }))
}

/// What an image says about how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Machine it is for.
    pub platform: Platform,
    /// The command, unless the container names another.
    pub entrypoint: Vec<String>,
    /// Its arguments, or the command where there is no entrypoint.
    pub cmd: Vec<String>,
    /// Variables, in order.
    pub env: Vec<(String, String)>,
    /// `name`, `uid`, `name:group` or `uid:gid`; empty for root.
    pub user: String,
    /// Working directory; empty for `/`.
    pub working_dir: String,
    /// Name or number of the signal that asks it to stop; empty for SIGTERM.
    pub stop_signal: String,
    /// Digests of the unpacked layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// The configuration as it is written.
#[derive(Default, Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
    config: Option<RawRun>,
    rootfs: Option<RawRootfs>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Default, Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: RawConfig = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let run = raw.config.unwrap_or_default();
        let split = |entry: String| match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => Some((name.to_owned(), value.to_owned())),
            _ => None,
        };
        Ok(Self {
            platform: Platform { os: raw.os, architecture: raw.architecture, variant: raw.variant },
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default().into_iter().filter_map(split).collect(),
            user: run.user.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            stop_signal: run.stop_signal.unwrap_or_default(),
            diff_ids: raw.rootfs.unwrap_or_default().diff_ids,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart() {
        let digest = Digest::of(b"x");
        let descriptor = format!(r#"{{"mediaType":"m","digest":"{digest}","size":3}}"#);
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{descriptor},{{"digest":"sha512:ab","size":1}},7]}}"#
        );
        match parse(index.as_bytes()).unwrap() {
            Document::Index(entries) => assert_eq!(entries.len(), 1),
            other => panic!("{other:?}"),
        }
        let manifest = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":null}}"#);
        match parse(manifest.as_bytes()).unwrap() {
            Document::Manifest(manifest) => assert_eq!(manifest.config.digest, digest),
            other => panic!("{other:?}"),
        }
        for bad in ["", "{}", "[]", r#"{"schemaVersion":1}"#, r#"{"schemaVersion":2}"#, "nul"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let many = vec![descriptor.as_str(); LAYERS_MAX + 1].join(",");
        let many = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{many}]}}"#);
        assert!(parse(many.as_bytes()).unwrap_err().contains("more than 256 layers"));
    }

    #[test]
    fn a_configuration_may_leave_everything_out() {
        assert_eq!(ImageConfig::parse(b"{}").unwrap(), ImageConfig::default());
        let text = r#"{"architecture":"arm","os":"linux","variant":"v7",
            "config":{"Env":["A=b=c","=x","junk"],"Cmd":null,"Entrypoint":["/e"],"User":"app",
                      "WorkingDir":"/w","StopSignal":"SIGINT"}}"#;
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm/v7");
        assert_eq!(config.env, [("A".into(), "b=c".into())]);
        assert_eq!(config.entrypoint, ["/e"]);
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("app", "/w"));
        ImageConfig::parse(b"[1]").unwrap_err();
    }
}
