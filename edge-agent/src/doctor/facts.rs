//! What the checks look at: collected, and not judged. A file that is not there
//! is a fact too, so nothing here fails.

use std::fs;
use std::path::{Path, PathBuf};

use proxy::control::Capture;
use runtime::cgroup::{CgroupSupport, Hierarchies};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::probe::{self, Stage};
use crate::identity::Identity;
use crate::volumes::is_tmpfs;

/// Where Raspberry Pi OS and others keep the kernel's command line.
const CMDLINE_FILES: [&str; 2] = ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"];

/// Everything that is known of the board.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is one fact")]
pub struct Facts {
    pub(super) is_root: bool,
    pub(super) cgroups: Result<CgroupSupport, String>,
    /// The file that the kernel's command line comes from, and what is in it.
    pub(super) cmdline_file: Option<String>,
    pub(super) cmdline_text: String,
    pub(super) has_overlay: bool,
    pub(super) has_bpf: bool,
    pub(super) has_seccomp: bool,
    /// `None` where it cannot be seen.
    pub(super) has_landlock: Option<bool>,
    pub(super) has_user_namespaces: bool,
    pub(super) has_nft: bool,
    /// How the proxy takes what pods send, and why not better; `None` where that was
    /// not tried.
    pub capture: Option<(Capture, String)>,
    /// Why pods have no way out, as the running agent saw it.
    pub egress_error: Option<String>,
    pub(super) clock: ClockFacts,
    pub(super) state_mount: MountFacts,
    pub(super) disks: Vec<DiskFacts>,
    pub(super) run_dir: String,
    pub(super) run_is_tmpfs: bool,
    /// Whether the board's own API is open, or why not; `None` where it is not wanted, or
    /// no agent has run since the boot.
    pub(super) local_api: Option<Result<(), String>>,
    pub(super) limits: LimitFacts,
    pub(super) identity: Result<CertificateFacts, String>,
    /// One for each endpoint that was dialled; `None` where none was.
    pub(super) link: Option<Vec<LinkFacts>>,
}

/// What time it is said to be, and what time it must be past.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ClockFacts {
    pub(super) wall_s: u64,
    /// The latest moment that is known to be past: the build of this program, or
    /// the making of a certificate that the board holds.
    pub(super) known_past_s: u64,
}

/// The file system of the state folder.
#[derive(Clone, Debug, Default)]
pub(super) struct MountFacts {
    pub(super) point: String,
    pub(super) is_read_only: bool,
    pub(super) bytes: u64,
    pub(super) bytes_free: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

/// What an eMMC or SD card says about its wear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskFacts {
    pub(super) name: String,
    /// Upper end of the tenth it says it is in; above 100 past its rated life.
    pub(super) life_used_percent: Option<u32>,
    /// 1 normal, 2 warning (80% of the spare blocks used), 3 urgent.
    pub(super) pre_eol: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LimitFacts {
    pub(super) inotify_instances: Option<u64>,
    pub(super) pid_max: Option<u64>,
    pub(super) open_files: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct CertificateFacts {
    pub(super) not_before_s: u64,
    pub(super) not_after_s: u64,
    pub(super) fits_key: bool,
}

/// How far one endpoint was reached.
#[derive(Clone, Debug)]
pub(super) struct LinkFacts {
    pub(super) endpoint: String,
    pub(super) failed: Option<(Stage, String)>,
}

impl Facts {
    /// Reads the board. Quick: no network, and only small files.
    #[must_use]
    pub fn local(state_dir: &Path, run_dir: &Path) -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let cmdline_file = CMDLINE_FILES.iter().find(|path| Path::new(path).is_file());
        let identity = Identity::load(state_dir);
        let mut known_past_s = built_s();
        for certificate in identity.iter().flat_map(|own| own.cas.iter().chain([&own.certificate]))
        {
            known_past_s = known_past_s.max(validity(certificate).map_or(0, |(from, _)| from));
        }
        let has_bpf = Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists();
        Self {
            is_root: rustix::process::geteuid().is_root(),
            cgroups: Hierarchies::detect().map_err(|error| error.to_string()).and_then(|found| {
                let support = found.support();
                let is_mounted = support != CgroupSupport::default();
                is_mounted.then_some(support).ok_or_else(|| "none is mounted".to_owned())
            }),
            cmdline_file: cmdline_file.map(|path| (*path).to_owned()),
            cmdline_text: cmdline_file.map(text).unwrap_or_default(),
            has_overlay: has_overlay(&release),
            has_bpf,
            has_seccomp: text("/proc/self/status").lines().any(|line| line.starts_with("Seccomp:")),
            has_landlock: fs::read_to_string("/sys/kernel/security/lsm")
                .ok()
                .map(|list| list.split(',').any(|name| name.trim() == "landlock")),
            has_user_namespaces: Path::new("/proc/self/ns/user").exists()
                && number("/proc/sys/user/max_user_namespaces") != Some(0),
            has_nft: !crate::network::nft_is_missing(),
            capture: None,
            egress_error: None,
            clock: ClockFacts { wall_s: runtime::now_ms() / 1000, known_past_s },
            state_mount: mount_of(state_dir),
            disks: disks(Path::new("/sys/block")),
            run_dir: run_dir.display().to_string(),
            run_is_tmpfs: !run_dir.exists() || is_tmpfs(run_dir),
            local_api: local_api(run_dir),
            limits: LimitFacts {
                inotify_instances: number("/proc/sys/fs/inotify/max_user_instances"),
                pid_max: number("/proc/sys/kernel/pid_max"),
                open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            },
            identity: match &identity {
                Ok(identity) => certificate_facts(identity),
                Err(error) => Err(error.to_string()),
            },
            link: None,
        }
    }

    /// Whether there was anything to look at for a check.
    pub(super) fn shows(&self, check: &str) -> bool {
        match check {
            "Certificate" => self.identity.is_ok(),
            "Link" => self.link.is_some(),
            "LocalApi" => self.local_api.is_some(),
            _ => true,
        }
    }

    /// The same, and dials the master.
    pub async fn with_link(state_dir: &Path, run_dir: &Path) -> Self {
        let mut facts = Self::local(state_dir, run_dir);
        if let Ok(identity) = Identity::load(state_dir) {
            facts.link = Some(probe::dial_all(&identity).await);
        }
        facts
    }
}

fn local_api(run_dir: &Path) -> Option<Result<(), String>> {
    match crate::local::problem(run_dir) {
        Some(why) => Some(Err(why)),
        None => crate::local::kubeconfig(run_dir).map(|_| Ok(())),
    }
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &str) -> Option<u64> {
    text(path).trim().parse().ok()
}

/// Whether containers of OCI images can have a root.
pub(crate) fn has_overlay(release: &str) -> bool {
    let is_loaded = text("/proc/filesystems")
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"));
    // Else a module that is loaded at the first mount.
    is_loaded || has_module(release, "overlay") == Some(true)
}

/// Whether the kernel has a module, loaded or not; `None` where it says nothing.
fn has_module(release: &str, name: &str) -> Option<bool> {
    let folder = PathBuf::from("/lib/modules").join(release);
    let lists = ["modules.dep", "modules.builtin"].map(|list| text(folder.join(list)));
    if lists.iter().all(String::is_empty) {
        return None;
    }
    let needle = format!("/{name}.ko");
    Some(lists.iter().any(|list| list.contains(&needle)))
}

/// When this program was made, as far as its file says.
fn built_s() -> u64 {
    let modified = fs::metadata("/proc/self/exe").and_then(|file| file.modified());
    let since = modified.ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |time| time.as_secs())
}

fn validity(certificate: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    Some((seconds(certificate.validity.not_before), seconds(certificate.validity.not_after)))
}

fn certificate_facts(identity: &Identity) -> Result<CertificateFacts, String> {
    let (not_before_s, not_after_s) = validity(&identity.certificate)
        .ok_or_else(|| "the node's certificate does not read".to_owned())?;
    let of_key = rustls::crypto::ring::sign::any_supported_type(&identity.key)
        .map_err(|error| format!("the node's key cannot be used: {error}"))?
        .public_key()
        .map(|key| key.to_vec());
    let fits_key = match X509Certificate::from_der(&identity.certificate) {
        Ok((_, certificate)) => {
            of_key.as_deref() == Some(certificate.tbs_certificate.subject_pki.raw)
        }
        Err(_) => false,
    };
    Ok(CertificateFacts { not_before_s, not_after_s, fits_key })
}

/// The file system that a folder is on, or that its nearest parent is on.
fn mount_of(folder: &Path) -> MountFacts {
    let Some(there) = folder.ancestors().find(|path| path.exists()) else {
        return MountFacts::default();
    };
    let there = fs::canonicalize(there).unwrap_or_else(|_| there.to_owned());
    let mountinfo = text("/proc/self/mountinfo");
    let point = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| there.starts_with(point))
        .max_by_key(|point| point.len())
        .unwrap_or("/")
        .to_owned();
    let Ok(info) = rustix::fs::statvfs(&there) else {
        return MountFacts { point, ..MountFacts::default() };
    };
    MountFacts {
        point,
        is_read_only: info.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        bytes: info.f_blocks.saturating_mul(info.f_frsize),
        bytes_free: info.f_bavail.saturating_mul(info.f_frsize),
        inodes: info.f_files,
        inodes_free: info.f_ffree,
    }
}

/// What every eMMC and SD card says of itself.
pub(super) fn disks(block: &Path) -> Vec<DiskFacts> {
    let Ok(entries) = fs::read_dir(block) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut disks: Vec<DiskFacts> = names
        .filter(|name| name.starts_with("mmcblk") && !name.contains("boot"))
        .map(|name| {
            let device = block.join(&name).join("device");
            let hex = |word: &str| u32::from_str_radix(word.trim_start_matches("0x"), 16).ok();
            // Two kinds of memory, each in tenths: 0x01 is up to 10%, 0x0b past all.
            let tenths = text(device.join("life_time"))
                .split_whitespace()
                .filter_map(hex)
                .filter(|tenths| (1..=11).contains(tenths))
                .max();
            let pre_eol = hex(text(device.join("pre_eol_info")).trim())
                .filter(|value| (1..=3).contains(value));
            DiskFacts { name, life_used_percent: tenths.map(|n| n * 10), pre_eol }
        })
        .collect();
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks
}
