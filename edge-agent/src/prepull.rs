//! Images that the master wants on this node before any pod names them: pulled
//! one after the other, and again later where that fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use image::Keyring;
use tokio::sync::watch;
use wire::Uid;
use wire::pod::{KeysV1, PullPolicyV1, RuntimeV1, SourceV1};
use wire::set::{BodyV1, PrepullV1, SnapshotV1};

use crate::images::{ImageRequest, Images};
use crate::registries::Registries;
use crate::set;

/// Wait after a failure; twice as long each time, at most [`AGAIN_MAX`].
const AGAIN: Duration = Duration::from_secs(10);
/// Longest wait after a failure.
const AGAIN_MAX: Duration = Duration::from_secs(300);

/// The keys of the Secrets that a pull may use, of a namespace.
#[must_use]
pub fn keyring<'a>(secrets: impl IntoIterator<Item = &'a KeysV1>) -> Keyring {
    let mut keyring = Keyring::default();
    for secret in secrets {
        let data = secret.data.iter().map(|(key, bytes)| (key.as_str(), bytes.as_slice()));
        match Keyring::from_secret(data) {
            Ok(more) => keyring.add(more),
            Err(error) => {
                let (namespace, source) = (&secret.namespace, &secret.source);
                tracing::warn!(namespace, ?source, %error, "a pull secret cannot be used");
            }
        }
    }
    keyring
}

/// What a set wants to be here, with credentials.
fn wanted(set: &SnapshotV1) -> Vec<(PrepullV1, Keyring)> {
    let secrets = set.items.iter().filter_map(|item| match &item.body {
        BodyV1::Keys(keys) => match &keys.source {
            SourceV1::Secret(name) => Some(((keys.namespace.as_str(), name.as_str()), keys)),
            SourceV1::ConfigMap(_) => None,
        },
        _ => None,
    });
    let secrets: BTreeMap<(&str, &str), &KeysV1> = secrets.collect();
    let wishes = set::node_config(set).into_iter().flat_map(|config| &config.prepull);
    let with_keys = wishes.map(|wish| {
        let found = wish.pull_secrets.iter();
        let found = found.filter_map(|name| secrets.get(&(wish.namespace.as_str(), name.as_str())));
        (wish.clone(), keyring(found.copied()))
    });
    with_keys.collect()
}

/// Follows the sets, until dropped.
pub async fn run(
    images: Arc<Registries>,
    first: Option<Arc<SnapshotV1>>,
    mut sets: watch::Receiver<Option<Arc<SnapshotV1>>>,
) {
    let mut set = first;
    loop {
        let mut open: Vec<(PrepullV1, Keyring)> = set.as_deref().map(wanted).unwrap_or_default();
        let mut again = AGAIN;
        while !open.is_empty() {
            let mut failed = Vec::new();
            for (wish, keyring) in open {
                match pull(&images, &wish, &keyring).await {
                    Ok(()) => images.prepull_problem(&wish.image, None),
                    Err(why) => {
                        tracing::warn!(
                            image = wish.image,
                            why,
                            "an image that is to be here is not"
                        );
                        images.prepull_problem(&wish.image, Some(why));
                        failed.push((wish, keyring));
                    }
                }
                if sets.has_changed().unwrap_or(false) {
                    break;
                }
            }
            open = failed;
            if open.is_empty() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(again) => again = (again * 2).min(AGAIN_MAX),
                changed = sets.changed() => {
                    if changed.is_err() { return; }
                    break;
                }
            }
        }
        if open.is_empty() && sets.changed().await.is_err() {
            return;
        }
        set = sets.borrow_and_update().clone().or(set);
        let names: Vec<String> = set
            .as_deref()
            .map(wanted)
            .unwrap_or_default()
            .into_iter()
            .map(|(wish, _)| wish.image)
            .collect();
        images.keep_prepulled(&names);
    }
}

async fn pull(images: &Registries, wish: &PrepullV1, keyring: &Keyring) -> Result<(), String> {
    let request = |runtime| ImageRequest {
        pod: Uid::default(),
        namespace: wish.namespace.clone(),
        container: wish.image.clone(),
        reference: wish.image.clone(),
        digest: String::new(),
        runtime,
        policy: PullPolicyV1::IfNotPresent,
        keyring: keyring.clone(),
        secrets: wish
            .pull_secrets
            .iter()
            .map(|name| format!("{}/{name}", wish.namespace))
            .collect(),
    };
    // Only its manifest tells what it is.
    match images.get(request(RuntimeV1::Oci), &|_| ()).await {
        Ok(_) => Ok(()),
        Err(error) if error.message.contains("is a WebAssembly module") => {
            let module = images.get(request(RuntimeV1::Wasm), &|_| ()).await;
            module.map_err(|error| error.message)?;
            images.prepulled_module(&wish.image);
            Ok(())
        }
        Err(error) => Err(error.message),
    }
}
