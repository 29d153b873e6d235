//! Lowers a pod's volumes.

use std::collections::BTreeSet;

use api::view::{DownwardItem, KeyToPath, Projection, Volume};
use wire::pod::{
    DownwardItemV1, HostPathKindV1, KeyPathV1, ProjectionV1, SourceV1, VolumeSourceV1, VolumeV1,
};

use super::{LowerError, container};

/// Permission bits of a volume's files where nothing else is said.
const DEFAULT_MODE: u32 = 0o644;
/// Seconds a projected token is good for where nothing is said.
const TOKEN_S: u32 = 3600;

pub(super) fn lower(
    volume: &Volume,
    sources: &mut BTreeSet<SourceV1>,
) -> Result<VolumeV1, LowerError> {
    let mut keys = |source: SourceV1, list: &[KeyToPath], mode: Option<u32>, optional: bool| {
        sources.insert(source.clone());
        let default_mode = mode.unwrap_or(DEFAULT_MODE);
        VolumeSourceV1::Keys { source, items: items(list), default_mode, optional }
    };
    let source = if let Some(map) = &volume.config_map {
        let source = SourceV1::ConfigMap(map.name.clone());
        keys(source, &map.items, map.default_mode, map.optional)
    } else if let Some(secret) = &volume.secret {
        let source = SourceV1::Secret(secret.secret_name.clone());
        keys(source, &secret.items, secret.default_mode, secret.optional)
    } else if let Some(empty) = &volume.empty_dir {
        let limit = empty.size_limit.map_or(0, api::quantity::Quantity::units);
        VolumeSourceV1::EmptyDir {
            memory: empty.medium == "Memory",
            limit_bytes: u64::try_from(limit).unwrap_or(0),
        }
    } else if let Some(host) = &volume.host_path {
        VolumeSourceV1::HostPath { path: host.path.clone(), kind: host_path_kind(&host.kind) }
    } else if let Some(downward) = &volume.downward_api {
        VolumeSourceV1::Downward {
            items: downward_items(&volume.name, &downward.items)?,
            default_mode: downward.default_mode.unwrap_or(DEFAULT_MODE),
        }
    } else if let Some(projected) = &volume.projected {
        VolumeSourceV1::Projected {
            sources: projected
                .sources
                .iter()
                .map(|source| projection(&volume.name, source, sources))
                .collect::<Result<_, _>>()?,
            default_mode: projected.default_mode.unwrap_or(DEFAULT_MODE),
        }
    } else {
        // A kind that nodes do not have yet: admission has warned that it stays empty.
        VolumeSourceV1::EmptyDir { memory: false, limit_bytes: 0 }
    };
    Ok(VolumeV1 { name: volume.name.clone(), source })
}

fn items(list: &[KeyToPath]) -> Vec<KeyPathV1> {
    let lower = |item: &KeyToPath| KeyPathV1 {
        key: item.key.clone(),
        path: item.path.clone(),
        mode: item.mode,
    };
    list.iter().map(lower).collect()
}

fn projection(
    volume: &str,
    projection: &Projection,
    sources: &mut BTreeSet<SourceV1>,
) -> Result<ProjectionV1, LowerError> {
    let mut keys = |source: SourceV1, list: &[KeyToPath], optional: bool| {
        sources.insert(source.clone());
        ProjectionV1::Keys { source, items: items(list), optional }
    };
    Ok(if let Some(map) = &projection.config_map {
        keys(SourceV1::ConfigMap(map.name.clone()), &map.items, map.optional)
    } else if let Some(secret) = &projection.secret {
        keys(SourceV1::Secret(secret.name.clone()), &secret.items, secret.optional)
    } else if let Some(token) = &projection.service_account_token {
        let seconds = token.expiration_seconds.unwrap_or_else(|| TOKEN_S.into());
        ProjectionV1::Token {
            audience: token.audience.clone(),
            // The API allows 2^32: no token is that long-lived.
            expiration_s: u32::try_from(seconds).unwrap_or(u32::MAX),
            path: token.path.clone(),
        }
    } else {
        let downward = projection.downward_api.as_ref().map_or(&[][..], |d| &d.items);
        ProjectionV1::Downward(downward_items(volume, downward)?)
    })
}

fn downward_items(volume: &str, items: &[DownwardItem]) -> Result<Vec<DownwardItemV1>, LowerError> {
    let lower = |item: &DownwardItem| {
        let value = container::downward(item.field_ref.as_ref(), item.resource_field_ref.as_ref());
        Ok(DownwardItemV1 {
            path: item.path.clone(),
            mode: item.mode,
            value: value.ok_or_else(|| LowerError::Downward {
                volume: volume.to_owned(),
                path: item.path.clone(),
            })?,
        })
    };
    items.iter().map(lower).collect()
}

pub(super) fn host_path_kind(kind: &str) -> HostPathKindV1 {
    match kind {
        "DirectoryOrCreate" => HostPathKindV1::DirectoryOrCreate,
        "Directory" => HostPathKindV1::Directory,
        "FileOrCreate" => HostPathKindV1::FileOrCreate,
        "File" => HostPathKindV1::File,
        "Socket" => HostPathKindV1::Socket,
        "CharDevice" => HostPathKindV1::CharDevice,
        "BlockDevice" => HostPathKindV1::BlockDevice,
        _ => HostPathKindV1::Any,
    }
}
