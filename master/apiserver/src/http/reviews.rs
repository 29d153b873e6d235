//! Reviews: questions about the asker or a token, answered and not stored.

use api::resource::{Resource, Verb};
use serde_json::{Value, json};

use crate::authorize::{Attributes, Authorizer, Decision};
use crate::identity::Identity;
use crate::object::{text, texts};
use crate::status::Status;
use crate::verbs::{Api, Target};

/// The answer to a review; the question with a `status`.
pub(super) fn answer(
    resource: &'static Resource,
    mut review: Value,
    who: &Identity,
    api: &Api,
) -> Result<Value, Status> {
    let authorizer = &**api.authorizer();
    review["status"] = match resource.kind {
        "TokenReview" => {
            // Who may ask this may try out tokens.
            api.authorize(who, Verb::Create, &Target::object(resource, "", ""))?;
            token(&review["spec"], api)?
        }
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

/// Whose token it is, and for which of the audiences that were asked for.
fn token(spec: &Value, api: &Api) -> Result<Value, Status> {
    let token = text(spec, &["token"]);
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> =
        texts(spec, &["audiences"]).into_iter().map(str::to_owned).collect();
    Ok(match api.authenticate_token(token, &audiences) {
        Ok((user, audiences)) => {
            json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
        }
        Err(error) => json!({"authenticated": false, "user": {}, "error": error.to_string()}),
    })
}

fn user_info(who: &Identity) -> Value {
    let mut info = json!({"username": who.user, "groups": who.groups});
    if !who.uid.is_empty() {
        info["uid"] = json!(who.uid);
    }
    if !who.extra.is_empty() {
        info["extra"] = json!(who.extra);
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
