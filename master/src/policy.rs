//! What a Namespace says must hold for its images, and which images nodes are to
//! have before any pod names them. Pure.
//!
//! | annotation of a Namespace | means |
//! | --- | --- |
//! | `pinnace.io/image-policy: digest` | manifests name images by digest |
//! | `pinnace.io/image-policy: signature` | a key of `pinnace.io/image-keys` has signed the image |
//! | `pinnace.io/image-keys` | public keys in PEM, one or more (ECDSA on P-256) |
//!
//! A ConfigMap with the label `pinnace.io/prepull` names images in `data.images`,
//! one a line; `data.nodeSelector` (labels, as kubectl takes them) names the
//! nodes, all of them where it is empty; `data.imagePullSecrets` names Secrets of
//! its namespace, separated by commas.

use std::collections::BTreeSet;

use api::selector::LabelSelector;
use api::{Value, meta};
use image::signature::TrustedKeys;
use wire::set::{ImageRuleV1, PrepullV1};

/// The annotation that says what must hold.
pub(crate) const POLICY_ANNOTATION: &str = "pinnace.io/image-policy";
/// The annotation with the keys.
pub(crate) const KEYS_ANNOTATION: &str = "pinnace.io/image-keys";
/// The label of ConfigMaps that name images to have.
pub(crate) const PREPULL_LABEL: &str = "pinnace.io/prepull";

/// Most images that one ConfigMap names.
const IMAGES_MAX: usize = 256;

/// What a Namespace asks for; `None` where that is nothing. What makes no sense
/// lets nothing run: a slip must not open what was meant to be shut.
pub(crate) fn rule(namespace: &Value) -> Option<ImageRuleV1> {
    let policy = meta::annotation(namespace, POLICY_ANNOTATION).unwrap_or_default();
    let keys = meta::annotation(namespace, KEYS_ANNOTATION).unwrap_or_default();
    match policy {
        "" | "any" => None,
        "digest" => Some(ImageRuleV1::Digest),
        "signature" => Some(match TrustedKeys::from_pem(keys) {
            Ok(_) => ImageRuleV1::Signature(keys.to_owned()),
            Err(why) => ImageRuleV1::Invalid(format!("its annotation {KEYS_ANNOTATION}: {why}")),
        }),
        other => {
            let shown: String = other.chars().take(50).collect();
            let why = "use any, digest or signature";
            Some(ImageRuleV1::Invalid(format!(
                "its annotation {POLICY_ANNOTATION}: {shown:?}: {why}"
            )))
        }
    }
}

/// Images that nodes with some labels are to have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prepull {
    selector: LabelSelector,
    images: Vec<PrepullV1>,
}

impl Prepull {
    /// Reads a ConfigMap; `None` where it is none of these.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of(map: &Value) -> Result<Option<Self>, String> {
        if meta::label(map, PREPULL_LABEL).is_none() {
            return Ok(None);
        }
        let text = |key: &str| map["data"][key].as_str().unwrap_or_default();
        let selector = LabelSelector::parse(text("nodeSelector"))
            .map_err(|error| format!("data.nodeSelector: {error}"))?;
        let words = |text: &str| -> Vec<String> {
            let words = text.split(|c: char| c == ',' || c.is_whitespace());
            words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let pull_secrets = words(text("imagePullSecrets"));
        let images: BTreeSet<String> = words(text("images")).into_iter().collect();
        if images.len() > IMAGES_MAX {
            return Err(format!("data.images: there are more than {IMAGES_MAX}"));
        }
        for image in &images {
            let parsed = image.parse::<image::Reference>();
            parsed.map_err(|error| format!("data.images: {error}"))?;
        }
        let namespace = meta::namespace(map).to_owned();
        let images = images
            .into_iter()
            .map(|image| PrepullV1 {
                namespace: namespace.clone(),
                image,
                pull_secrets: pull_secrets.clone(),
            })
            .collect();
        Ok(Some(Self { selector, images }))
    }

    /// The images for a node.
    pub(crate) fn for_node(&self, node: &Value) -> &[PrepullV1] {
        let labels: std::collections::BTreeMap<String, String> = node["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect();
        if self.selector.matches(&labels) { &self.images } else { &[] }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_slip_in_a_policy_lets_nothing_run() {
        let check = |annotations: Value| rule(&json!({"metadata": {"annotations": annotations}}));
        assert_eq!(check(json!({})), None);
        assert_eq!(check(json!({POLICY_ANNOTATION: "any"})), None);
        assert_eq!(check(json!({POLICY_ANNOTATION: "digest"})), Some(ImageRuleV1::Digest));
        for bad in [
            json!({POLICY_ANNOTATION: "signed"}),
            json!({POLICY_ANNOTATION: "signature"}),
            json!({POLICY_ANNOTATION: "signature", KEYS_ANNOTATION: "ssh-ed25519 AAAA"}),
        ] {
            let found = check(bad.clone());
            assert!(matches!(found, Some(ImageRuleV1::Invalid(_))), "{bad}: {found:?}");
        }
    }

    #[test]
    fn a_config_map_names_images_for_nodes_with_labels() {
        let map = |label: &str, data: Value| json!({"metadata": {"name": "m", "namespace": "ns", "labels": {label: ""}}, "data": data});
        assert_eq!(Prepull::of(&map("other", json!({"images": "a"}))), Ok(None));
        let data = json!({"images": "b:1\na:1\nb:1", "nodeSelector": "zone in (a,b)", "imagePullSecrets": "s, t"});
        let prepull = Prepull::of(&map(PREPULL_LABEL, data)).unwrap().unwrap();
        let node = |zone: &str| json!({"metadata": {"labels": {"zone": zone}}});
        assert_eq!(prepull.for_node(&node("c")), []);
        let images = prepull.for_node(&node("a"));
        assert_eq!(images.iter().map(|p| p.image.as_str()).collect::<Vec<_>>(), ["a:1", "b:1"]);
        assert_eq!(
            (&*images[0].namespace, &images[0].pull_secrets),
            ("ns", &vec!["s".to_owned(), "t".to_owned()])
        );
        for data in [json!({"images": "A"}), json!({"images": "a", "nodeSelector": "=="})] {
            assert!(Prepull::of(&map(PREPULL_LABEL, data.clone())).is_err(), "{data}");
        }
    }
}
