//! Turns what `api::validation` finds into a `Status` or warnings.

use api::resource::Resource;
use api::validation::{self, FieldError, unsupported};
use serde_json::Value;

use crate::object;
use crate::status::{Cause, Status};

/// Refuses a new object that cannot be, or returns what the user should know.
///
/// `refused` is what was found wrong before.
pub(crate) fn create(
    resource: &Resource,
    object: &Value,
    refused: Vec<FieldError>,
) -> Result<Vec<String>, Status> {
    let mut errors = validation::create(resource, object);
    errors.extend(refused);
    let unsupported = unsupported::check(resource, object);
    errors.extend(unsupported.refused);
    refuse(resource, object, &errors)?;
    Ok(unsupported.warnings)
}

/// Refuses a change that cannot be, or returns what the user should know.
pub(crate) fn update(
    resource: &Resource,
    subresource: Option<&str>,
    new: &Value,
    old: &Value,
    refused: Vec<FieldError>,
) -> Result<Vec<String>, Status> {
    let mut errors = validation::update(resource, subresource, old, new);
    errors.extend(refused);
    let mut warnings = Vec::new();
    if matches!(subresource, None | Some("ephemeralcontainers")) {
        let unsupported = unsupported::check(resource, new);
        // What was there before this version knew better stays possible to change.
        let before = unsupported::check(resource, old).refused;
        errors.extend(unsupported.refused.into_iter().filter(|error| !before.contains(error)));
        warnings = unsupported.warnings;
    }
    refuse(resource, new, &errors)?;
    Ok(warnings)
}

/// What of an accepted object is not honoured.
pub(crate) fn unsupported_warnings(resource: &Resource, object: &Value) -> Vec<String> {
    unsupported::check(resource, object).warnings
}

fn refuse(resource: &Resource, object: &Value, errors: &[FieldError]) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    let causes = errors
        .iter()
        .map(|error| Cause {
            reason: error.reason.as_str().to_owned(),
            message: error.message.clone(),
            field: error.path.clone(),
        })
        .collect();
    let name = object::meta(object, "name");
    Err(Status::invalid(resource.group, resource.kind, name, causes))
}
