//! What a container may ask of the kernel.
//!
//! An allow-list of the calls that ordinary programs use. It follows Docker's
//! default profile, which containerd and CRI-O share, so that an image behaves
//! as it does elsewhere, but for `io_uring`, which newer versions of it leave
//! out as well. Calls that come with a capability are allowed with it. The rest
//! fails with EPERM; calls newer than this table with ENOSYS, so that libc falls
//! back to older ones.
//!
//! Source: <https://docs.docker.com/engine/security/seccomp/>.

use std::collections::BTreeMap;

use caps::Capability;

use crate::capabilities::Set;

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    Errno(u16),
    /// Allowed where the condition holds, else this errno.
    If(Condition, u16),
    /// What the kernel calls it, `SECCOMP_RET_*`.
    Return(u32),
    /// The first of these [`Table::rules`] that holds.
    Rules(usize),
}

/// What happens to a call whose arguments are like this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// All must hold.
    pub(super) comparisons: Vec<Comparison>,
    /// `SECCOMP_RET_*`.
    pub(super) then: u32,
}

/// A comparison of an argument, all 64 bits of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    /// Which argument, 0 to 5.
    pub(super) argument: u8,
    /// How.
    pub(super) operator: Operator,
    /// With what.
    pub(super) value: u64,
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Only these bits of the argument count.
    MaskedEqual(u64),
}

/// A condition on the low 32 bits of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// The argument is one of these.
    OneOf(u8, &'static [u32]),
    /// The argument has none of these bits.
    NoneOf(u8, u32),
    /// The argument is not this.
    Not(u8, u32),
}

/// The calls of one architecture.
pub(super) struct Table {
    /// `AUDIT_ARCH_*`.
    pub(super) architecture: u32,
    actions: BTreeMap<u32, Action>,
    /// The highest number this table knows.
    pub(super) newest: u32,
    /// For [`Action::Rules`]; where none of a list holds, `otherwise` does.
    pub(super) rules: Vec<Vec<Rule>>,
    /// What happens to every call that is not listed; `None` for EPERM, and
    /// ENOSYS where it is newer than the table.
    pub(super) otherwise: Option<u32>,
    /// Calls outside the table's range, as 32-bit arm has them.
    lookup: fn(&str) -> Option<u32>,
}

impl Table {
    /// What happens to the calls from each number on, up to the next.
    pub(super) fn ranges(&self) -> Vec<(u32, Action)> {
        let mut ranges: Vec<(u32, Action)> = Vec::new();
        let mut push = |start: u32, action: Action| {
            if ranges.last().is_none_or(|(_, last)| *last != action) {
                ranges.push((start, action));
            }
        };
        let mut next = 0;
        let has_newer = self.otherwise.is_none();
        for (number, action) in &self.actions {
            if *number > next {
                push(next, self.gap(next));
                if has_newer && next <= self.newest && *number > self.newest + 1 {
                    push(self.newest + 1, Action::Errno(ENOSYS));
                }
            }
            push(*number, *action);
            next = number + 1;
        }
        push(next, self.gap(next));
        if has_newer && next <= self.newest {
            push(self.newest + 1, Action::Errno(ENOSYS));
        }
        ranges
    }

    /// Lists the calls anew.
    pub(super) fn replace(
        &mut self,
        actions: BTreeMap<u32, Action>,
        rules: Vec<Vec<Rule>>,
        otherwise: u32,
    ) {
        self.actions = actions;
        self.rules = rules;
        self.otherwise = Some(otherwise);
    }

    /// The number of a call; `None` where this architecture does not have it.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        (self.lookup)(name)
    }

    fn gap(&self, number: u32) -> Action {
        if let Some(otherwise) = self.otherwise {
            return Action::Return(otherwise);
        }
        Action::Errno(if number > self.newest { ENOSYS } else { EPERM })
    }

    #[cfg(test)]
    pub(super) fn action(&self, number: u32) -> Action {
        self.actions.get(&number).copied().unwrap_or_else(|| self.gap(number))
    }
}

/// Always allowed, by what they are about.
const ALLOWED: &[&str] = &[
    // files
    "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 \
     faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown \
     fchown32 fchownat fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 \
     fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 ioctl lchown lchown32 link \
     linkat lseek _llseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat \
     open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead \
     readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat \
     stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee truncate \
     truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev",
    // extended attributes
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr \
     lremovexattr lsetxattr removexattr setxattr getxattrat listxattrat removexattrat setxattrat",
    // waiting and watching
    "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
     epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 \
     inotify_rm_watch _newselect poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd \
     signalfd4",
    // memory
    "brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock \
     mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc \
     pkey_free pkey_mprotect remap_file_pages",
    // processes and threads
    "execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv \
     futex_wake get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getpriority \
     getrlimit getrusage getsid gettid ioprio_get ioprio_set kill pidfd_open pidfd_send_signal \
     prctl prlimit64 process_mrelease process_vm_readv process_vm_writev ptrace restart_syscall \
     rseq sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
     sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
     sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield set_robust_list \
     set_thread_area set_tid_address setpgid setpriority setrlimit setsid tgkill tkill ugetrlimit \
     vfork wait4 waitid waitpid",
    // identity and confinement
    "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
     getresgid getresgid32 getresuid getresuid32 getuid getuid32 landlock_add_rule \
     landlock_create_ruleset landlock_restrict_self seccomp setfsgid setfsgid32 setfsuid setfsuid32 \
     setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid \
     setresuid32 setreuid setreuid32 setuid setuid32",
    // signals
    "pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
     rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn",
    // time
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
     clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep \
     setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 \
     timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
     timerfd_settime timerfd_settime64 times",
    // sockets
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
     recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    // System V and POSIX queues, semaphores, shared memory
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
     mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
     semtimedop_time64 shmat shmctl shmdt shmget",
    // asynchronous I/O of the old kind
    "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit",
    // the rest
    "getrandom sysinfo uname",
    // one architecture only; the others do not know the names
    "arch_prctl modify_ldt arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint \
     cacheflush set_tls",
];

/// Allowed with a capability.
const WITH_CAPABILITY: &[(Capability, &str)] = &[
    (Capability::CAP_DAC_READ_SEARCH, "open_by_handle_at"),
    (
        Capability::CAP_SYS_ADMIN,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount \
         mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    ),
    (Capability::CAP_SYS_BOOT, "reboot"),
    (Capability::CAP_SYS_CHROOT, "chroot"),
    (Capability::CAP_SYS_MODULE, "delete_module finit_module init_module"),
    (Capability::CAP_SYS_PACCT, "acct"),
    (Capability::CAP_SYS_PTRACE, "kcmp pidfd_getfd process_madvise"),
    (Capability::CAP_SYS_RAWIO, "ioperm iopl"),
    (Capability::CAP_SYS_TIME, "clock_settime clock_settime64 settimeofday stime"),
    (Capability::CAP_SYS_TTY_CONFIG, "vhangup"),
    (Capability::CAP_SYS_NICE, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::CAP_SYSLOG, "syslog"),
    (Capability::CAP_BPF, "bpf"),
    (Capability::CAP_PERFMON, "perf_event_open"),
];

/// `CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET`.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

/// Address family of virtual machines' sockets: it knows no network namespace.
const AF_VSOCK: u32 = 40;

/// The execution domains of Linux, with and without the 32-bit machine name and
/// short inodes; all ones asks for the present one.
const PERSONALITIES: &[u32] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const CONDITIONAL: &[(&str, Action)] = &[
    ("personality", Action::If(Condition::OneOf(0, PERSONALITIES), EPERM)),
    ("socket", Action::If(Condition::Not(0, AF_VSOCK), EPERM)),
    ("clone", Action::If(Condition::NoneOf(0, CLONE_NAMESPACES), EPERM)),
    // Its flags are behind a pointer; libc falls back to clone.
    ("clone3", Action::Errno(ENOSYS)),
];

fn table(
    architecture: u32,
    newest: u32,
    lookup: fn(&str) -> Option<u32>,
    capabilities: &Set,
) -> Table {
    let mut actions = BTreeMap::new();
    let mut put = |names: &str, action: Action| {
        for number in names.split_whitespace().filter_map(lookup) {
            actions.insert(number, action);
        }
    };
    for names in ALLOWED {
        put(names, Action::Allow);
    }
    for (name, action) in CONDITIONAL {
        put(name, *action);
    }
    for (capability, names) in WITH_CAPABILITY {
        if capabilities.contains(capability) {
            put(names, Action::Allow);
        }
    }
    Table { architecture, actions, newest, rules: Vec::new(), otherwise: None, lookup }
}

macro_rules! architecture {
    ($name:ident, $module:ident, $audit:expr, $private:expr) => {
        fn $name(capabilities: &Set) -> Table {
            use std::str::FromStr;
            fn lookup(name: &str) -> Option<u32> {
                let private: &[(&str, u32)] = $private;
                if let Some((_, number)) = private.iter().find(|(known, _)| *known == name) {
                    return Some(*number);
                }
                let call = syscalls::$module::Sysno::from_str(name).ok()?;
                u32::try_from(call.id()).ok()
            }
            let newest = u32::try_from(syscalls::$module::Sysno::last().id()).unwrap_or(0);
            table($audit, newest, lookup, capabilities)
        }
    };
}

#[cfg(any(target_arch = "x86_64", test))]
architecture!(x86_64, x86_64, 0xc000_003e, &[]);
#[cfg(any(target_arch = "x86_64", test))]
architecture!(x86, x86, 0x4000_0003, &[]);
#[cfg(any(target_arch = "aarch64", test))]
architecture!(aarch64, aarch64, 0xc000_00b7, &[]);
#[cfg(any(target_arch = "arm", target_arch = "aarch64", test))]
architecture!(
    arm,
    arm,
    0x4000_0028,
    // __ARM_NR_BASE is 0x0f0000.
    &[("breakpoint", 0xf_0001), ("cacheflush", 0xf_0002), ("set_tls", 0xf_0005)]
);

/// The tables of the architectures that this kernel runs.
pub(super) fn tables(capabilities: &Set) -> Vec<Table> {
    #[cfg(target_arch = "x86_64")]
    return vec![x86_64(capabilities), x86(capabilities)];
    #[cfg(target_arch = "aarch64")]
    return vec![aarch64(capabilities), arm(capabilities)];
    #[cfg(target_arch = "arm")]
    return vec![arm(capabilities)];
}

#[cfg(test)]
pub(super) const TABLES_FOR_TESTS: [fn(&Set) -> Table; 4] = [x86_64, x86, aarch64, arm];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_misspelt() {
        let none = Set::new();
        let tables = TABLES_FOR_TESTS.map(|table_of| table_of(&none));
        // In no table of these four, but in Docker's profile, or newer than the tables.
        let strangers = [
            "getxattrat",
            "listxattrat",
            "removexattrat",
            "setxattrat",
            "mseal",
            "map_shadow_stack",
            "arm_sync_file_range",
        ];
        let capable = WITH_CAPABILITY.iter().map(|(_, names)| *names);
        for name in ALLOWED.iter().copied().chain(capable).flat_map(str::split_whitespace) {
            let known = tables.iter().any(|table| table.number(name).is_some());
            assert!(known || strangers.contains(&name), "{name}");
        }
    }

    #[test]
    fn ranges_cover_every_number_once() {
        let table = arm(&Set::new());
        let ranges = table.ranges();
        assert_eq!(ranges[0].0, 0);
        assert!(ranges.is_sorted_by(|a, b| a.0 < b.0));
        let at = |number: u32| ranges.iter().rev().find(|(start, _)| *start <= number).unwrap().1;
        assert_eq!(at(0xf_0005), Action::Allow);
        assert_eq!(at(0xf_0004), Action::Errno(ENOSYS));
        assert_eq!(at(table.newest + 1), Action::Errno(ENOSYS));
        assert_eq!(at(u32::MAX), Action::Errno(ENOSYS));
    }
}
