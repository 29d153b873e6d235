//! Reviews: questions about the asker, answered and not stored.

use serde_json::{Value, json};

use crate::authorize::{Attributes, Authorizer, Decision};
use crate::identity::Identity;
use crate::object::text;
use crate::status::Status;

/// The answer to a review of `kind`; the question with a `status`.
pub(super) fn answer(
    kind: &str,
    mut review: Value,
    who: &Identity,
    authorizer: &dyn Authorizer,
) -> Result<Value, Status> {
    review["status"] = match kind {
        "SelfSubjectReview" => json!({"userInfo": user_info(who)}),
        "SelfSubjectAccessReview" => access(&review["spec"], who, authorizer),
        "SelfSubjectRulesReview" => authorizer.rules(who, text(&review, &["spec", "namespace"])),
        _ => return Err(Status::method_not_allowed()),
    };
    if review["metadata"].is_null() {
        review["metadata"] = json!({});
    }
    Ok(review)
}

fn user_info(who: &Identity) -> Value {
    let mut info = json!({"username": who.user, "groups": who.groups});
    if !who.uid.is_empty() {
        info["uid"] = json!(who.uid);
    }
    info
}

fn access(spec: &Value, who: &Identity, authorizer: &dyn Authorizer) -> Value {
    let decision = if spec["nonResourceAttributes"].is_object() {
        let asked = |key| text(spec, &["nonResourceAttributes", key]);
        authorizer.authorize_path(who, asked("verb"), asked("path"))
    } else {
        let asked = |key| text(spec, &["resourceAttributes", key]);
        authorizer.authorize(
            who,
            &Attributes {
                verb: asked("verb"),
                group: asked("group"),
                resource: asked("resource"),
                subresource: asked("subresource"),
                namespace: asked("namespace"),
                name: asked("name"),
                pinned_node: "",
            },
        )
    };
    match decision {
        Decision::Allow => json!({"allowed": true}),
        Decision::Deny(reason) if reason.is_empty() => json!({"allowed": false}),
        Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
    }
}
