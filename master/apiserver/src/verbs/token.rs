//! `serviceaccounts/token`: what `kubectl create token` asks for.

use api::resource::{self, Verb};
use serde_json::{Value, json};

use super::{Api, Target};
use crate::fields;
use crate::identity::Identity;
use crate::object;
use crate::options::WriteOptions;
use crate::status::{Cause, Status};
use crate::tokens::{EXPIRATION_S, ISSUER, TokenIssuer, TokenWish};

/// How long a token is good where nothing is said.
const DEFAULT_S: i64 = 3600;
/// Most audiences of a token, and bytes of one.
const AUDIENCES_MAX: usize = 64;
const AUDIENCE_BYTES_MAX: usize = 1024;

impl Api {
    /// Says what issues tokens. The first one stays.
    pub fn set_token_issuer(&self, issuer: TokenIssuer) {
        let _ = self.inner.tokens.set(issuer);
    }

    pub(crate) fn token_issuer(&self) -> Option<&TokenIssuer> {
        self.inner.tokens.get()
    }

    /// Answers a `TokenRequest` for a ServiceAccount.
    ///
    /// # Errors
    /// `NotFound` for the account or what the token is to be bound to, `Conflict`
    /// for another uid, `Invalid` for its duration.
    pub fn create_token(
        &self,
        who: &Identity,
        target: &Target<'_>,
        mut request: Value,
        options: &WriteOptions,
    ) -> Result<(Value, Vec<String>), Status> {
        let target = target.subresource("token");
        self.authorize(who, Verb::Create, &target)?;
        let (group, version, kind) = ("authentication.k8s.io", "v1", "TokenRequest");
        let (validation, duplicates) = (options.field_validation, &options.duplicate_fields);
        let warnings = fields::check(group, version, kind, &mut request, validation, duplicates)?;
        for (field, expected) in [("name", target.name), ("namespace", target.namespace)] {
            let given = object::meta(&request, field);
            if !given.is_empty() && given != expected {
                return Err(Status::bad_request(format!(
                    "metadata.{field}: \"{given}\" does not match the service account's \
                     \"{expected}\""
                )));
            }
        }
        let invalid = |field: &str, message: String| {
            let cause = Cause {
                reason: "FieldValueInvalid".to_owned(),
                message: format!("Invalid value: {message}"),
                field: field.to_owned(),
            };
            Status::invalid(group, kind, target.name, vec![cause])
        };
        let expiration_s = request["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_S);
        if expiration_s < *EXPIRATION_S.start() {
            let why = "may not specify a duration less than 10 minutes";
            return Err(invalid("spec.expirationSeconds", format!("{expiration_s}: {why}")));
        }
        if expiration_s > 1 << 32 {
            let why = "may not specify a duration larger than 2^32 seconds";
            return Err(invalid("spec.expirationSeconds", format!("{expiration_s}: {why}")));
        }
        let audiences: Vec<String> = object::texts(&request, &["spec", "audiences"])
            .into_iter()
            .map(str::to_owned)
            .collect();
        let is_long = |audience: &String| audience.len() > AUDIENCE_BYTES_MAX;
        if audiences.len() > AUDIENCES_MAX || audiences.iter().any(is_long) {
            let why = format!(
                "at most {AUDIENCES_MAX} audiences of at most {AUDIENCE_BYTES_MAX} bytes each"
            );
            return Err(invalid("spec.audiences", why));
        }
        let bound = self.bound_object(&target, &request["spec"]["boundObjectRef"])?;
        let issued = self.issue_token(&TokenWish {
            namespace: target.namespace,
            account: target.name,
            audiences: &audiences,
            expiration_s,
            bound: bound.as_ref(),
        })?;
        let audiences = if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences };
        request["apiVersion"] = json!(format!("{group}/{version}"));
        request["kind"] = json!(kind);
        request["metadata"] = json!({
            "name": target.name, "namespace": target.namespace,
            "creationTimestamp": object::now_text(),
        });
        request["spec"]["audiences"] = json!(audiences);
        request["spec"]["expirationSeconds"] = json!(issued.lifetime_s);
        request["status"] = json!({
            "token": if options.dry_run { "" } else { issued.token.as_str() },
            "expirationTimestamp": object::time_text(issued.expires),
        });
        Ok((request, warnings))
    }

    /// The object that a token is to end with, which must exist.
    fn bound_object(
        &self,
        account: &Target<'_>,
        reference: &Value,
    ) -> Result<Option<Value>, Status> {
        if reference.is_null() {
            return Ok(None);
        }
        let text = |key: &str| object::text(reference, &[key]);
        let (version, kind, name) = (text("apiVersion"), text("kind"), text("name"));
        let namespace = match kind {
            "Pod" | "Secret" => account.namespace,
            "Node" => "",
            _ => "?",
        };
        if !matches!(version, "" | "v1") || namespace == "?" {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount \"{}\" to object type of {version}, \
                 Kind={kind}",
                account.name
            )));
        }
        let resource = resource::by_kind("", kind).expect("in the table of resources");
        let target = Target::object(resource, namespace, name);
        let (found, _) = self.read(&target)?.ok_or_else(|| target.not_found())?;
        if kind == "Pod" && object::text(&found, &["spec", "serviceAccountName"]) != account.name {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount \"{}\" to pod running with different \
                 serviceaccount name.",
                account.name
            )));
        }
        let uid = text("uid");
        if !uid.is_empty() && uid != object::meta(&found, "uid") {
            return Err(Status::conflict(
                resource,
                name,
                &format!(
                    "the UID in the bound object reference ({uid}) does not match the UID in \
                     record. The object might have been deleted and then recreated"
                ),
            ));
        }
        Ok(Some(found))
    }
}
