//! Which cluster, as whom: kubeconfig files, read and merged as `kubectl` does.
//!
//! `--kubeconfig FILE` stands alone; else the files of `KUBECONFIG`, separated
//! by colons, of which the first to say something wins and missing ones are
//! skipped; else `~/.kube/config`; else, on a board and for root, that of the board's
//! own API.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use crate::arguments::Global;

/// What was read, and where from.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Kubeconfig,
    /// The files, for messages.
    pub(crate) source: String,
}

/// `~/.kube/config`, where there is a home.
pub(crate) fn default_path() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(Path::new(&home).join(".kube/config"))
}

/// Where an agent keeps the kubeconfig of its own API, which only root can read.
const BOARD: &str = "/run/pinnace/kubeconfig";

/// The board's own, if this is a board and we may.
fn of_board(path: &Path) -> Option<anyhow::Result<Loaded>> {
    std::fs::File::open(path).ok()?;
    Some(load_files(&[path.to_owned()], true))
}

/// Reads what the arguments and the environment name.
pub(crate) fn load(global: &Global) -> anyhow::Result<Loaded> {
    if let Some(path) = &global.kubeconfig {
        return load_files(std::slice::from_ref(path), true);
    }
    let paths = listed(std::env::var_os("KUBECONFIG").as_deref());
    if !paths.is_empty() {
        return load_files(&paths, false).context("KUBECONFIG");
    }
    let path = default_path();
    if !path.as_ref().is_some_and(|path| path.exists())
        && let Some(loaded) = of_board(Path::new(BOARD))
    {
        return loaded;
    }
    let path =
        path.ok_or_else(|| anyhow!("no kubeconfig: name one with --kubeconfig or KUBECONFIG"))?;
    if !path.exists() {
        bail!(
            "no kubeconfig: {} does not exist; name one with --kubeconfig or KUBECONFIG (the \
             master keeps one in its data folder, admin.kubeconfig)",
            path.display()
        );
    }
    load_files(&[path], true)
}

/// The files that `KUBECONFIG` names.
fn listed(variable: Option<&OsStr>) -> Vec<PathBuf> {
    let Some(variable) = variable else { return Vec::new() };
    std::env::split_paths(variable).filter(|path| !path.as_os_str().is_empty()).collect()
}

fn load_files(paths: &[PathBuf], must_exist: bool) -> anyhow::Result<Loaded> {
    let mut config = Kubeconfig::default();
    let mut sources = Vec::new();
    for path in paths {
        if !must_exist && !path.exists() {
            continue;
        }
        config = read(path).and_then(|next| {
            config.merge(next).with_context(|| format!("{} does not fit", path.display()))
        })?;
        sources.push(path.display().to_string());
    }
    if sources.is_empty() {
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        bail!("none of these files exists: {}", names.join(", "));
    }
    Ok(Loaded { config, source: sources.join(", ") })
}

fn read(path: &Path) -> anyhow::Result<Kubeconfig> {
    // Not through its own message: that one could show a part of the file, and so of a key.
    let file = std::fs::metadata(path)
        .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
    if file.is_dir() || file.len() > 16 << 20 {
        bail!("{} is not a kubeconfig", path.display());
    }
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
    if text.trim().is_empty() {
        return Ok(Kubeconfig::default());
    }
    // By way of a `Value`: reading YAML into kube's many types would cost the
    // program half a megabyte.
    let mut value: Value = serde_saphyr::from_str(&text).map_err(|error| {
        let place = error.location().map(|at| format!(", line {}", at.line()));
        anyhow!("{}{}: not a kubeconfig", path.display(), place.unwrap_or_default())
    })?;
    resolve_paths(&mut value, path.parent().unwrap_or_else(|| Path::new("")));
    serde_json::from_value(value).map_err(|error| {
        // A message about a value would show it.
        let kind = if error.to_string().starts_with("missing field") {
            error.to_string()
        } else {
            "a field has the wrong type".to_owned()
        };
        anyhow!("{}: not a kubeconfig: {kind}", path.display())
    })
}

/// Files that a kubeconfig names are relative to its own folder.
fn resolve_paths(config: &mut Value, folder: &Path) {
    let resolve = |value: &mut Value| {
        if let Some(path) = value.as_str().filter(|path| !path.is_empty()) {
            *value = folder.join(path).to_string_lossy().into();
        }
    };
    for (list, entry, keys) in [
        ("clusters", "cluster", &["certificate-authority"][..]),
        ("users", "user", &["client-certificate", "client-key", "tokenFile"]),
    ] {
        let Some(entries) = config.get_mut(list).and_then(Value::as_array_mut) else { continue };
        for entry in entries.iter_mut().filter_map(|one| one.get_mut(entry)) {
            for key in keys {
                if let Some(value) = entry.get_mut(key) {
                    resolve(value);
                }
            }
            // A plugin's bare name is looked for in PATH.
            if let Some(command) = entry.get_mut("exec").and_then(|exec| exec.get_mut("command"))
                && command.as_str().is_some_and(|command| command.contains('/'))
            {
                resolve(command);
            }
        }
    }
}

impl Loaded {
    /// The name of the context that is meant.
    pub(crate) fn context_name(&self, wanted: Option<&str>) -> anyhow::Result<String> {
        let known = || {
            let names: Vec<&str> = self.config.contexts.iter().map(|c| c.name.as_str()).collect();
            if names.is_empty() { "it has none".to_owned() } else { names.join(", ") }
        };
        let current = self.config.current_context.as_deref().filter(|name| !name.is_empty());
        let Some(name) = wanted.or(current) else {
            bail!(
                "{}: no current context: choose one with --context (there: {})",
                self.source,
                known()
            )
        };
        let found = self.config.contexts.iter().any(|c| c.name == name && c.context.is_some());
        if !found {
            bail!("{}: no context named \"{name}\" (there: {})", self.source, known());
        }
        Ok(name.to_owned())
    }

    /// How to connect.
    pub(crate) async fn connection(&self, context: Option<&str>) -> anyhow::Result<Config> {
        let context = self.context_name(context)?;
        let options = KubeConfigOptions { context: Some(context.clone()), ..Default::default() };
        let mut config = Config::from_custom_kubeconfig(self.config.clone(), &options)
            .await
            .with_context(|| format!("{}, context {context}", self.source))?;
        let host = config.cluster_url.host().unwrap_or_default();
        let https = config.cluster_url.scheme_str() == Some("https");
        let no_proxy = ["NO_PROXY", "no_proxy"].map(|name| std::env::var(name).unwrap_or_default());
        if !self.names_proxy(&context) && (!https || bypasses(host, &no_proxy.join(","))) {
            config.proxy_url = None;
        }
        // A retry of many minutes is for controllers; people want to be told.
        config.default_retry = false;
        Ok(config)
    }

    fn names_proxy(&self, context: &str) -> bool {
        let context = self.config.contexts.iter().find(|c| c.name == context);
        let Some(context) = context.and_then(|c| c.context.as_ref()) else { return false };
        let cluster = self.config.clusters.iter().find(|c| c.name == context.cluster);
        let proxy = cluster.and_then(|c| c.cluster.as_ref()).and_then(|c| c.proxy_url.as_ref());
        proxy.is_some_and(|proxy| !proxy.is_empty())
    }

    /// One context with all it needs, keys included, as a kubeconfig of its own.
    pub(crate) fn minified(&self, context: Option<&str>) -> anyhow::Result<Value> {
        let name = self.context_name(context)?;
        let whole = serde_json::to_value(&self.config).context("cannot rewrite the kubeconfig")?;
        let find = |list: &str, name: &str| {
            let entries = whole[list].as_array().into_iter().flatten();
            entries.clone().find(|entry| entry["name"] == name).cloned()
        };
        let context = find("contexts", &name).unwrap_or_default();
        let cluster_name = context["context"]["cluster"].as_str().unwrap_or_default().to_owned();
        let user_name = context["context"]["user"].as_str().unwrap_or_default().to_owned();
        let mut cluster = find("clusters", &cluster_name)
            .ok_or_else(|| anyhow!("{}: no cluster named \"{cluster_name}\"", self.source))?;
        embed(&mut cluster["cluster"], "certificate-authority", "certificate-authority-data")?;
        let mut users = Vec::new();
        if let Some(mut user) = find("users", &user_name) {
            embed(&mut user["user"], "client-certificate", "client-certificate-data")?;
            embed(&mut user["user"], "client-key", "client-key-data")?;
            users.push(user);
        }
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "contexts": [context],
            "current-context": name,
            "users": users,
        }))
    }
}

/// Puts the content of the file that `entry[file]` names into `entry[data]`.
fn embed(entry: &mut Value, file: &str, data: &str) -> anyhow::Result<()> {
    let Some(map) = entry.as_object_mut() else { return Ok(()) };
    let path = map.shift_remove(file);
    if map.get(data).and_then(Value::as_str).is_some_and(|data| !data.is_empty()) {
        return Ok(());
    }
    if let Some(path) = path.as_ref().and_then(Value::as_str).filter(|path| !path.is_empty()) {
        let bytes = std::fs::read(path).with_context(|| format!("{file}: cannot read {path}"))?;
        map.insert(data.to_owned(), STANDARD.encode(bytes).into());
    }
    Ok(())
}

/// Adds what `new` names to `old`, in place of entries of the same names, and
/// makes its context the current one. What `old` says beside stays as it is.
pub(crate) fn merge(old: Value, new: &Value) -> anyhow::Result<Value> {
    let mut merged = match old {
        Value::Null => json!({"apiVersion": "v1", "kind": "Config"}),
        Value::Object(_) => old,
        _ => bail!("it is not a kubeconfig"),
    };
    for list in ["clusters", "contexts", "users"] {
        let mut entries = match merged[list].take() {
            Value::Null => Vec::new(),
            Value::Array(entries) => entries,
            _ => bail!("{list} is not a list"),
        };
        for entry in new[list].as_array().into_iter().flatten() {
            match entries.iter_mut().find(|old| old["name"] == entry["name"]) {
                Some(old) => *old = entry.clone(),
                None => entries.push(entry.clone()),
            }
        }
        merged[list] = entries.into();
    }
    merged["current-context"] = new["current-context"].clone();
    Ok(merged)
}

/// Whether `host` is reached without the proxy of the environment: this machine,
/// and what `NO_PROXY` lists (names with their subdomains, addresses, networks, `*`).
fn bypasses(host: &str, no_proxy: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    no_proxy.split(',').map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let domain = entry.trim_start_matches('.');
        entry == "*"
            || address.is_some_and(|address| is_within(address, entry))
            || host == domain
            || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    })
}

/// Whether `address` is in the network `cidr`.
fn is_within(address: IpAddr, cidr: &str) -> bool {
    let Some((network, length)) = cidr.split_once('/') else { return false };
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) if length <= 32 => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            u32::from(network) & mask == u32::from(address) & mask
        }
        (IpAddr::V6(network), IpAddr::V6(address)) if length <= 128 => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            u128::from(network) & mask == u128::from(address) & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::yaml;

    fn config(name: &str, server: &str, current: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {current}\n\
             clusters: [{{name: {name}, cluster: {{server: '{server}'}}}}]\n\
             contexts: [{{name: {name}, context: {{cluster: {name}, user: {name}, namespace: n-{name}}}}}]\n\
             users: [{{name: {name}, user: {{token: t-{name}}}}}]\n"
        )
    }

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[tokio::test]
    async fn several_files_are_merged_and_the_first_word_counts() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [
            dir.path().join("missing"),
            write(dir.path(), "one", &config("one", "https://one:6443", "one")),
            write(dir.path(), "two", &config("two", "https://two:6443", "two")),
        ];
        let loaded = load_files(&paths, false).unwrap();
        assert_eq!(loaded.context_name(None).unwrap(), "one");
        let one = loaded.connection(None).await.unwrap();
        assert_eq!(one.cluster_url.to_string(), "https://one:6443/");
        let two = loaded.connection(Some("two")).await.unwrap();
        assert_eq!(two.cluster_url.to_string(), "https://two:6443/");
        assert_eq!(two.default_namespace, "n-two");
        let error = loaded.connection(Some("three")).await.unwrap_err().to_string();
        assert!(error.ends_with("no context named \"three\" (there: one, two)"), "{error}");
        load_files(&paths[..1], false).unwrap_err();
        load_files(&paths[..1], true).unwrap_err();
    }

    #[test]
    fn a_broken_file_is_named_and_its_secrets_are_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "bad", "users:\n- name: a\n  user: {token: {s3cret\n");
        let error = format!("{:#}", load_files(std::slice::from_ref(&path), true).unwrap_err());
        assert!(error.contains("bad, line") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn one_context_is_taken_out_with_its_files() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "ca.crt", "CA");
        write(dir.path(), "key", "KEY");
        let text = "current-context: c\n\
             clusters: [{name: k, cluster: {server: 'https://k', certificate-authority: ca.crt}}, {name: other, cluster: {server: x}}]\n\
             contexts: [{name: c, context: {cluster: k, user: u}}]\n\
             users: [{name: u, user: {client-certificate-data: Q0VSVA==, client-key: key}}]\n";
        let path = write(dir.path(), "config", text);
        let loaded = load_files(&[path], true).unwrap();
        expect![[r#"
            apiVersion: v1
            clusters:
            - cluster:
                certificate-authority-data: Q0E=
                server: https://k
              name: k
            contexts:
            - context:
                cluster: k
                user: u
              name: c
            current-context: c
            kind: Config
            users:
            - name: u
              user:
                client-certificate-data: Q0VSVA==
                client-key-data: S0VZ
        "#]]
        .assert_eq(&yaml::emit(&loaded.minified(None).unwrap()));
    }

    #[test]
    fn a_merge_replaces_what_has_the_same_name_and_keeps_the_rest() {
        let old: Value = serde_saphyr::from_str(
            "apiVersion: v1\npreferences: {colors: true}\ncurrent-context: old\n\
             clusters: [{name: old, cluster: {server: a}}, {name: pinnace, cluster: {server: b}}]\n",
        )
        .unwrap();
        let new = json!({
            "clusters": [{"name": "pinnace", "cluster": {"server": "c"}}],
            "contexts": [{"name": "pinnace", "context": {"cluster": "pinnace"}}],
            "users": [{"name": "admin", "user": {}}],
            "current-context": "pinnace",
        });
        expect![[r#"
            apiVersion: v1
            clusters:
            - cluster:
                server: a
              name: old
            - cluster:
                server: c
              name: pinnace
            contexts:
            - context:
                cluster: pinnace
              name: pinnace
            current-context: pinnace
            preferences:
              colors: true
            users:
            - name: admin
              user: {}
        "#]]
        .assert_eq(&yaml::emit(&merge(old, &new).unwrap()));
        merge(json!("text"), &new).unwrap_err();
        merge(json!({"users": "text"}), &new).unwrap_err();
        assert_eq!(merge(Value::Null, &new).unwrap()["kind"], "Config");
    }

    #[test]
    fn some_hosts_need_no_proxy() {
        for (host, no_proxy, expected) in [
            ("127.0.0.1", "", true),
            ("[::1]", "", true),
            ("localhost", "", true),
            ("10.1.2.3", "", false),
            ("10.1.2.3", "10.0.0.0/8", true),
            ("11.1.2.3", "10.0.0.0/8", false),
            ("pi.example.org", "other,.example.org", true),
            ("pi.example.org", "example.org", true),
            ("piexample.org", "example.org", false),
            ("pi", "*", true),
            ("fd00::1", "fd00::/16", true),
        ] {
            assert_eq!(bypasses(host, no_proxy), expected, "{host} {no_proxy}");
        }
    }
}
