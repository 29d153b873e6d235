//! `pinnace backup`: the whole cluster in one file, and a master's data folder
//! made of it.
//!
//! The file is an archive of [`store::archive`]. The master writes it while it
//! runs (`GET /pinnace/v1/backup`); it is read back and checked before it gets
//! its name.
//!
//! | entry | becomes, below the data folder |
//! |---|---|
//! | `store` | `store/`, a new store: new epoch, revision far ahead |
//! | `pki/<file>` | `pki/<file>`, mode 0600 |

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use store::archive::{PKI_PREFIX, RESTORED_FILE, Reader, STORE_ENTRY};

use crate::cluster::Cluster;
use crate::files::{self, Partial};
use crate::{console, text};

/// Where the master gives its backup.
const PATH: &str = "/pinnace/v1/backup";
/// The store's folder in a data folder.
const STORE_DIR: &str = "store";
/// The folder of the keys in a data folder.
const PKI_DIR: &str = "pki";
/// Where a restore works before anything has its name.
const WORK_DIR: &str = "restoring";
/// Largest key file.
const KEY_FILE_BYTES_MAX: u64 = 1 << 20;

pub(super) async fn create(cluster: &Cluster, file: &Path, overwrite: bool) -> anyhow::Result<()> {
    if !overwrite && file.exists() {
        bail!("{} exists: choose another name, or give --overwrite", file.display());
    }
    let cannot = || format!("cannot write {}", file.display());
    let mut partial = Partial::create(file).with_context(cannot)?;
    let mut stream = cluster.stream(PATH).await.context("cannot get a backup of the master")?;
    let bar = bar(stream.length());
    let mut length = 0;
    while let Some(piece) = stream.piece().await.context("the backup broke off")? {
        partial.file().write_all(&piece).with_context(cannot)?;
        length += piece.len() as u64;
        bar.set_position(length);
    }
    bar.finish_and_clear();
    let written = partial.file();
    written.seek(SeekFrom::Start(0)).with_context(cannot)?;
    check(BufReader::new(&*written)).context("the master sent no whole backup: try again")?;
    partial.keep().with_context(cannot)?;
    console::note(format_args!(
        "{}: {}, checked. It holds the cluster's private keys and secrets: keep it safe.",
        file.display(),
        text::bytes(length)
    ));
    Ok(())
}

fn bar(length: Option<u64>) -> ProgressBar {
    if !console::is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match length {
        Some(length) => {
            (ProgressBar::new(length), "{bar:30} {bytes}/{total_bytes} ({bytes_per_sec})")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} ({bytes_per_sec})"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Reads a backup to its end; all that it must have is there.
fn check(input: impl Read) -> anyhow::Result<()> {
    let mut reader = Reader::new(input)?;
    let mut names = Vec::new();
    while let Some(name) = reader.next_entry()? {
        names.push(name);
    }
    complete(&names)
}

fn complete(names: &[String]) -> anyhow::Result<()> {
    for wanted in [STORE_ENTRY, "pki/ca.crt", "pki/ca.key"] {
        if !names.iter().any(|name| name == wanted) {
            bail!("the backup has no entry {wanted}: use another one");
        }
    }
    Ok(())
}

pub(super) fn restore(file: &Path, data_dir: &Path) -> anyhow::Result<()> {
    let input = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let work = prepare(data_dir)?;
    let restored = restore_into(BufReader::new(input), &work, data_dir);
    let summary = match restored {
        Ok(summary) => summary,
        Err(error) => {
            // What is left over is removed by the next try otherwise.
            let _ = fs::remove_dir_all(&work);
            return Err(error.context(file.display().to_string()));
        }
    };
    console::note(format_args!(
        "{}: {} and the cluster's keys, as of revision {}. Start the master on it; nodes keep \
         what the backup does not know until `pinnace node confirm`.",
        data_dir.display(),
        text::count(usize::try_from(summary.n_objects).unwrap_or(usize::MAX), "object"),
        summary.revision
    ));
    Ok(())
}

/// The folder to work in, inside a data folder that holds nothing else.
fn prepare(data_dir: &Path) -> anyhow::Result<PathBuf> {
    let cannot = || format!("cannot make {}", data_dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir).with_context(cannot)?;
    let work = data_dir.join(WORK_DIR);
    for entry in fs::read_dir(data_dir).with_context(cannot)? {
        let name = entry.with_context(cannot)?.file_name();
        if name != WORK_DIR && name != "lost+found" {
            bail!(
                "{} is not empty (there is {}): restore into an empty folder, and keep the old \
                 one until all is well",
                data_dir.display(),
                name.display()
            );
        }
    }
    match fs::remove_dir_all(&work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", work.display()));
        }
        _ => {}
    }
    for dir in [&work, &work.join(PKI_DIR)] {
        DirBuilder::new().mode(0o700).create(dir).with_context(cannot)?;
    }
    Ok(work)
}

fn restore_into(
    input: impl Read,
    work: &Path,
    data_dir: &Path,
) -> anyhow::Result<store::backup::Summary> {
    let mut reader = Reader::new(input)?;
    let mut names = Vec::new();
    let mut summary = None;
    while let Some(name) = reader.next_entry()? {
        let mut content = reader.content();
        if name == STORE_ENTRY {
            let mut buffered = BufReader::new(&mut content);
            let dir = work.join(STORE_DIR);
            let made = store::backup::restore(&mut buffered, &dir, &mut restamp)?;
            summary = Some(made);
        } else if let Some(file) = name.strip_prefix(PKI_PREFIX).filter(|f| !f.contains('/')) {
            write_private(&work.join(PKI_DIR).join(file), &mut content)
                .with_context(|| format!("cannot restore {name}"))?;
        } else {
            bail!(
                "the backup has an entry \"{name}\" that this program does not know: use a newer one"
            );
        }
        names.push(name);
    }
    complete(&names)?;
    let summary = summary.ok_or_else(|| anyhow!("the backup has no store"))?;
    write_private(&data_dir.join(RESTORED_FILE), &mut io::empty())
        .context("cannot mark the folder as restored")?;
    // The store comes last: a master finds all of the cluster, or none of it.
    for dir in [PKI_DIR, STORE_DIR] {
        files::sync_folder_of(&work.join(dir).join("x")).context("cannot flush")?;
        let to = data_dir.join(dir);
        fs::rename(work.join(dir), &to).with_context(|| format!("cannot make {}", to.display()))?;
    }
    fs::remove_dir(work).with_context(|| format!("cannot remove {}", work.display()))?;
    files::sync_folder_of(&data_dir.join("x")).context("cannot flush")?;
    Ok(summary)
}

fn write_private(path: &Path, content: &mut dyn Read) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let length = io::copy(&mut content.take(KEY_FILE_BYTES_MAX + 1), &mut file)?;
    if length > KEY_FILE_BYTES_MAX {
        return Err(io::Error::other("it is too large for a key"));
    }
    file.sync_all()
}

/// Objects carry their own revision, which is another in the new store.
fn restamp(_key: &str, value: Bytes, revision: store::Revision) -> Bytes {
    let Ok(mut object) = serde_json::from_slice::<Value>(&value) else { return value };
    match object.get_mut("metadata").and_then(Value::as_object_mut) {
        Some(metadata) if metadata.contains_key("resourceVersion") => {
            metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
            object.to_string().into()
        }
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use store::archive::Writer;
    use store::{Config, Expect, LmdbStore, Store, Write as StoreWrite};

    use super::*;

    async fn archive(dir: &Path) -> Vec<u8> {
        let store = LmdbStore::open(dir.join("original"), Config::default()).unwrap();
        let value = br#"{"kind":"Pod","metadata":{"name":"a","resourceVersion":"1"}}"#;
        let write = StoreWrite::put("/core/pods/a/b", Expect::Absent, Bytes::from_static(value));
        store.write(vec![write]).await.unwrap();
        let mut writer = Writer::new(Vec::new()).unwrap();
        for (name, content) in [("pki/ca.crt", "the CA"), ("pki/ca.key", "its key")] {
            writer.entry(name, |out| out.write_all(content.as_bytes())).unwrap();
        }
        let write = |out: &mut dyn Write| {
            store::backup::create(&store, out).map(|_| ()).map_err(io::Error::other)
        };
        writer.entry(STORE_ENTRY, write).unwrap();
        writer.finish().unwrap()
    }

    #[tokio::test]
    async fn a_data_folder_is_made_of_a_backup() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(dir.path()).await;
        check(bytes.as_slice()).unwrap();
        let file = dir.path().join("backup");
        fs::write(&file, &bytes).unwrap();
        let data = dir.path().join("data");
        restore(&file, &data).unwrap();
        let key = data.join("pki/ca.key");
        assert_eq!(fs::read_to_string(&key).unwrap(), "its key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let mut left: Vec<_> =
            fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        // The mark makes the master hold what nodes run and the backup does not know.
        assert_eq!(left, ["pki", store::archive::RESTORED_FILE, "store"]);
        let store = LmdbStore::open(data.join("store"), Config::default()).unwrap();
        let object = store.get("/core/pods/a/b").unwrap().unwrap();
        let value: Value = serde_json::from_slice(&object.value).unwrap();
        assert_eq!(value["metadata"]["resourceVersion"], object.revision.to_string());
        assert!(object.revision > 1 << 32);
        let error = restore(&file, &data).unwrap_err().to_string();
        assert!(error.contains("is not empty"), "{error}");
    }

    #[tokio::test]
    async fn a_damaged_backup_leaves_an_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(dir.path()).await;
        for (cut, flip) in [(bytes.len() - 1, None), (bytes.len(), Some(60)), (0, None)] {
            let mut damaged = bytes[..cut].to_vec();
            if let Some(at) = flip {
                damaged[at] ^= 1;
            }
            check(damaged.as_slice()).unwrap_err();
            let file = dir.path().join("damaged");
            fs::write(&file, &damaged).unwrap();
            let data = dir.path().join("data");
            restore(&file, &data).unwrap_err();
            assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
        }
    }

    #[test]
    fn entries_that_would_land_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(Vec::new()).unwrap();
        writer.entry("pki/deep/ca.key", |out| out.write_all(b"x")).unwrap();
        let file = dir.path().join("backup");
        fs::write(&file, writer.finish().unwrap()).unwrap();
        let error = format!("{:#}", restore(&file, &dir.path().join("data")).unwrap_err());
        assert!(error.contains("\"pki/deep/ca.key\" that this program does not know"), "{error}");
    }
}
