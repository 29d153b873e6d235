//! The checks: one function a finding, from facts to what is wrong and how to
//! mend it. Pure; the table [`CHECKS`] is all there is.

use proxy::control::Capture;

use super::facts::{CertificateFacts, Facts, LinkFacts};
use super::{Problem, Severity};

/// 1 January 2026: no board runs this agent at an earlier time.
pub(crate) const EARLIEST_S: u64 = 1_767_225_600;
/// Longest a clock may be past the build or certificate and still be believed.
const AHEAD_MAX_S: u64 = 5 * 365 * 86_400;
/// Share of the disk below which it is short, in percent.
const DISK_FREE_MIN_PERCENT: u64 = 10;
/// Share of inodes below which they are short, in percent.
const INODES_FREE_MIN_PERCENT: u64 = 5;
/// Fewest inotify instances that a board with a few pods can do with.
const INOTIFY_INSTANCES_MIN: u64 = 64;
/// Fewest process ids.
const PIDS_MIN: u64 = 4096;
/// Fewest open files of the agent: 16 a container and some for itself.
const FILES_MIN: u64 = 2048;
/// How soon a certificate that runs out is worth a word, in seconds.
const EXPIRES_SOON_S: u64 = 21 * 86_400;

/// One check.
#[derive(Clone, Copy)]
pub(crate) struct Check {
    /// The node condition, CamelCase, and the word in `doctor`.
    pub(crate) name: &'static str,
    /// What it looks at, for the line that says all is well.
    pub(crate) subject: &'static str,
    /// Whether a problem is a node condition too; the link cannot be.
    pub(crate) is_condition: bool,
    pub(crate) find: fn(&Facts) -> Option<Problem>,
}

const fn condition(
    name: &'static str,
    subject: &'static str,
    find: fn(&Facts) -> Option<Problem>,
) -> Check {
    Check { name, subject, is_condition: true, find }
}

const fn doctor_only(
    name: &'static str,
    subject: &'static str,
    find: fn(&Facts) -> Option<Problem>,
) -> Check {
    Check { name, subject, is_condition: false, find }
}

/// Every check, in the order they are shown.
pub(crate) const CHECKS: &[Check] = &[
    doctor_only("Root", "runs as root", root),
    condition("Cgroups", "cgroups are mounted", cgroups),
    condition("MemoryLimits", "the memory controller is on", memory_limits),
    condition("CpuLimits", "the cpu controller is on", cpu_limits),
    condition("PidLimits", "the pids controller is on", pid_limits),
    condition("Overlay", "the kernel has overlayfs", overlay),
    condition("DeviceRules", "device rules can be enforced", device_rules),
    condition("Seccomp", "the kernel filters system calls", seccomp),
    condition("Landlock", "the kernel has Landlock", landlock),
    doctor_only("UserNamespaces", "user namespaces are on", user_namespaces),
    condition("PodEgress", "pods have a way out", pod_egress),
    // As a condition it is DataPlaneDegraded, from the proxy itself.
    doctor_only("DataPlane", "what pods send is taken at the kernel's socket lookup", data_plane),
    condition("ClockImplausible", "the clock is plausible", clock),
    condition("DiskReadOnly", "the state folder can be written", read_only),
    // As a condition it is DiskPressure, with a memory of its own.
    doctor_only("DiskSpace", "the disk has space", disk_space),
    condition("DiskWorn", "the disk is not worn out", disk_worn),
    condition("RunFolder", "the run folder is in memory", run_folder),
    doctor_only(
        "LocalApi",
        "root reaches the board's own pods: kubectl --kubeconfig /run/pinnace/kubeconfig get pods -A",
        local_api,
    ),
    condition("InotifyLimit", "inotify instances suffice", inotify),
    condition("PidMax", "process ids suffice", pid_max),
    condition("FileLimit", "open files suffice", file_limit),
    doctor_only("Joined", "the board has joined", joined),
    condition("Certificate", "the node's certificate is good", certificate),
    doctor_only("Link", "the master answers", link),
];

fn problem(severity: Severity, why: impl Into<String>, fix: impl Into<String>) -> Option<Problem> {
    Some(Problem { severity, why: why.into(), fix: fix.into() })
}

fn error(why: impl Into<String>, fix: impl Into<String>) -> Option<Problem> {
    problem(Severity::Error, why, fix)
}

fn warning(why: impl Into<String>, fix: impl Into<String>) -> Option<Problem> {
    problem(Severity::Warning, why, fix)
}

fn note(why: impl Into<String>, fix: impl Into<String>) -> Option<Problem> {
    problem(Severity::Note, why, fix)
}

fn root(facts: &Facts) -> Option<Problem> {
    if facts.is_root {
        return None;
    }
    error("not run as root: some checks see less than the agent does", "run it with sudo")
}

fn cgroups(facts: &Facts) -> Option<Problem> {
    let why = facts.cgroups.as_ref().err()?;
    error(
        format!("cgroups cannot be used: {why}"),
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup (and in /etc/fstab, where there is no systemd)",
    )
}

fn memory_limits(facts: &Facts) -> Option<Problem> {
    let support = facts.cgroups.as_ref().ok()?;
    if support.memory {
        return None;
    }
    let why = "the memory cgroup controller is off: memory limits do not hold, and one pod can \
               take the whole board down";
    warning(why, memory_fix(facts))
}

/// Raspberry Pi OS switches the controller off in the device tree's own command
/// line, which cmdline.txt is appended to; the last word wins.
fn memory_fix(facts: &Facts) -> String {
    let words = "cgroup_enable=memory";
    match facts.cmdline_file.as_deref() {
        Some(path) if facts.cmdline_text.split_whitespace().any(|word| word == words) => {
            format!("reboot: {path} has {words} already, and the running kernel was not told yet")
        }
        Some(path) => format!("sudo sed -i '1 s/$/ {words}/' {path} && sudo reboot"),
        None => {
            format!("add {words} to the kernel's command line (boot loader's settings), and reboot")
        }
    }
}

fn cpu_limits(facts: &Facts) -> Option<Problem> {
    let support = facts.cgroups.as_ref().ok()?;
    if support.cpu {
        return None;
    }
    warning(
        "the cpu cgroup controller is off: cpu limits and shares do not hold",
        "use a kernel with CONFIG_CGROUP_SCHED and CONFIG_CFS_BANDWIDTH",
    )
}

fn pid_limits(facts: &Facts) -> Option<Problem> {
    let support = facts.cgroups.as_ref().ok()?;
    if support.pids {
        return None;
    }
    warning(
        "the pids cgroup controller is off: a pod can use up all process ids",
        "use a kernel with CONFIG_CGROUP_PIDS",
    )
}

fn overlay(facts: &Facts) -> Option<Problem> {
    if facts.has_overlay {
        return None;
    }
    error(
        "the kernel has no overlayfs: OCI containers cannot run (WASM can)",
        "sudo modprobe overlay; echo overlay | sudo tee /etc/modules-load.d/overlay.conf",
    )
}

fn device_rules(facts: &Facts) -> Option<Problem> {
    let support = facts.cgroups.as_ref().ok()?;
    if support.devices_v1 || facts.has_bpf {
        return None;
    }
    warning(
        "the kernel has no BPF: which devices a container opens is only limited by what is in \
         its /dev and by its capabilities",
        "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF",
    )
}

fn seccomp(facts: &Facts) -> Option<Problem> {
    if facts.has_seccomp {
        return None;
    }
    error(
        "the kernel cannot filter system calls: containers do not start",
        "use a kernel with CONFIG_SECCOMP_FILTER",
    )
}

fn landlock(facts: &Facts) -> Option<Problem> {
    if facts.has_landlock != Some(false) {
        return None;
    }
    note(
        "the kernel has no Landlock: WASM guests lose one of several walls",
        "add landlock to the lsm= list of the kernel's command line (Linux 5.13 and later)",
    )
}

fn user_namespaces(facts: &Facts) -> Option<Problem> {
    if facts.has_user_namespaces {
        return None;
    }
    note(
        "user namespaces are off: pods with hostUsers: false cannot run",
        "sudo sysctl -w user.max_user_namespaces=15000",
    )
}

fn pod_egress(facts: &Facts) -> Option<Problem> {
    if matches!(facts.capture, Some((Capture::SkLookup | Capture::Tproxy, _))) {
        // The proxy is their way out.
        return None;
    }
    if let Some(why) = &facts.egress_error {
        return warning(
            format!("pods reach nothing beyond this node: {why}"),
            "sudo modprobe nf_tables nft_masq; sudo apt-get install nftables",
        );
    }
    if facts.has_nft {
        return None;
    }
    warning(
        "nft is not installed: pods reach nothing beyond this node",
        "sudo apt-get install nftables",
    )
}

fn data_plane(facts: &Facts) -> Option<Problem> {
    let (capture, why) = facts.capture.as_ref()?;
    match capture {
        Capture::SkLookup | Capture::None => None,
        Capture::Tproxy => note(
            format!("nftables' TPROXY takes what pods send, for lack of a better way: {why}"),
            "use a kernel of 5.9 or newer with CONFIG_BPF_SYSCALL, as Raspberry Pi OS has",
        ),
        Capture::Listeners => warning(
            format!(
                "Services have a listener each, servers see the node's address, and pods of \
                 other nodes are reached through Services only: {why}"
            ),
            "sudo apt-get install nftables; sudo modprobe -a nft_tproxy nft_socket; or use a \
             kernel with CONFIG_BPF_SYSCALL",
        ),
    }
}

fn clock(facts: &Facts) -> Option<Problem> {
    let fix = "sudo timedatectl set-ntp true (or add a real-time clock); pods run nevertheless";
    if facts.clock.wall_s < EARLIEST_S {
        return warning(
            format!("the clock says {}: it was never set", date(facts.clock.wall_s)),
            fix,
        );
    }
    let floor = facts.clock.known_past_s.max(EARLIEST_S);
    if facts.clock.wall_s > floor + AHEAD_MAX_S {
        return warning(
            format!(
                "the clock says {}, more than five years after anything this board knows of",
                date(facts.clock.wall_s)
            ),
            fix,
        );
    }
    if facts.clock.wall_s + 86_400 < floor {
        return warning(
            format!(
                "the clock says {}, and {} has been already",
                date(facts.clock.wall_s),
                date(floor)
            ),
            fix,
        );
    }
    None
}

fn date(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "a day beyond counting".to_owned(), |time| time.to_string())
}

fn read_only(facts: &Facts) -> Option<Problem> {
    let mount = &facts.state_mount;
    if !mount.is_read_only {
        return None;
    }
    error(
        format!(
            "{} is mounted read-only: nothing is kept through a power cut; where the kernel did \
             that by itself, the card is failing",
            mount.point
        ),
        format!(
            "dmesg | grep -i 'i/o error'; sudo mount -o remount,rw {}; replace the card if it \
             happens again",
            mount.point
        ),
    )
}

fn disk_space(facts: &Facts) -> Option<Problem> {
    let mount = &facts.state_mount;
    let percent = |free: u64, of: u64| free.saturating_mul(100).checked_div(of);
    let fix = format!("du -xh -d2 {} | sort -h | tail, and remove what is not needed", mount.point);
    if let Some(left) = percent(mount.bytes_free, mount.bytes)
        && left < DISK_FREE_MIN_PERCENT
    {
        let why = format!(
            "{} has {left}% of its {} MiB left: pods are evicted below {DISK_FREE_MIN_PERCENT}%",
            mount.point,
            mount.bytes >> 20
        );
        return warning(why, fix);
    }
    if let Some(left) = percent(mount.inodes_free, mount.inodes)
        && left < INODES_FREE_MIN_PERCENT
    {
        return warning(format!("{} has {left}% of its inodes left", mount.point), fix);
    }
    None
}

fn disk_worn(facts: &Facts) -> Option<Problem> {
    let worst = facts.disks.iter().max_by_key(|disk| (disk.pre_eol, disk.life_used_percent))?;
    let used = worst.life_used_percent?;
    let why = format!("{} has used {used}% of its rated life", worst.name);
    let fix = "copy what matters and replace the eMMC or card";
    match (used, worst.pre_eol) {
        (_, Some(3)) => error(format!("{why}, and has no spare blocks left"), fix),
        (100.., _) => error(why, fix),
        (_, Some(2)) => warning(format!("{why}, and 80% of its spare blocks"), fix),
        (80.., _) => warning(why, fix),
        _ => None,
    }
}

fn local_api(facts: &Facts) -> Option<Problem> {
    let why = facts.local_api.as_ref()?.as_ref().err()?;
    warning(
        format!("the board has no API of its own, for kubectl while the master is away: {why}"),
        "free the port (sudo ss -ltnp says whose it is), or start the agent with --local-api \
         127.0.0.1:PORT, or off",
    )
}

fn run_folder(facts: &Facts) -> Option<Problem> {
    if facts.run_is_tmpfs {
        return None;
    }
    warning(
        format!(
            "{} is not on tmpfs: what containers are started with, Secrets in variables included, \
             is written to the disk",
            facts.run_dir
        ),
        format!(
            "sudo mount -t tmpfs -o mode=711 tmpfs {0}, or --run-dir below /run",
            facts.run_dir
        ),
    )
}

fn inotify(facts: &Facts) -> Option<Problem> {
    let instances = facts.limits.inotify_instances?;
    if instances >= INOTIFY_INSTANCES_MIN {
        return None;
    }
    warning(
        format!("fs.inotify.max_user_instances is {instances}: programs in pods may fail"),
        "echo fs.inotify.max_user_instances=512 | sudo tee /etc/sysctl.d/90-pinnace.conf; sudo \
         sysctl --system",
    )
}

fn pid_max(facts: &Facts) -> Option<Problem> {
    let most = facts.limits.pid_max?;
    if most >= PIDS_MIN {
        return None;
    }
    warning(
        format!("kernel.pid_max is {most}: a few pods use it up"),
        "echo kernel.pid_max=32768 | sudo tee -a /etc/sysctl.d/90-pinnace.conf; sudo sysctl --system",
    )
}

fn file_limit(facts: &Facts) -> Option<Problem> {
    let most = facts.limits.open_files?;
    if most >= FILES_MIN {
        return None;
    }
    warning(
        format!("the agent may open {most} files, of which each container takes up to 16"),
        "set LimitNOFILE=65536 in the agent's systemd unit",
    )
}

fn joined(facts: &Facts) -> Option<Problem> {
    match &facts.identity {
        Ok(_) => None,
        Err(why) => error(
            why.clone(),
            "pinnace token create on the master's side, then pinnace-agent join TOKEN here",
        ),
    }
}

fn certificate(facts: &Facts) -> Option<Problem> {
    let CertificateFacts { not_before_s, not_after_s, fits_key } = facts.identity.as_ref().ok()?;
    let fix = "pinnace token create on the master's side, then pinnace-agent join TOKEN here, in \
               an empty state folder";
    if !fits_key {
        return error("the node's certificate is not for its key", fix);
    }
    if not_after_s <= not_before_s {
        return error("the node's certificate is never valid", fix);
    }
    // A clock that is wrong is said by its own check.
    if clock(facts).is_some() {
        return None;
    }
    let now = facts.clock.wall_s;
    if now > *not_after_s {
        return error(
            format!(
                "the node's certificate has expired at {}: it renews itself once the master is \
                 reached",
                date(*not_after_s)
            ),
            "mend the link; if the master refuses the node, join again",
        );
    }
    // It renews itself after two thirds of its time, so this is late.
    if now + EXPIRES_SOON_S > *not_after_s {
        return warning(
            format!("the node's certificate expires at {}", date(*not_after_s)),
            "have the board reach its master before then",
        );
    }
    None
}

fn link(facts: &Facts) -> Option<Problem> {
    let probes = facts.link.as_ref()?;
    if probes.is_empty() || probes.iter().any(|probe| probe.failed.is_none()) {
        return None;
    }
    let LinkFacts { endpoint, failed } = probes.first()?;
    let (stage, why) = failed.as_ref()?;
    let all = if probes.len() > 1 {
        format!(" (and {} more endpoints)", probes.len() - 1)
    } else {
        String::new()
    };
    error(format!("no master at {endpoint}{all}: {stage}: {why}"), stage.fix(endpoint))
}
