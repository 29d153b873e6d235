//! What stands in the files of volumes that the node itself writes. Pure.

use std::borrow::Cow;

use wire::pod::{DownwardItemV1, EnvValueV1, PodV1, ProjectionV1, VolumeSourceV1, VolumeV1};

use super::keys::{self, KeyFile};
use super::{Sources, VolumeError};
use crate::env;

/// Bits of a token's file where it is given to someone.
const TOKEN_MODE: u32 = 0o600;

/// The files of a ConfigMap, Secret, downwardAPI or projected volume; of one
/// path, the last counts.
pub(super) fn of<'a>(
    pod: &PodV1,
    volume: &'a VolumeV1,
    sources: &'a Sources,
) -> Result<Vec<KeyFile<'a>>, VolumeError> {
    match &volume.source {
        VolumeSourceV1::Keys { source, items, default_mode, optional } => {
            let object = sources.keys.get(source);
            if object.is_none() && !optional {
                return Err(VolumeError::Missing(crate::pods::missing(source)));
            }
            keys::files(object, items, *default_mode, *optional)
        }
        VolumeSourceV1::Downward { items, default_mode } => {
            downward(pod, items, *default_mode, sources)
        }
        VolumeSourceV1::Projected { sources: parts, default_mode } => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(projected(pod, part, *default_mode, sources)?);
            }
            Ok(all)
        }
        _ => Ok(Vec::new()),
    }
}

fn projected<'a>(
    pod: &PodV1,
    part: &'a ProjectionV1,
    default_mode: u32,
    sources: &'a Sources,
) -> Result<Vec<KeyFile<'a>>, VolumeError> {
    match part {
        ProjectionV1::Keys { source, items, optional } => {
            let object = sources.keys.get(source);
            if object.is_none() && !optional {
                return Err(VolumeError::Missing(crate::pods::missing(source)));
            }
            keys::files(object, items, default_mode, *optional)
        }
        ProjectionV1::Downward(items) => downward(pod, items, default_mode, sources),
        ProjectionV1::Token { audience, expiration_s, path } => {
            // Those that are missing are waited for before: it went since.
            let Some(token) = sources.tokens.get(&(audience.clone(), *expiration_s)) else {
                return Ok(Vec::new());
            };
            let user = single_user(pod);
            // As the kubelet has it: readable by whom it is given to, else by all.
            let is_given = user.is_some() || pod.security.fs_group.is_some();
            Ok(vec![KeyFile {
                path: path.clone(),
                bytes: Cow::Borrowed(token.as_bytes()),
                mode: if is_given { TOKEN_MODE } else { default_mode },
                user,
            }])
        }
    }
}

/// The user that every container runs as, if the pod says so.
fn single_user(pod: &PodV1) -> Option<u32> {
    let mut users = pod.all_containers().map(|container| container.security.run_as_user);
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first)
}

fn downward<'a>(
    pod: &PodV1,
    items: &[DownwardItemV1],
    default_mode: u32,
    sources: &Sources,
) -> Result<Vec<KeyFile<'a>>, VolumeError> {
    let file = |item: &DownwardItemV1| {
        let text = match &item.value {
            EnvValueV1::Field(path) if path == "metadata.labels" => map(&pod.labels),
            EnvValueV1::Field(path) if path == "metadata.annotations" => map(&pod.annotations),
            EnvValueV1::Field(path) => {
                env::field(pod, &sources.facts, path).map_err(VolumeError::Missing)?
            }
            EnvValueV1::Resource { container, resource, divisor_millis } => {
                env::resource(pod, container, resource, *divisor_millis, &sources.facts)
                    .map_err(VolumeError::Missing)?
            }
            EnvValueV1::Literal(_) | EnvValueV1::Key { .. } => String::new(),
        };
        Ok(KeyFile {
            path: item.path.clone(),
            bytes: Cow::Owned(text.into_bytes()),
            mode: item.mode.unwrap_or(default_mode),
            user: None,
        })
    };
    items.iter().map(file).collect()
}

/// `key="value"`, one a line, quoted as the kubelet quotes them.
fn map(pairs: &[(String, String)]) -> String {
    let mut sorted: Vec<&(String, String)> = pairs.iter().collect();
    sorted.sort();
    let lines: Vec<String> =
        sorted.iter().map(|(key, value)| format!("{key}=\"{}\"", quoted(value))).collect();
    lines.join("\n")
}

/// Go's `%q`, without the quotes.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}
