//! `pinnace cp`: files as a tar archive through `exec`, as kubectl does it. The
//! container needs a `tar`.

use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use tokio_util::io::SyncIoBridge;

use super::session::{Query, Session};
use crate::arguments::Copy;
use crate::cluster::Cluster;

/// Bytes between the archive and the connection.
const BUFFER_BYTES: usize = 64 << 10;

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Here(PathBuf),
    /// Namespace, if it is said; pod; path.
    There(Option<String>, String, String),
}

impl End {
    /// `[NAMESPACE/]POD:PATH`, or a path here.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let Some((pod, path)) = text.split_once(':') else { return Ok(Self::Here(text.into())) };
        // A path with a colon in it begins like a path.
        if pod.starts_with(['.', '/']) {
            return Ok(Self::Here(text.into()));
        }
        if path.is_empty() {
            bail!("{text:?}: say which file after the colon");
        }
        Ok(match pod.split_once('/') {
            Some((namespace, pod)) => {
                Self::There(Some(namespace.to_owned()), pod.to_owned(), path.to_owned())
            }
            None => Self::There(None, pod.to_owned(), path.to_owned()),
        })
    }
}

pub(super) async fn run(cluster: &Cluster, arguments: &Copy) -> anyhow::Result<()> {
    let container = arguments.container.as_deref();
    match (End::parse(&arguments.from)?, End::parse(&arguments.to)?) {
        (End::Here(from), End::There(namespace, pod, to)) => {
            up(&at(cluster, namespace), &pod, container, &from, &to).await
        }
        (End::There(namespace, pod, from), End::Here(to)) => {
            down(&at(cluster, namespace), &pod, container, &from, &to).await
        }
        (End::Here(_), End::Here(_)) => bail!("neither is in a pod: name one as POD:PATH"),
        (End::There(..), End::There(..)) => bail!("one of the two must be here, not in a pod"),
    }
}

fn at(cluster: &Cluster, namespace: Option<String>) -> Cluster {
    let mut cluster = cluster.clone();
    if let Some(namespace) = namespace {
        cluster.namespace = namespace;
    }
    cluster
}

async fn command(
    cluster: &Cluster,
    pod: &str,
    container: Option<&str>,
    words: &[&str],
    stdin: bool,
) -> anyhow::Result<String> {
    let pod = super::pod(cluster, pod).await?;
    let container = super::container(&pod, container)?;
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let query = Query { command: &words, container: &container, stdin, tty: false };
    Ok(query.path(&format!("{}/exec", super::path(cluster, &pod))))
}

fn said(code: u8) -> anyhow::Result<()> {
    match code {
        0 => Ok(()),
        code => bail!("tar in the container ended with {code}"),
    }
}

async fn up(
    cluster: &Cluster,
    pod: &str,
    container: Option<&str>,
    from: &Path,
    to: &str,
) -> anyhow::Result<()> {
    let meta = std::fs::symlink_metadata(from).with_context(|| from.display().to_string())?;
    let to = to.trim_end_matches('/');
    // As kubectl: into a folder that is there, else under the name that is said.
    let path = command(
        cluster,
        pod,
        container,
        &["test", "-d", if to.is_empty() { "/" } else { to }],
        false,
    )
    .await?;
    let is_folder =
        Session::open(cluster, &path).await?.pipe(tokio::io::empty(), tokio::io::sink()).await?
            == 0;
    let own = from.file_name().map(|name| name.to_string_lossy().into_owned());
    let (folder, name) = match (is_folder, to.rsplit_once('/')) {
        (true, _) => (if to.is_empty() { "/" } else { to }, own.unwrap_or_else(|| ".".to_owned())),
        (false, Some(("", name))) => ("/", name.to_owned()),
        (false, Some((folder, name))) => (folder, name.to_owned()),
        (false, None) => (".", to.to_owned()),
    };
    let path = command(cluster, pod, container, &["tar", "xmf", "-", "-C", folder], true).await?;
    let session = Session::open(cluster, &path).await?;
    let (reader, writer) = tokio::io::duplex(BUFFER_BYTES);
    let from = from.to_owned();
    let pack = tokio::task::spawn_blocking(move || -> io::Result<()> {
        let mut archive = tar::Builder::new(SyncIoBridge::new(writer));
        archive.follow_symlinks(false);
        if meta.is_dir() {
            archive.append_dir_all(&name, &from)?;
        } else {
            archive.append_path_with_name(&from, &name)?;
        }
        let mut writer = archive.into_inner()?;
        io::Write::flush(&mut writer)?;
        writer.shutdown()
    });
    let ended = session.pipe(reader, tokio::io::sink()).await;
    pack.await.context("cannot pack")?.context("cannot pack what is to be copied")?;
    said(ended?)
}

async fn down(
    cluster: &Cluster,
    pod: &str,
    container: Option<&str>,
    from: &str,
    to: &Path,
) -> anyhow::Result<()> {
    let from = from.trim_end_matches('/').to_owned();
    let from = if from.is_empty() { "/".to_owned() } else { from };
    let path = command(cluster, pod, container, &["tar", "cf", "-", &from], false).await?;
    let session = Session::open(cluster, &path).await?;
    let (reader, writer) = tokio::io::duplex(BUFFER_BYTES);
    // Into a folder that is there, else under the name that is said.
    let own = from.rsplit('/').next().unwrap_or_default().to_owned();
    let to = if to.is_dir() { to.join(own) } else { to.to_owned() };
    let unpack = tokio::task::spawn_blocking(move || unpack(SyncIoBridge::new(reader), &from, &to));
    let ended = session.pipe(tokio::io::empty(), writer).await;
    unpack.await.context("cannot unpack")?.context("cannot write what is copied")?;
    said(ended?)
}

/// Writes what is below `from` in the archive to `to`, and never beside it: the
/// container's tar may be anybody's.
fn unpack(archive: impl io::Read, from: &str, to: &Path) -> io::Result<()> {
    let from = Path::new(from.trim_start_matches('/'));
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let Ok(below) = path.strip_prefix(from) else { continue };
        if below.components().any(|part| !matches!(part, Component::Normal(_))) {
            continue;
        }
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            // As kubectl: a link could lead anywhere.
            crate::console::note(format_args!("skipped the link {}", path.display()));
            continue;
        }
        let target = if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) };
        if kind.is_dir() {
            std::fs::create_dir_all(&target)?;
        } else if kind.is_file() {
            if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                std::fs::create_dir_all(parent)?;
            }
            entry.unpack(&target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let there = |namespace: Option<&str>, pod: &str, path: &str| {
            End::There(namespace.map(str::to_owned), pod.to_owned(), path.to_owned())
        };
        assert_eq!(End::parse("web:/tmp/a").unwrap(), there(None, "web", "/tmp/a"));
        assert_eq!(End::parse("prod/web:a").unwrap(), there(Some("prod"), "web", "a"));
        assert_eq!(End::parse("./a:b").unwrap(), End::Here("./a:b".into()));
        assert_eq!(End::parse("a").unwrap(), End::Here("a".into()));
        End::parse("web:").unwrap_err();
    }

    #[test]
    fn an_archive_never_writes_beside_its_place() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut put = |name: &str, text: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            // By hand: the crate itself refuses such names.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, text.as_bytes()).unwrap();
        };
        put("data/good", "1");
        put("data/../../evil", "2");
        put("other/file", "3");
        let bytes = builder.into_inner().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("inner/to");
        unpack(bytes.as_slice(), "/data", &to).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("good")).unwrap(), "1");
        assert!(!folder.path().join("evil").exists() && !folder.path().join("inner/evil").exists());
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 1);
    }
}
