//! `pinnace image`: builds images, and brings them to registries and to nodes.
//!
//! The master's registry is spoken to as any other, with a password that is made
//! for the occasion; so whatever the kubeconfig proves who we are with, works.

mod build;
mod prepull;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use image::layout::Layout;
use image::registry::{HostRule, Upload};
use image::{Credential, Digest, Keyring, MASTER_REGISTRY, Reference, Registry, RegistryConfig};
use serde_json::{Value, json};

use crate::arguments::Global;
use crate::arguments::image::{Image, Reach};
use crate::cluster::{Cluster, Content};
use crate::{console, table, text};

/// Where the master makes passwords.
const TOKEN_PATH: &str = "/pinnace/v1/registry/token";
/// How long the password for one push is good.
const PUSH_LIFE: Duration = Duration::from_secs(6 * 3600);
/// Most entries of an answer of the registry that are followed.
const PAGES_MAX: usize = 10_000;

pub(super) async fn run(global: &Global, command: &Image) -> anyhow::Result<()> {
    match command {
        Image::Build(build) => build::run(global, build).await,
        Image::Push { source, name, from, reach } => {
            push(global, source, name, from.as_deref(), reach).await
        }
        Image::Ls { name } => list(&Cluster::connect(global).await?, name.as_deref()).await,
        Image::Rm { names } => remove(&Cluster::connect(global).await?, names).await,
        Image::Login { life } => login(&Cluster::connect(global).await?, *life).await,
        Image::Prepull(prepull) => prepull::run(&Cluster::connect(global).await?, prepull).await,
    }
}

/// Reads a name; one without a registry is the master's.
fn reference(name: &str) -> anyhow::Result<Reference> {
    let first = name.split('/').next().unwrap_or_default();
    let has_registry = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let full = if has_registry { name.to_owned() } else { format!("{MASTER_REGISTRY}/{name}") };
    Ok(full.parse::<Reference>()?)
}

/// A client of the registry that an image is in.
async fn registry(global: &Global, image: &Reference, reach: &Reach) -> anyhow::Result<Registry> {
    if image.registry == MASTER_REGISTRY {
        return masters(&Cluster::connect(global).await?).await;
    }
    let mut config = RegistryConfig::default();
    if reach.insecure {
        config.insecure_http.push(image.registry.clone());
    }
    if let Some(path) = &reach.registry_ca {
        config.ca_pem.push(image::settings::read_ca(path).context("--registry-ca")?);
    }
    if let Some(path) = docker_config() {
        config.keyring = image::settings::read_docker_config(&path)?;
    }
    Ok(Registry::new(config))
}

/// Where `docker login` keeps passwords, if there is such a file.
fn docker_config() -> Option<std::path::PathBuf> {
    let folder = match std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
        Some(folder) => folder.into(),
        None => Path::new(&std::env::var_os("HOME")?).join(".docker"),
    };
    Some(folder.join("config.json")).filter(|path| path.is_file())
}

/// A client of the master's own registry.
async fn masters(cluster: &Cluster) -> anyhow::Result<Registry> {
    let (user, password) = password(cluster, PUSH_LIFE).await?;
    let address = cluster
        .server
        .strip_prefix("https://")
        .filter(|rest| !rest.contains('/'))
        .ok_or_else(|| anyhow!("the server {} is not https://HOST[:PORT]", cluster.server))?;
    let mut ca_pem = String::new();
    for der in &cluster.authorities {
        let body = STANDARD.encode(der);
        ca_pem
            .push_str(&format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"));
    }
    let rule = HostRule {
        host: MASTER_REGISTRY.to_owned(),
        address: Some(address.to_owned()),
        ca_pem: ca_pem.into_bytes(),
        ..HostRule::default()
    };
    let keyring = Keyring::single(MASTER_REGISTRY, Credential::Basic { user, password });
    let hosts = vec![rule];
    Ok(Registry::new(RegistryConfig { hosts, keyring, ..RegistryConfig::default() }))
}

async fn password(cluster: &Cluster, life: Duration) -> anyhow::Result<(String, String)> {
    let path = format!("{TOKEN_PATH}?seconds={}", life.as_secs());
    let answer = cluster.write(Method::POST, &path, Content::Json, &json!({})).await;
    let answer = answer.context("cannot get a password for the master's registry")?.body;
    let text = |key: &str| answer[key].as_str().map(str::to_owned);
    match (text("user"), text("password")) {
        (Some(user), Some(password)) => Ok((user, password)),
        _ => bail!("the master gave no password: bring it to this program's version"),
    }
}

async fn login(cluster: &Cluster, life: Duration) -> anyhow::Result<()> {
    let (user, password) = password(cluster, life).await?;
    let host = cluster.server.trim_start_matches("https://");
    console::note(format_args!(
        "password of {user} for the registry at {host}, good for {}",
        text::age(i64::try_from(life.as_secs()).unwrap_or(i64::MAX))
    ));
    console::line(password)
}

async fn push(
    global: &Global,
    source: &Path,
    name: &str,
    from: Option<&str>,
    reach: &Reach,
) -> anyhow::Result<()> {
    let image = reference(name)?;
    let layout = Layout::open(source)?;
    let registry = registry(global, &image, reach).await?;
    let digest = layout.push(&registry, &image, from, &told).await?;
    done(&image, digest)
}

/// One line for each blob, on standard error.
fn told(digest: Digest, size: u64, upload: Upload) {
    let what = match upload {
        Upload::Present => "is there",
        Upload::Sent => "sent",
    };
    console::note(format_args!("{}… {} {what}", &digest.to_string()[..19], text::bytes(size)));
}

/// The name for manifests, on standard output.
fn done(image: &Reference, digest: Digest) -> anyhow::Result<()> {
    let full = Reference { digest: None, ..image.clone() };
    console::line(format_args!("{full}@{digest}"))
}

async fn list(cluster: &Cluster, name: Option<&str>) -> anyhow::Result<()> {
    let names = match name {
        Some(name) => vec![reference(name)?.repository],
        None => all(cluster, "/v2/_catalog", "repositories").await?,
    };
    let registry = masters(cluster).await?;
    let mut rows = Vec::new();
    for name in names {
        let tags = all(cluster, &format!("/v2/{name}/tags/list"), "tags").await?;
        for tag in tags {
            let image: Reference = format!("{MASTER_REGISTRY}/{name}:{tag}").parse()?;
            // A tag may go while it is listed.
            let Ok((digest, bytes)) = registry.manifest_bytes(&image).await else { continue };
            let (size, platforms) = describe(&registry, &image, &bytes).await;
            let digest = digest.to_string()[..19].to_owned();
            rows.push([
                format!("{MASTER_REGISTRY}/{name}"),
                tag,
                digest,
                text::bytes(size),
                platforms,
            ]);
        }
    }
    console::write(table::simple(["REPOSITORY", "TAG", "DIGEST", "SIZE", "PLATFORMS"], rows))
}

/// What an image's layers take, and the machines it is for.
async fn describe(registry: &Registry, image: &Reference, bytes: &[u8]) -> (u64, String) {
    let size_of = |manifest: &Value| -> u64 {
        let layers = manifest["layers"].as_array().into_iter().flatten();
        layers.filter_map(|layer| layer["size"].as_u64()).sum()
    };
    let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let Some(entries) = document["manifests"].as_array() else {
        let kind = document["config"]["mediaType"].as_str().unwrap_or_default();
        let platform = if kind.contains("wasm") { "wasm" } else { "" };
        return (size_of(&document), platform.to_owned());
    };
    let (mut size, mut platforms) = (0, Vec::new());
    for entry in entries {
        let of = |key: &str| entry["platform"][key].as_str().unwrap_or_default();
        let platform = [of("os"), of("architecture"), of("variant")].join("/");
        platforms.push(platform.trim_matches('/').to_owned());
        let digest = entry["digest"].as_str().and_then(|digest| digest.parse::<Digest>().ok());
        if let Some(digest) = digest
            && let Ok((_, bytes)) = registry.manifest_bytes(&image.at(digest)).await
        {
            size += size_of(&serde_json::from_slice(&bytes).unwrap_or_default());
        }
    }
    (size, platforms.join(","))
}

/// All pages of a list.
async fn all(cluster: &Cluster, path: &str, key: &str) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for _ in 0..PAGES_MAX {
        let last = names.last().map(|last| format!("?last={last}")).unwrap_or_default();
        let page = cluster.get(&format!("{path}{last}")).await?;
        let page: Vec<String> = page[key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect();
        if page.is_empty() {
            break;
        }
        names.extend(page);
    }
    Ok(names)
}

async fn remove(cluster: &Cluster, names: &[String]) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    for name in names {
        if let Err(error) = remove_one(cluster, name).await {
            failures.push(error);
        }
    }
    console::all(failures)
}

async fn remove_one(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let image = reference(name)?;
    if image.registry != MASTER_REGISTRY {
        bail!("{image}: images of other registries are removed there");
    }
    let wanted = match (&image.digest, &image.tag) {
        (Some(digest), _) => digest.to_string(),
        // A tag that nobody wrote is not removed.
        (None, Some(tag)) if name.rsplit('/').next().unwrap_or_default().contains(':') => {
            tag.clone()
        }
        (None, _) => bail!("{name}: say which: NAME:TAG or NAME@sha256:…"),
    };
    let path = format!("/v2/{}/manifests/{wanted}", image.repository);
    cluster.delete_quietly(&path).await.with_context(|| image.to_string())?;
    console::note(format_args!("{image} removed"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_registry_is_the_masters() {
        for (name, full) in [
            ("app:v1", "pinnace.local/app:v1"),
            ("team/app", "pinnace.local/team/app:latest"),
            ("a.example.com/app:v1", "a.example.com/app:v1"),
            ("localhost/app", "localhost/app:latest"),
            ("10.0.0.1:5000/app", "10.0.0.1:5000/app:latest"),
        ] {
            assert_eq!(reference(name).unwrap().to_string(), full);
        }
        reference("App:v1").unwrap_err();
    }
}
