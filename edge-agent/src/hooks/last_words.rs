//! A container's last words: the file it may leave them in, and the end of its log.
//!
//! The file is made anew for each run, in the pod's folder on disk, and appears
//! in the container where it wants it.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use runtime::{Exit, Mount};
use wire::pod::{ContainerV1, PodV1, RuntimeV1};

use super::Hooks;
use crate::config::PodDirs;
use crate::logs;

/// Where the file is if nothing else is said.
const DEFAULT_PATH: &str = "/dev/termination-log";
/// Bytes of the file that are read, the last of it.
const FILE_BYTES_MAX: usize = 4096;
/// Bytes of the log that stand in for it.
const LOG_BYTES_MAX: usize = 2048;
/// Lines of the log that stand in for it.
const LOG_LINES_MAX: u64 = 80;

/// Makes the file of a run, and says where it appears. A volume that is mounted
/// at its path keeps it.
pub(super) fn mount(
    container: &ContainerV1,
    dirs: &PodDirs,
    attempt: u32,
    others: &[Mount],
) -> Result<Option<Mount>, String> {
    let destination = path_in(container);
    if others.iter().any(|mount| mount.destination == destination) {
        return Ok(None);
    }
    let Some((folder, name)) = destination.rsplit_once('/') else { return Ok(None) };
    if name.is_empty() || name == ".." {
        return Err(format!("terminationMessagePath \"{destination}\" names no file"));
    }
    let path = file(dirs, container, attempt);
    make(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    let (source, destination) = match container.runtime {
        RuntimeV1::Oci => (path, destination),
        // A guest is given folders, not files: the one that holds it, if that is
        // not everything and hides no other mount.
        RuntimeV1::Wasm => {
            let is_taken = others.iter().any(|other| {
                let rest = other.destination.strip_prefix(folder);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
            if folder.is_empty() || is_taken {
                return Ok(None);
            }
            (folder_of(&path), folder)
        }
    };
    Ok(Some(Mount { source, destination: destination.to_owned(), ..Mount::default() }))
}

fn path_in(container: &ContainerV1) -> &str {
    match container.termination_message.path.as_str() {
        "" => DEFAULT_PATH,
        path => path,
    }
}

/// `messages/<container>-<attempt>/<name>`, in the pod's folder on disk.
fn file(dirs: &PodDirs, container: &ContainerV1, attempt: u32) -> PathBuf {
    let name = path_in(container).rsplit('/').next().unwrap_or_default();
    folder(dirs, &container.name, attempt).join(name)
}

/// Where the file of a run is. It goes with what else the run leaves.
pub(super) fn folder(dirs: &PodDirs, container: &str, attempt: u32) -> PathBuf {
    dirs.disk.join("messages").join(format!("{container}-{attempt}"))
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// Makes the file, which anybody in the container may write.
fn make(path: &Path) -> io::Result<()> {
    fs::create_dir_all(folder_of(path))?;
    let file = OpenOptions::new().create(true).write(true).truncate(true).open(path)?;
    file.set_permissions(Permissions::from_mode(0o666))
}

impl Hooks {
    /// The last words of a run that ended.
    pub fn last_words(&self, pod: &PodV1, name: &str, attempt: u32, exit: &Exit) -> String {
        let Some(container) = pod.all_containers().find(|container| container.name == name) else {
            return String::new();
        };
        let dirs = self.dirs(pod);
        match read(&file(&dirs, container, attempt)) {
            Ok(text) if !text.is_empty() => return text,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return format!("Error on reading termination log: {error}"),
        }
        if !container.termination_message.or_logs || exit.code == 0 {
            return String::new();
        }
        let log = logs::path(&dirs.logs, name, attempt);
        logs::last_lines(&log, LOG_LINES_MAX, LOG_BYTES_MAX).unwrap_or_default()
    }
}

/// Reads the end of the file. A guest may have put anything in its place: only a
/// file is read, and no link is followed.
fn read(path: &Path) -> io::Result<String> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file"));
    }
    let bytes_max = FILE_BYTES_MAX as u64;
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(bytes_max)))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::container;

    fn other(destination: &str) -> Mount {
        Mount { source: "/v".into(), destination: destination.to_owned(), ..Mount::default() }
    }

    #[test]
    fn a_run_gets_a_file_where_it_wants_it() {
        let folder = tempfile::tempdir().unwrap();
        let dirs = PodDirs {
            run: "/r".into(),
            disk: folder.path().into(),
            logs: "/l".into(),
            storage: "/s".into(),
        };
        let mut c = container("a");
        let oci = mount(&c, &dirs, 3, &[]).unwrap().unwrap();
        assert_eq!(oci.destination, "/dev/termination-log");
        assert_eq!(oci.source, folder.path().join("messages/a-3/termination-log"));
        assert_eq!(fs::metadata(&oci.source).unwrap().permissions().mode() & 0o777, 0o666);
        c.runtime = RuntimeV1::Wasm;
        c.termination_message.path = "/out/last".to_owned();
        let wasm = mount(&c, &dirs, 3, &[other("/output")]).unwrap().unwrap();
        assert_eq!(wasm.destination, "/out");
        assert_eq!(wasm.source, folder.path().join("messages/a-3"));
        for taken in ["/out", "/out/more"] {
            assert_eq!(mount(&c, &dirs, 3, &[other(taken)]).unwrap(), None);
        }
        c.termination_message.path = "/out/..".to_owned();
        mount(&c, &dirs, 3, &[]).unwrap_err();
    }

    #[test]
    fn the_end_of_the_file_is_read_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words");
        fs::write(&path, "x".repeat(5000) + "end").unwrap();
        let text = read(&path).unwrap();
        assert_eq!((text.len(), text.ends_with("end")), (FILE_BYTES_MAX, true));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for bad in [&link, &pipe] {
            read(bad).unwrap_err();
        }
        fs::write(&path, [0xff, b'a']).unwrap();
        assert_eq!(read(&path).unwrap(), "\u{fffd}a");
    }
}
