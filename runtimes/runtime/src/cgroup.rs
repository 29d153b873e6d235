//! Control groups by their path, on version 1, version 2 and the hybrid of both.
//!
//! A container has the same absolute path in every hierarchy. What the kernel
//! lacks (Raspberry Pi OS ships without the memory controller) is left out and
//! reported by [`Hierarchies::support`]; it is never an error here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Resources;

/// How often the processes of a group are listed and killed before giving up.
const KILL_PASSES_MAX: usize = 100;

/// The mounted hierarchies of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Version 1: controllers and where they are mounted.
    v1: Vec<(Vec<String>, PathBuf)>,
    /// Version 2, also where it only tracks processes beside version 1.
    v2: Option<PathBuf>,
}

/// Which limits this machine can set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupSupport {
    /// Whether everything is in one hierarchy of version 2.
    pub unified: bool,
    /// CPU shares and quotas.
    pub cpu: bool,
    /// Memory limits.
    pub memory: bool,
    /// Limits on the number of processes.
    pub pids: bool,
    /// The device controller of version 1.
    pub devices_v1: bool,
}

impl Hierarchies {
    /// Reads them from `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn detect() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((mount, source)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4) else { continue };
            let point = PathBuf::from(point.replace("\\040", " "));
            let mut words = source.split(' ');
            match words.next() {
                Some("cgroup2") if found.v2.is_none() => found.v2 = Some(point),
                Some("cgroup") => {
                    let options = words.nth(1).unwrap_or_default();
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|word| !matches!(*word, "rw" | "ro" | "none" | "xattr"))
                        .map(ToOwned::to_owned)
                        .collect();
                    if !found.v1.iter().any(|(known, _)| *known == controllers) {
                        found.v1.push((controllers, point));
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn v1_root(&self, controller: &str) -> Option<&Path> {
        let (_, root) = self.v1.iter().find(|(all, _)| all.iter().any(|c| c == controller))?;
        Some(root)
    }

    fn v2_controllers(&self) -> Vec<String> {
        let Some(root) = &self.v2 else { return Vec::new() };
        let text = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().map(ToOwned::to_owned).collect()
    }

    /// Where version 2 is mounted, if it alone governs this machine.
    #[must_use]
    pub fn unified_root(&self) -> Option<&Path> {
        self.v2.as_deref().filter(|_| self.v1.is_empty())
    }

    /// The group's folder in the hierarchy of a v1 controller.
    #[must_use]
    pub fn controller_folder(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        Some(self.v1_root(controller)?.join(relative(cgroup).ok()?))
    }

    /// The group's folder in the hierarchy of version 2.
    #[must_use]
    pub fn unified_folder(&self, cgroup: &str) -> Option<PathBuf> {
        Some(self.v2.as_ref()?.join(relative(cgroup).ok()?))
    }

    /// The group's folder in one hierarchy where groups below it cost nothing:
    /// version 2, or a controller of version 1 that only tracks processes.
    pub(crate) fn tracking_folder(&self, cgroup: &str) -> Option<PathBuf> {
        let folder = self.unified_folder(cgroup).filter(|folder| folder.is_dir());
        let of = |name: &&str| self.controller_folder(name, cgroup).filter(|f| f.is_dir());
        folder.or_else(|| ["freezer", "pids", "cpuacct"].iter().find_map(of))
    }

    /// Which limits can be set.
    #[must_use]
    pub fn support(&self) -> CgroupSupport {
        let v2 = self.v2_controllers();
        let has = |name: &str| self.v1_root(name).is_some() || v2.iter().any(|c| c == name);
        CgroupSupport {
            unified: self.unified_root().is_some(),
            cpu: has("cpu"),
            memory: has("memory"),
            pids: has("pids"),
            devices_v1: self.v1_root("devices").is_some(),
        }
    }

    /// The group's folders that exist.
    fn folders(&self, cgroup: &str) -> Vec<PathBuf> {
        let Ok(relative) = relative(cgroup) else { return Vec::new() };
        let roots = self.v1.iter().map(|(_, root)| root).chain(self.v2.as_ref());
        roots.map(|root| root.join(relative)).filter(|path| path.is_dir()).collect()
    }

    /// The folder of a controller that governs the group, v1 or v2.
    fn folder(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        let relative = relative(cgroup).ok()?;
        let root = match self.v1_root(controller) {
            Some(root) => root,
            None => {
                let known = self.v2_controllers().iter().any(|c| c == controller);
                self.v2.as_deref().filter(|_| known)?
            }
        };
        Some(root.join(relative))
    }

    /// Makes a group with its limits. Limits whose controller is missing are left out.
    ///
    /// # Errors
    /// A folder cannot be made, or the kernel refuses a value.
    pub fn create(&self, cgroup: &str, resources: &Resources) -> io::Result<()> {
        let relative = relative(cgroup)?;
        for controller in ["cpu", "cpuacct", "memory", "pids", "freezer", "devices"] {
            if let Some(root) = self.v1_root(controller) {
                fs::create_dir_all(root.join(relative))?;
            }
        }
        if let Some(root) = &self.v2 {
            self.enable_v2(root, relative);
            fs::create_dir_all(root.join(relative))?;
        }
        self.limit(cgroup, resources)
    }

    /// Passes the controllers down to the group's parent, as far as they exist.
    fn enable_v2(&self, root: &Path, relative: &Path) {
        let available = self.v2_controllers();
        let mut folder = root.to_owned();
        for part in relative.components() {
            for controller in ["cpu", "memory", "pids"] {
                if available.iter().any(|c| c == controller) {
                    let _ =
                        fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
            folder.push(part);
            let _ = fs::create_dir(&folder);
        }
    }

    fn limit(&self, cgroup: &str, resources: &Resources) -> io::Result<()> {
        if let Some(folder) = self.folder("cpu", cgroup) {
            let v1 = self.v1_root("cpu").is_some();
            let shares = (resources.cpu_request_millis * 1024 / 1000).clamp(2, 262_144);
            let quota = (resources.cpu_limit_millis * 100).max(1000);
            if v1 {
                limit(&folder, "cpu.shares", shares)?;
                if resources.cpu_limit_millis > 0 {
                    limit(&folder, "cpu.cfs_period_us", 100_000)?;
                    limit(&folder, "cpu.cfs_quota_us", quota)?;
                }
            } else {
                limit(&folder, "cpu.weight", 1 + (shares - 2) * 9999 / 262_142)?;
                if resources.cpu_limit_millis > 0 {
                    limit(&folder, "cpu.max", format!("{quota} 100000"))?;
                }
            }
        }
        if let Some(folder) =
            self.folder("memory", cgroup).filter(|_| resources.memory_limit_bytes > 0)
        {
            let bytes = resources.memory_limit_bytes;
            // Swap would turn the limit into wear; kernels without swap accounting lack the file.
            if self.v1_root("memory").is_some() {
                limit(&folder, "memory.limit_in_bytes", bytes)?;
                let _ = put(&folder, "memory.memsw.limit_in_bytes", bytes);
            } else {
                limit(&folder, "memory.max", bytes)?;
                let _ = put(&folder, "memory.swap.max", 0);
                // All of it or none, as the kubelet asks: a server whose worker was
                // killed would go on half. Kernels before 4.19 lack the file.
                let _ = put(&folder, "memory.oom.group", 1);
            }
        }
        if let Some(folder) = self.folder("pids", cgroup).filter(|_| resources.pids_max > 0) {
            limit(&folder, "pids.max", resources.pids_max)?;
        }
        Ok(())
    }

    /// Puts a process into the group, in every hierarchy where it exists.
    ///
    /// # Errors
    /// The process is gone, or the kernel refuses.
    pub fn add(&self, cgroup: &str, pid: i32) -> io::Result<()> {
        for folder in self.folders(cgroup) {
            put(&folder, "cgroup.procs", pid)?;
        }
        Ok(())
    }

    /// Has the kernel expect that processes will be moved between groups.
    ///
    /// The first move after a while waits until every CPU has passed a quiet
    /// point: 6 ms on an idle machine, 20 ms on a busy one, on both versions. One
    /// that follows within that time does not (0.2 ms). So this moves the calling
    /// process to where it is, and is called, on a thread of its own, while there
    /// is other work to do for a start. Costs no CPU time; failing costs only time.
    pub fn expect_moves(&self) {
        let Ok(own) = fs::read_to_string("/proc/self/cgroup") else { return };
        let path_in = |prefix: &str| own.lines().find_map(|line| Some(line.split_once(prefix)?.1));
        let folder =
            match (self.v2.as_deref(), path_in("0::"), self.v1_root("pids"), path_in(":pids:")) {
                (Some(root), Some(path), ..) | (_, _, Some(root), Some(path)) => {
                    root.join(path.trim_start_matches('/'))
                }
                _ => return,
            };
        let _ = fs::write(folder.join("cgroup.procs"), "0");
    }

    /// The processes of the group and the groups below it.
    #[must_use]
    pub fn processes(&self, cgroup: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        for folder in self.folders(cgroup) {
            collect_processes(&folder, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends SIGKILL to every process of the group and the groups below it,
    /// until none is left or a bound is reached (processes in uninterruptible sleep).
    pub fn kill(&self, cgroup: &str) {
        if let (Some(root), Ok(relative)) = (&self.v2, relative(cgroup)) {
            // One write, without a race; kernels before 5.14 lack the file.
            let _ = fs::write(root.join(relative).join("cgroup.kill"), "1");
        }
        let me = rustix::process::getpid();
        for _ in 0..KILL_PASSES_MAX {
            let pids = self.processes(cgroup);
            let mut n_sent = 0;
            for pid in pids {
                let Some(pid) = rustix::process::Pid::from_raw(pid).filter(|pid| *pid != me) else {
                    continue;
                };
                if rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok() {
                    n_sent += 1;
                }
            }
            if n_sent == 0 {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Removes the group and the groups below it. One that is gone is fine.
    ///
    /// # Errors
    /// `ResourceBusy` while dying processes are still in it: try again.
    pub fn remove(&self, cgroup: &str) -> io::Result<()> {
        for folder in self.folders(cgroup) {
            remove_tree(&folder)?;
        }
        Ok(())
    }

    /// How many processes of the group the kernel has killed for want of memory.
    #[must_use]
    pub fn oom_kills(&self, cgroup: &str) -> u64 {
        let Some(folder) = self.folder("memory", cgroup) else { return 0 };
        let name =
            if self.v1_root("memory").is_some() { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }
}

impl Hierarchies {
    /// Memory that the group holds and the kernel cannot take back at once, in
    /// bytes: what the kubelet calls its working set. `None` without the controller.
    #[must_use]
    pub fn memory_used(&self, cgroup: &str) -> Option<u64> {
        let folder = self.folder("memory", cgroup)?;
        let (usage, inactive) = if self.v1_root("memory").is_some() {
            ("memory.usage_in_bytes", "total_inactive_file ")
        } else {
            ("memory.current", "inactive_file ")
        };
        let used: u64 = fs::read_to_string(folder.join(usage)).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let inactive =
            stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok());
        Some(used.saturating_sub(inactive.unwrap_or(0)))
    }
}

impl Hierarchies {
    /// Processor time that the group and those below it have had, in nanoseconds.
    /// `None` where no hierarchy counts it, or there is no such group.
    #[must_use]
    pub fn cpu_time(&self, cgroup: &str) -> Option<u64> {
        if let Some(folder) = self.controller_folder("cpuacct", cgroup) {
            return fs::read_to_string(folder.join("cpuacct.usage")).ok()?.trim().parse().ok();
        }
        // Counted in version 2 with and without the controller.
        let stat = fs::read_to_string(self.unified_folder(cgroup)?.join("cpu.stat")).ok()?;
        usage_usec(&stat)?.checked_mul(1000)
    }
}

/// The line `usage_usec` of `cpu.stat`.
fn usage_usec(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())
}

/// Sends SIGKILL to every process of the group in `folder` and of those below it.
pub(crate) fn kill_below(folder: &Path) {
    // One write, without a race; version 1 and kernels before 5.14 lack the file.
    if fs::OpenOptions::new()
        .write(true)
        .open(folder.join("cgroup.kill"))
        .and_then(|mut file| io::Write::write_all(&mut file, b"1"))
        .is_ok()
    {
        return;
    }
    for _ in 0..KILL_PASSES_MAX {
        let mut n_sent = 0;
        for pid in processes_below(folder) {
            let Some(pid) = rustix::process::Pid::from_raw(pid) else { continue };
            if rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok() {
                n_sent += 1;
            }
        }
        if n_sent == 0 {
            return;
        }
        std::thread::yield_now();
    }
}

/// The processes of the group in `folder` and of those below it.
pub(crate) fn processes_below(folder: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    collect_processes(folder, &mut pids);
    pids
}

/// A group's path below a hierarchy's root.
fn relative(cgroup: &str) -> io::Result<&Path> {
    let bad = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("cgroup path {cgroup:?} is not absolute and plain"),
        )
    };
    let relative = cgroup.strip_prefix('/').ok_or_else(bad)?;
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if relative.split('/').all(plain) { Ok(Path::new(relative)) } else { Err(bad()) }
}

/// Sets a limit that this group has. One it lacks is left out: the kernel was
/// built without it, or would not pass the controller down (version 2 refuses
/// `cpu` while a real-time process is in a group, for one).
fn limit(folder: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    if folder.join(file).exists() { put(folder, file, value) } else { Ok(()) }
}

fn put(folder: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    let path = folder.join(file);
    fs::write(&path, value.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let entries = entries.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    entries.map(|entry| entry.path()).collect()
}

fn collect_processes(folder: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1));
    for sub in subfolders(folder) {
        collect_processes(&sub, pids);
    }
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for sub in subfolders(folder) {
        remove_tree(&sub)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 23 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw shared:4 - cgroup cgroup rw,cpu,cpuacct
26 24 0:24 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
27 24 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
28 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn controllers_are_found_where_they_are_mounted() {
        let found = Hierarchies::parse(HYBRID);
        assert_eq!(found.v1_root("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.v1_root("memory"), None);
        assert_eq!(found.unified_root(), None);
        let pure = Hierarchies::parse("28 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(pure.unified_root(), Some(Path::new("/sys/fs/cgroup")));
    }

    #[test]
    fn processor_time_is_read_on_both_versions() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        fs::create_dir(root.join("c")).unwrap();
        let v1 = Hierarchies { v1: vec![(vec!["cpuacct".into()], root.clone())], v2: None };
        assert_eq!(v1.cpu_time("/c"), None);
        fs::write(root.join("c/cpuacct.usage"), "1234567\n").unwrap();
        assert_eq!(v1.cpu_time("/c"), Some(1_234_567));
        let v2 = Hierarchies { v1: Vec::new(), v2: Some(root.clone()) };
        fs::write(root.join("c/cpu.stat"), "usage_usec 12\nuser_usec 7\n").unwrap();
        assert_eq!(v2.cpu_time("/c"), Some(12_000));
        fs::write(root.join("c/cpu.stat"), "nr_periods 0\nusage_usec x\n").unwrap();
        assert_eq!(v2.cpu_time("/c"), None);
        assert_eq!(v2.cpu_time("/../c"), None);
    }

    #[test]
    fn a_path_never_leaves_the_hierarchy() {
        for bad in ["", "/", "pinnace/a", "/pinnace/../a", "/pinnace//a", "/./a"] {
            assert_eq!(relative(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad}");
        }
        assert_eq!(relative("/pinnace/pod1/c-0").unwrap(), Path::new("pinnace/pod1/c-0"));
    }
}
