//! The shape of what a client sends: unknown fields, fields given twice, wrong
//! types. What a field may *contain* is validation's business.

use api::resource::Resource;
use api::schema::{self, TypeRef, prune_unknown, strict, types};
use serde_json::Value;

use crate::options::FieldValidation;
use crate::status::Status;

/// The schema of a resource's objects.
pub(crate) fn type_of(resource: &Resource) -> Option<TypeRef> {
    schema::table().kind(resource.group, resource.version, resource.kind)
}

/// Makes `object` what its type allows, or says why it cannot be; returns warnings.
///
/// A wrong type is always refused. Unknown fields, and `duplicates` found in
/// the text, are refused, warned about or dropped, as the client asked.
pub(crate) fn check(
    group: &str,
    version: &str,
    kind: &str,
    object: &mut Value,
    validation: FieldValidation,
    duplicates: &[String],
) -> Result<Vec<String>, Status> {
    let Some(of) = schema::table().kind(group, version, kind) else {
        return Err(Status::internal(format!("{kind} in {group}/{version} has no schema")));
    };
    if !object.is_object() {
        return Err(Status::undecodable(version, kind, "it is not a JSON object"));
    }
    if let Some(error) = types::check(of, object).first() {
        return Err(Status::undecodable(version, kind, &error.to_string()));
    }
    let mut problems = Vec::new();
    if validation != FieldValidation::Ignore {
        problems.extend(duplicates.iter().cloned());
        problems.extend(strict::check(of, object).iter().map(ToString::to_string));
    }
    if validation == FieldValidation::Strict && !problems.is_empty() {
        let problem = format!("strict decoding error: {}", problems.join(", "));
        return Err(Status::undecodable(version, kind, &problem));
    }
    prune_unknown(of, object);
    Ok(problems)
}
