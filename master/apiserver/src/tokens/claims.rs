//! The claims of a ServiceAccount's token, as upstream names them.
//!
//! ```json
//! {"aud": ["https://kubernetes.default.svc.cluster.local"], "exp": 3600, "iat": 0, "nbf": 0,
//!  "iss": "https://kubernetes.default.svc.cluster.local", "jti": "…",
//!  "sub": "system:serviceaccount:default:build",
//!  "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "build", "uid": "…"},
//!                    "pod": {"name": "…", "uid": "…"}, "node": {"name": "…", "uid": "…"}}}
//! ```

use serde_json::{Map, Value, json};

use crate::identity::SERVICE_ACCOUNT_PREFIX;
use crate::object;

/// An object, by name and identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) name: String,
    pub(super) uid: String,
}

impl Reference {
    /// Of a stored object.
    pub(super) fn of(object: &Value) -> Self {
        Self {
            name: object::meta(object, "name").to_owned(),
            uid: object::meta(object, "uid").to_owned(),
        }
    }

    fn read(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().filter(|text| !text.is_empty());
        Some(Self { name: text("name")?.to_owned(), uid: text("uid")?.to_owned() })
    }

    fn to_value(&self) -> Value {
        json!({"name": self.name, "uid": self.uid})
    }
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) issuer: String,
    pub(super) audiences: Vec<String>,
    /// Seconds since 1970, as the two below.
    pub(super) issued_s: i64,
    pub(super) not_before_s: i64,
    pub(super) expires_s: i64,
    /// The token's own identity.
    pub(super) id: String,
    pub(super) namespace: String,
    pub(super) account: Reference,
    pub(super) pod: Option<Reference>,
    pub(super) secret: Option<Reference>,
    pub(super) node: Option<Reference>,
}

impl Claims {
    /// The user name of the account.
    pub(super) fn subject(&self) -> String {
        format!("{SERVICE_ACCOUNT_PREFIX}{}:{}", self.namespace, self.account.name)
    }

    pub(super) fn to_value(&self) -> Value {
        let mut own = Map::new();
        own.insert("namespace".to_owned(), json!(self.namespace));
        for (name, reference) in [
            ("node", self.node.as_ref()),
            ("pod", self.pod.as_ref()),
            ("secret", self.secret.as_ref()),
            ("serviceaccount", Some(&self.account)),
        ] {
            if let Some(reference) = reference {
                own.insert(name.to_owned(), reference.to_value());
            }
        }
        json!({
            "aud": self.audiences, "exp": self.expires_s, "iat": self.issued_s, "iss": self.issuer,
            "jti": self.id, "kubernetes.io": own, "nbf": self.not_before_s, "sub": self.subject(),
        })
    }

    /// Reads claims; `None` where anything is missing or does not fit together.
    pub(super) fn of(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let own = &value["kubernetes.io"];
        let reference = |key: &str| match &own[key] {
            Value::Null => Some(None),
            some => Reference::read(some).map(Some),
        };
        let audiences = value["aud"].as_array()?.iter();
        let claims = Self {
            issuer: text("iss")?,
            audiences: audiences
                .map(|one| one.as_str().map(str::to_owned))
                .collect::<Option<_>>()?,
            issued_s: value["iat"].as_i64()?,
            not_before_s: value["nbf"].as_i64()?,
            expires_s: value["exp"].as_i64()?,
            id: text("jti")?,
            namespace: own["namespace"].as_str()?.to_owned(),
            account: reference("serviceaccount")??,
            pod: reference("pod")?,
            secret: reference("secret")?,
            node: reference("node")?,
        };
        (text("sub")? == claims.subject()).then_some(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        let reference = |name: &str| Reference { name: name.into(), uid: format!("{name}-uid") };
        Claims {
            issuer: "i".into(),
            audiences: vec!["a".into(), "b".into()],
            issued_s: 10,
            not_before_s: 10,
            expires_s: 3617,
            id: "j".into(),
            namespace: "default".into(),
            account: reference("build"),
            pod: Some(reference("pod")),
            secret: None,
            node: Some(reference("node")),
        }
    }

    #[test]
    fn claims_have_upstreams_names_and_read_back() {
        let value = claims().to_value();
        let expected = r#"{"aud":["a","b"],"exp":3617,"iat":10,"iss":"i","jti":"j","kubernetes.io":{"namespace":"default","node":{"name":"node","uid":"node-uid"},"pod":{"name":"pod","uid":"pod-uid"},"serviceaccount":{"name":"build","uid":"build-uid"}},"nbf":10,"sub":"system:serviceaccount:default:build"}"#;
        assert_eq!(value.to_string(), expected);
        assert_eq!(Claims::of(&value), Some(claims()));
    }

    #[test]
    fn claims_that_lack_something_or_contradict_themselves_are_none() {
        let good = claims().to_value();
        for key in ["aud", "exp", "iat", "iss", "jti", "kubernetes.io", "nbf", "sub"] {
            let mut bad = good.clone();
            bad[key] = Value::Null;
            assert_eq!(Claims::of(&bad), None, "{key}");
        }
        for (pointer, value) in [
            ("/sub", json!("system:serviceaccount:default:admin")),
            ("/aud", json!("a")),
            ("/aud/0", json!(7)),
            ("/exp", json!("3617")),
            ("/exp", json!(1e300)),
            ("/kubernetes.io/namespace", json!("kube-system")),
            ("/kubernetes.io/pod", json!("pod")),
            ("/kubernetes.io/pod/uid", json!("")),
            ("/kubernetes.io/serviceaccount", json!({})),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            assert_eq!(Claims::of(&bad), None, "{pointer}");
        }
        assert_eq!(Claims::of(&json!([])), None);
    }
}
