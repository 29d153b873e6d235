//! `pinnace image build`: layers of files, without Docker and without root.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use image::build::{Built, Entry, OciImage};
use image::{Platform, WasmKind, elf};

use super::{done, reference, registry, told};
use crate::arguments::Global;
use crate::arguments::image::Build;
use crate::console;

/// Most bytes of all files: an image is made in memory.
const BYTES_MAX: u64 = 2 << 30;
/// Most files.
const ENTRIES_MAX: usize = 200_000;

/// What the inputs turned out to be.
#[derive(Default)]
struct Inputs {
    /// Programs and the machines they are for.
    programs: Vec<(PathBuf, Platform, Vec<u8>)>,
    folders: Vec<PathBuf>,
    module: Option<Vec<u8>>,
}

pub(super) async fn run(global: &Global, build: &Build) -> anyhow::Result<()> {
    let image = reference(&build.name)?;
    let built = make(build)?;
    if let Some(output) = &build.output {
        built.write_layout(output, &image.to_string())?;
    }
    if build.push {
        let registry = registry(global, &image, &build.reach).await?;
        built.push_telling(&registry, &image, &told).await?;
    }
    done(&image, built.digest())
}

fn make(build: &Build) -> anyhow::Result<Built> {
    let inputs = read(build)?;
    if let Some(module) = inputs.module {
        if !(inputs.programs.is_empty() && inputs.folders.is_empty()) {
            bail!("a WebAssembly module is an image of its own: leave the other files out");
        }
        return Ok(Built::wasm(module));
    }
    let mut shared = Vec::new();
    let mut left = BYTES_MAX;
    for folder in &inputs.folders {
        walk(folder, folder, &mut shared, &mut left)?;
    }
    for pair in &build.add {
        let (file, path) =
            pair.split_once('=').ok_or_else(|| anyhow!("--add {pair}: write FILE=PATH"))?;
        let bytes = fs::read(file).with_context(|| format!("--add {file}"))?;
        let mode = fs::metadata(file)?.permissions().mode() & 0o7777;
        shared.extend(parents(path));
        shared.push(Entry::file(plain(path)?, mode, bytes));
    }
    let programs = if inputs.programs.is_empty() {
        // Files alone: for the machines that are named, or this one.
        let given: Vec<Platform> = platforms(build)?;
        let all = if given.is_empty() { vec![Platform::host()] } else { given };
        all.into_iter().map(|platform| (platform, None)).collect()
    } else {
        let name = match &build.program {
            Some(path) => plain(path)?.to_owned(),
            None => file_name(&inputs.programs[0].0)?,
        };
        let with = |(_, platform, bytes): (PathBuf, Platform, Vec<u8>)| {
            (platform, Some((name.clone(), bytes)))
        };
        inputs.programs.into_iter().map(with).collect::<Vec<_>>()
    };
    let mut images = Vec::new();
    let mut seen = Vec::new();
    for (platform, program) in programs {
        if seen.contains(&platform) {
            bail!("two programs are for {platform}: --platform tells them apart");
        }
        seen.push(platform.clone());
        images.push(Built::oci(&one(build, &shared, platform, program)?));
    }
    Ok(Built::index(images))
}

/// The image for one machine: what all share below, the program above.
fn one(
    build: &Build,
    shared: &[Entry],
    platform: Platform,
    program: Option<(String, Vec<u8>)>,
) -> anyhow::Result<OciImage> {
    let mut layers = vec![base(shared)];
    let mut entrypoint = build.entrypoint.clone();
    if let Some((name, bytes)) = program {
        let mut layer: Vec<Entry> = parents(&name);
        layer.push(Entry::file(&name, 0o755, bytes));
        layers.push(layer);
        if entrypoint.is_empty() {
            entrypoint = vec![format!("/{name}")];
        }
    }
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(anyhow!("{text}: write NAME=VALUE")),
    };
    build.env.iter().map(pair).collect::<anyhow::Result<Vec<_>>>().context("--env")?;
    let labels = build.label.iter().map(pair).collect::<anyhow::Result<_>>().context("--label")?;
    let mut env = build.env.clone();
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.insert(0, "PATH=/usr/local/bin:/usr/bin:/bin".to_owned());
    }
    Ok(OciImage {
        layers,
        platform,
        entrypoint,
        cmd: build.cmd.clone(),
        env,
        user: build.user.clone(),
        working_dir: build.workdir.clone(),
        labels,
    })
}

/// The shared files, and the folder for temporary ones that programs expect.
fn base(shared: &[Entry]) -> Vec<Entry> {
    // The same file twice: the last one counts, and the order is that of the names.
    let mut files: BTreeMap<&str, &Entry> = BTreeMap::new();
    let tmp = Entry::folder("tmp", 0o1777);
    files.insert("tmp", &tmp);
    files.extend(shared.iter().map(|entry| (entry.path.as_str(), entry)));
    files.into_values().cloned().collect()
}

fn platforms(build: &Build) -> anyhow::Result<Vec<Platform>> {
    let parse = |text: &String| {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (*os, *architecture, ""),
            [os, architecture, variant] => (*os, *architecture, *variant),
            _ => bail!("--platform {text}: write OS/ARCH or OS/ARCH/VARIANT"),
        };
        let variant = if architecture == "arm64" && variant.is_empty() { "v8" } else { variant };
        let variant = if architecture == "arm" && variant.is_empty() { "v7" } else { variant };
        Ok(Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        })
    };
    build.platform.iter().map(parse).collect()
}

/// Tells programs, folders and modules apart.
fn read(build: &Build) -> anyhow::Result<Inputs> {
    let given = platforms(build)?;
    let mut inputs = Inputs::default();
    for path in &build.inputs {
        let shown = || path.display().to_string();
        if fs::metadata(path).with_context(shown)?.is_dir() {
            inputs.folders.push(path.clone());
            continue;
        }
        let bytes = read_file(path)?;
        if WasmKind::of(&bytes).is_some() {
            if inputs.module.replace(bytes).is_some() {
                bail!("one WebAssembly module makes one image: build them one by one");
            }
            continue;
        }
        let program = elf::read(&bytes);
        let at = inputs.programs.len();
        let platform = match (given.get(at), &program) {
            (Some(platform), _) => platform.clone(),
            (None, Some(program)) => program.platform.clone(),
            (None, None) => bail!(
                "{} is neither a program for Linux, nor a folder, nor WebAssembly: add it with \
                 --add, or say what machine it is for with --platform",
                path.display()
            ),
        };
        if program.is_some_and(|program| !program.is_static) && inputs.folders.is_empty() {
            console::warning(&format!(
                "{} needs a loader and libraries, which the image lacks unless a folder brings \
                 them: build it for a musl target",
                path.display()
            ));
        }
        inputs.programs.push((path.clone(), platform, bytes));
    }
    Ok(inputs)
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).with_context(|| path.display().to_string())?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| path.display().to_string())?;
    if bytes.len() as u64 > BYTES_MAX {
        bail!("{} is larger than 2 GiB", path.display());
    }
    Ok(bytes)
}

/// The files below a folder, by name, with the modes they have and root as owner.
fn walk(
    root: &Path,
    folder: &Path,
    entries: &mut Vec<Entry>,
    left: &mut u64,
) -> anyhow::Result<()> {
    let shown = || folder.display().to_string();
    let mut names: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(shown)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .with_context(shown)?;
    names.sort();
    for path in names {
        let shown = || path.display().to_string();
        let metadata = fs::symlink_metadata(&path).with_context(shown)?;
        let name = path.strip_prefix(root).expect("it is below").to_str();
        let name = name.ok_or_else(|| anyhow!("{}: its name is not UTF-8", shown()))?;
        let mode = metadata.permissions().mode() & 0o7777;
        if entries.len() >= ENTRIES_MAX {
            bail!("there are more than {ENTRIES_MAX} files");
        }
        if metadata.is_dir() {
            entries.push(Entry::folder(name, mode));
            walk(root, &path, entries, left)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).with_context(shown)?;
            let target = target.to_str().ok_or_else(|| anyhow!("{}: not UTF-8", shown()))?;
            entries.push(Entry::symlink(name, target));
        } else if metadata.is_file() {
            *left = left
                .checked_sub(metadata.len())
                .ok_or_else(|| anyhow!("the files are larger than 2 GiB"))?;
            entries.push(Entry::file(name, mode, read_file(&path)?));
        } else {
            bail!("{} is neither a file, a folder nor a link", path.display());
        }
    }
    Ok(())
}

/// A path in the image, without the slash at its beginning.
fn plain(path: &str) -> anyhow::Result<&str> {
    let trimmed = path.trim_start_matches('/');
    let is_plain =
        !trimmed.is_empty() && trimmed.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if is_plain { Ok(trimmed) } else { Err(anyhow!("{path:?} is no path in an image")) }
}

/// The folders above a path.
fn parents(path: &str) -> Vec<Entry> {
    let path = path.trim_start_matches('/');
    path.match_indices('/').map(|(at, _)| Entry::folder(&path[..at], 0o755)).collect()
}

fn file_name(path: &Path) -> anyhow::Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| anyhow!("{}: its name is not UTF-8", path.display()))
}

/// Only for tests: what an entry holds.
#[cfg(test)]
fn text(entry: &Entry) -> String {
    match &entry.content {
        image::build::Content::File(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        build: Build,
    }

    fn build(words: &[&str]) -> anyhow::Result<Built> {
        let line = ["build", "app:v1"].iter().chain(words).chain(&["--push"]);
        make(&Line::try_parse_from(line).unwrap().build)
    }

    /// The head of a program for a machine.
    fn program(machine: u8, flags: u8) -> Vec<u8> {
        let class = if machine == 40 { 1 } else { 2 };
        let mut head = vec![0; 64];
        head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
        (head[16], head[18]) = (2, machine);
        head[37] = flags;
        head
    }

    #[test]
    fn the_same_files_give_the_same_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        fs::create_dir(path("site")).unwrap();
        fs::write(path("site/index.html"), "hello").unwrap();
        std::os::unix::fs::symlink("index.html", path("site/start")).unwrap();
        fs::write(path("app"), program(183, 0)).unwrap();
        fs::write(path("app-arm"), program(40, 4)).unwrap();
        let (app, arm, site) = (path("app"), path("app-arm"), path("site"));
        let first = build(&[&app, &arm, &site]).unwrap();
        let file = fs::File::open(path("site/index.html")).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(build(&[&app, &arm, &site]).unwrap().digest(), first.digest());
        assert_ne!(build(&[&app, &site]).unwrap().digest(), first.digest());
        let error = build(&[&app, &app]).unwrap_err().to_string();
        assert!(error.contains("two programs are for linux/arm64/v8"), "{error}");
        build(&[&app, &app, "--platform=linux/arm64", "--platform=linux/riscv64"]).unwrap();
        let error = build(&[&path("site/index.html")]).unwrap_err().to_string();
        assert!(error.contains("neither a program"), "{error}");
        let mut entries = Vec::new();
        walk(Path::new(&site), Path::new(&site), &mut entries, &mut 100).unwrap();
        let found: Vec<_> = entries.iter().map(|e| (e.path.as_str(), text(e))).collect();
        let link = "Symlink(\"index.html\")".to_owned();
        assert_eq!(found, [("index.html", "hello".to_owned()), ("start", link)]);
        assert!(walk(Path::new(&site), Path::new(&site), &mut entries, &mut 4).is_err());
    }

    #[test]
    fn a_module_is_an_artifact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.wasm");
        fs::write(&path, b"\0asm\x01\0\0\0").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(
            build(&[path]).unwrap().digest(),
            Built::wasm(b"\0asm\x01\0\0\0".to_vec()).digest()
        );
        build(&[path, path]).unwrap_err();
        build(&[path, folder.path().to_str().unwrap()]).unwrap_err();
    }

    #[test]
    fn paths_stay_in_the_image() {
        assert_eq!(plain("/a/b").unwrap(), "a/b");
        for bad in ["", "/", "../x", "a/../b", "a//b"] {
            assert!(plain(bad).is_err(), "{bad}");
        }
        let folders: Vec<String> = parents("/a/b/c").into_iter().map(|e| e.path).collect();
        assert_eq!(folders, ["a", "a/b"]);
    }
}
