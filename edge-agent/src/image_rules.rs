//! What must hold for an image before anything of it runs, as its namespace says
//! (`pinnace.io/image-policy` on the Namespace; the node gets it with its set).
//!
//! | rule | OCI | WASM |
//! | --- | --- | --- |
//! | digest | the pod names the image by digest | the same |
//! | signature | checked here, at every start, also without network | checked by the master when it compiles; a mark beside the code says for which keys |

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use image::signature::TrustedKeys;
use wire::set::{ImageRuleV1, NodeConfigV1};

use crate::images::{ImageError, ImageRequest};

/// The reason of every refusal here, as the kubelet has it.
const REASON: &str = "SignatureValidationFailed";

/// The rules of all namespaces.
#[derive(Debug, Default)]
pub struct ImageRules(RwLock<HashMap<String, ImageRuleV1>>);

impl ImageRules {
    /// Takes the rules of a set.
    pub fn configure(&self, config: &NodeConfigV1) {
        let rules = config.image_policies.iter();
        let rules = rules.map(|policy| (policy.namespace.clone(), policy.rule.clone())).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// The keys of which one must have signed the image; `None` where none need to.
    ///
    /// # Errors
    /// The image may not run, whoever signed it.
    pub fn keys(&self, request: &ImageRequest) -> Result<Option<TrustedKeys>, ImageError> {
        let rules = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let namespace = &request.namespace;
        match rules.get(namespace) {
            None => Ok(None),
            Some(ImageRuleV1::Digest) => {
                if request.reference.contains("@sha256:") {
                    return Ok(None);
                }
                Err(refused(
                    request,
                    &format!(
                        "namespace \"{namespace}\" wants images named by digest (NAME@sha256:…)"
                    ),
                ))
            }
            Some(ImageRuleV1::Signature(pem)) => match TrustedKeys::from_pem(pem) {
                Ok(keys) => Ok(Some(keys)),
                Err(why) => Err(refused(
                    request,
                    &format!("the keys of namespace \"{namespace}\" cannot be used: {why}"),
                )),
            },
            Some(ImageRuleV1::Invalid(why)) => Err(refused(
                request,
                &format!(
                    "the image policy of namespace \"{namespace}\" is wrong, so nothing runs there: {why}"
                ),
            )),
        }
    }
}

/// An image that may not run.
#[must_use]
pub fn refused(request: &ImageRequest, why: &str) -> ImageError {
    ImageError::new(REASON, format!("image \"{}\" is refused: {why}", request.reference))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::pod::{PullPolicyV1, RuntimeV1};
    use wire::set::ImagePolicyV1;

    #[test]
    fn each_namespace_has_its_own_rule() {
        let rules = ImageRules::default();
        let of = |namespace: &str, rule| ImagePolicyV1 { namespace: namespace.into(), rule };
        rules.configure(&NodeConfigV1 {
            pod_cidr: String::new(),
            heartbeat_s: 60,
            artifact_key: [0; 32],
            hold_unknown: false,
            image_policies: vec![
                of("pinned", ImageRuleV1::Digest),
                of("wrong", ImageRuleV1::Invalid("a slip".into())),
                of("signed", ImageRuleV1::Signature("no key".into())),
            ],
            prepull: Vec::new(),
            remove_volumes: Vec::new(),
            cluster: wire::network::ClusterV1::default(),
            ext: Vec::new(),
        });
        let check = |namespace: &str, reference: &str, expected: &str| {
            let request = ImageRequest {
                pod: [1; 16],
                namespace: namespace.into(),
                container: "a".into(),
                reference: reference.into(),
                digest: String::new(),
                runtime: RuntimeV1::Oci,
                policy: PullPolicyV1::IfNotPresent,
                keyring: image::Keyring::default(),
                secrets: Vec::new(),
            };
            let found = rules.keys(&request).map_err(|error| (error.reason, error.message));
            match found {
                Ok(keys) => assert!(keys.is_none() && expected.is_empty(), "{namespace}"),
                Err((reason, message)) => {
                    assert_eq!(reason, REASON);
                    assert!(!expected.is_empty() && message.contains(expected), "{message}");
                }
            }
        };
        let digest = format!("a.b/c@{}", image::Digest::of(b"x"));
        check("other", "a.b/c:1", "");
        check("pinned", &digest, "");
        check("pinned", "a.b/c:1", "named by digest");
        check("wrong", &digest, "a slip");
        check("signed", &digest, "cannot be used");
    }
}
