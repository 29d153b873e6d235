//! Files and folders of the host: `hostPath` and local persistent volumes.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use wire::pod::HostPathKindV1;

use super::VolumeError;

/// Checks that a `hostPath` is what it shall be, and makes what it shall make.
///
/// # Errors
/// It is something else, in the kubelet's words, or cannot be made.
pub(super) fn prepare(volume: &str, path: &str, kind: HostPathKindV1) -> Result<(), VolumeError> {
    use HostPathKindV1::{
        Any, BlockDevice, CharDevice, Directory, DirectoryOrCreate, File, FileOrCreate, Socket,
    };
    let at = Path::new(path);
    let io = |operation| {
        move |source: io::Error| VolumeError::Io {
            volume: volume.to_owned(),
            operation,
            path: at.to_owned(),
            source,
        }
    };
    let wrong = |what: &str| {
        Err(VolumeError::Missing(format!("hostPath type check failed: {path} is not {what}")))
    };
    let found = match fs::metadata(at) {
        Ok(found) => Some(found.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(io("look at")(error)),
    };
    match (kind, found) {
        // With no type a folder is made where nothing is, as container runtimes do.
        (Any | DirectoryOrCreate, None) => {
            DirBuilder::new().recursive(true).mode(0o755).create(at).map_err(io("make"))
        }
        (FileOrCreate, None) => OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(at)
            .map(drop)
            .map_err(io("make")),
        (Any, Some(_)) => Ok(()),
        (Directory | DirectoryOrCreate, found) if found.is_some_and(|kind| kind.is_dir()) => Ok(()),
        (File | FileOrCreate, found) if found.is_some_and(|kind| kind.is_file()) => Ok(()),
        (Socket, found) if found.is_some_and(|kind| kind.is_socket()) => Ok(()),
        (CharDevice, found) if found.is_some_and(|kind| kind.is_char_device()) => Ok(()),
        (BlockDevice, found) if found.is_some_and(|kind| kind.is_block_device()) => Ok(()),
        (Directory | DirectoryOrCreate, _) => wrong("a directory"),
        (File | FileOrCreate, _) => wrong("a file"),
        (Socket, _) => wrong("a socket file"),
        (CharDevice, _) => wrong("a character device"),
        (BlockDevice, _) => wrong("a block device"),
    }
}

/// Checks that the folder of a local persistent volume is there.
///
/// # Errors
/// It is not.
pub(super) fn check_local(volume: &str, path: &str) -> Result<(), VolumeError> {
    if Path::new(path).exists() {
        return Ok(());
    }
    Err(VolumeError::Missing(format!(
        "MountVolume.NewMounter initialization failed for volume {volume:?}: path {path:?} does \
         not exist"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use HostPathKindV1 as Kind;

    #[test]
    fn each_type_takes_what_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::write(at("file"), "").unwrap();
        fs::create_dir(at("folder")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let check = |path: &str, kind| match prepare("v", path, kind) {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string().replace(path, "PATH"),
        };
        let not = |what: &str| format!("hostPath type check failed: PATH is not {what}");
        let table = [
            ("file", Kind::File, "ok".to_owned()),
            ("file", Kind::FileOrCreate, "ok".to_owned()),
            ("file", Kind::Any, "ok".to_owned()),
            ("file", Kind::Directory, not("a directory")),
            ("file", Kind::DirectoryOrCreate, not("a directory")),
            ("file", Kind::Socket, not("a socket file")),
            ("folder", Kind::Directory, "ok".to_owned()),
            ("folder", Kind::File, not("a file")),
            ("folder", Kind::FileOrCreate, not("a file")),
            ("socket", Kind::Socket, "ok".to_owned()),
            ("gone", Kind::File, not("a file")),
            ("gone", Kind::Directory, not("a directory")),
            ("gone", Kind::BlockDevice, not("a block device")),
            ("new/folder", Kind::DirectoryOrCreate, "ok".to_owned()),
            ("new/any", Kind::Any, "ok".to_owned()),
            ("new/file", Kind::FileOrCreate, "ok".to_owned()),
        ];
        for (name, kind, expected) in table {
            assert_eq!(check(&at(name), kind), expected, "{name} {kind:?}");
        }
        assert!(Path::new(&at("new/any")).is_dir() && Path::new(&at("new/file")).is_file());
        assert_eq!(check("/dev/null", Kind::CharDevice), "ok");
        assert_eq!(check("/dev/null", Kind::BlockDevice), not("a block device"));
        check_local("pv", &at("folder")).unwrap();
        assert!(check_local("pv", &at("none")).is_err());
    }
}
