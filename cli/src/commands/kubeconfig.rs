//! `pinnace kubeconfig`: the context in use as a file of its own, or merged
//! into the one that all tools read.

use std::fs;
use std::os::unix::fs::DirBuilderExt;

use anyhow::{Context, anyhow, bail};
use serde_json::Value;

use crate::arguments::{Global, KubeconfigCommand};
use crate::{console, files, kubeconfig, yaml};

pub(super) fn run(global: &Global, arguments: &KubeconfigCommand) -> anyhow::Result<()> {
    let loaded = kubeconfig::load(global)?;
    let mut new = loaded.minified(global.context.as_deref())?;
    if let Some(namespace) = &global.namespace {
        new["contexts"][0]["context"]["namespace"] = namespace.as_str().into();
    }
    if !arguments.merge {
        return console::write(yaml::emit(&new));
    }
    let target = arguments
        .into
        .clone()
        .or_else(kubeconfig::default_path)
        .ok_or_else(|| anyhow!("no home folder: name a file with --into"))?;
    // A link is followed: what it points to is what people edit.
    let target = fs::canonicalize(&target).unwrap_or(target);
    let old = match fs::read_to_string(&target) {
        Ok(text) if text.trim().is_empty() => Value::Null,
        Ok(text) => serde_saphyr::from_str(&text).map_err(|_| {
            anyhow!("{} is not a kubeconfig; it is left as it is", target.display())
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Value::Null,
        Err(error) => bail!("cannot read {}: {error}", target.display()),
    };
    let merged = kubeconfig::merge(old, &new)
        .with_context(|| format!("{}, which is left as it is", target.display()))?;
    if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    files::replace(&target, yaml::emit(&merged).as_bytes())
        .with_context(|| format!("cannot write {}", target.display()))?;
    let name = new["current-context"].as_str().unwrap_or_default();
    console::note(format_args!("{}: context {name} is there and current", target.display()));
    Ok(())
}
