//! Views of the kinds that only hold data: Namespace, ConfigMap, Secret, Lease.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::meta::ObjectMeta;

/// A Namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Its `spec.finalizers`.
    pub spec: NamespaceSpec,
    /// Its phase.
    pub status: NamespaceStatus,
}

/// What keeps a namespace from going.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceSpec {
    /// `kubernetes` until every object in it is gone.
    pub finalizers: Vec<String>,
}

/// Where a namespace is in its life.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceStatus {
    /// `Active` or `Terminating`.
    pub phase: String,
}

/// A ConfigMap.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConfigMapView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Texts.
    pub data: BTreeMap<String, String>,
    /// Bytes, in base64.
    pub binary_data: BTreeMap<String, String>,
    /// Whether its data can never change.
    pub immutable: bool,
}

impl ConfigMapView {
    /// Every key with its bytes.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let texts = self.data.iter().map(|(key, text)| (key.clone(), text.clone().into_bytes()));
        texts.chain(decoded(&self.binary_data)).collect()
    }
}

/// A Secret. Its `Debug` form shows keys only.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecretView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What it is for: `Opaque`, `kubernetes.io/tls`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes, in base64.
    pub data: BTreeMap<String, String>,
    /// Whether its data can never change.
    pub immutable: bool,
}

impl SecretView {
    /// Every key with its bytes.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        decoded(&self.data).collect()
    }
}

impl fmt::Debug for SecretView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretView")
            .field("key", &self.metadata.key())
            .field("kind", &self.kind)
            .field("keys", &self.data.keys())
            .finish_non_exhaustive()
    }
}

fn decoded(data: &BTreeMap<String, String>) -> impl Iterator<Item = (String, Vec<u8>)> {
    // Validation lets only base64 in.
    data.iter().filter_map(|(key, text)| Some((key.clone(), STANDARD.decode(text).ok()?)))
}

/// A Lease: a sign of life.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LeaseView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Who holds it, since when.
    pub spec: LeaseSpec,
}

/// Who holds a lease, since when.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LeaseSpec {
    /// Its holder.
    pub holder_identity: String,
    /// Seconds after `renew_time` at which it is free.
    pub lease_duration_seconds: i64,
    /// When it was taken, RFC 3339 with microseconds.
    pub acquire_time: String,
    /// When it was last confirmed.
    pub renew_time: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view;

    #[test]
    fn texts_and_bytes_become_files() {
        let map: ConfigMapView =
            view::read(&json!({"data": {"a": "x"}, "binaryData": {"b": "AAE="}})).unwrap();
        assert_eq!(map.files()["a"], b"x");
        assert_eq!(map.files()["b"], [0, 1]);
        let secret: SecretView = view::read(&json!({
            "metadata": {"name": "s"}, "type": "Opaque", "data": {"pin": "MTIzNA=="}
        }))
        .unwrap();
        assert_eq!(secret.files()["pin"], b"1234");
        assert!(!format!("{secret:?}").contains("MTIz"));
    }
}
