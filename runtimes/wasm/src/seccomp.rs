//! The system calls that a confined process keeps, as a BPF program.
//!
//! An allow-list: whatever is not named fails with `EPERM`. The program is
//! emitted here rather than by a library because the list is flat, and because
//! 32-bit ARM has no such library.

use syscalls::Sysno;

/// `AUDIT_ARCH_*` of this build, from `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const AUDIT_ARCH: u32 = 0xc000_00f3;
#[cfg(target_arch = "arm")]
const AUDIT_ARCH: u32 = 0x4000_0028;

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;

/// Offsets in `struct seccomp_data`.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;

/// Offset of the low half of an argument (every target here is little-endian).
const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

const LD_W_ABS: u16 = 0x20;
const JEQ_K: u16 = 0x15;
const JSET_K: u16 = 0x45;
const RET_K: u16 = 0x06;

/// Who is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// A running guest: memory, files it has open or may open in its root,
    /// sockets of its pod, time, waiting, and threads of its own process.
    Guest,
    /// The compiler, which has all it needs in memory: no files, no sockets.
    #[cfg(any(feature = "compile", test))]
    Compiler,
}

/// What every profile keeps: memory, time, waiting, and what is open already.
///
/// By name, because the calls differ between architectures; a name this one
/// does not have is left out.
const COMMON: &str = "
    read write readv writev lseek _llseek close fstat fstat64 newfstatat fcntl fcntl64
    poll ppoll futex futex_time64 clock_gettime clock_gettime64 clock_getres
    clock_getres_time64 clock_nanosleep clock_nanosleep_time64 nanosleep gettimeofday time
    getrandom munmap mremap madvise brk membarrier rseq
    rt_sigaction rt_sigprocmask rt_sigreturn sigreturn sigaltstack restart_syscall
    set_robust_list get_robust_list set_tid_address sched_yield sched_getaffinity gettid getpid
    tgkill getrusage sysinfo uname prlimit64 getrlimit ugetrlimit exit exit_group
    set_thread_area set_tls cacheflush riscv_flush_icache
";

/// What a guest keeps on top.
const GUEST: &str = "
    pread64 pwrite64 preadv pwritev
    epoll_pwait epoll_pwait2 epoll_wait epoll_ctl epoll_create1 eventfd2 pselect6
    select _newselect
    open openat openat2 close_range stat lstat fstatat64 stat64 lstat64
    statx statfs fstatfs statfs64 fstatfs64 access faccessat faccessat2 readlink readlinkat
    getdents64 dup dup2 dup3 ftruncate ftruncate64 truncate fallocate fadvise64
    fadvise64_64 arm_fadvise64_64 fsync fdatasync sync_file_range sync_file_range2 mkdir mkdirat
    unlink unlinkat rmdir rename renameat renameat2 link linkat symlink symlinkat utimensat
    utimensat_time64 futimesat getcwd pipe2
    bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt
    sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg recvmmsg_time64 send recv shutdown
    rt_sigtimedwait getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32
";

/// Kinds of sockets a guest may make. Not among them: those to the machine's
/// hypervisor (`AF_VSOCK`), to its crypto (`AF_ALG`), or to other processes
/// (`AF_UNIX`). Netlink is how the C library learns which addresses there are.
const SOCKETS: [i32; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// What a guest may ask of a descriptor: how much there is to read, not to
/// block, and whether it is a terminal.
#[allow(clippy::unnecessary_cast)] // Their type differs between targets.
const IOCTLS: [u64; 5] = [
    libc::FIONREAD as u64,
    libc::FIONBIO as u64,
    libc::FIOCLEX as u64,
    libc::TCGETS as u64,
    libc::TIOCGWINSZ as u64,
];

/// One instruction of classic BPF: the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn errno(number: i32) -> u32 {
    RET_ERRNO | number.unsigned_abs()
}

/// The program.
pub(crate) fn program(profile: Profile) -> Vec<Instruction> {
    let mut code = vec![
        op(LD_W_ABS, 0, 0, DATA_ARCH),
        op(JEQ_K, 1, 0, AUDIT_ARCH),
        op(RET_K, 0, 0, RET_KILL_PROCESS),
        op(LD_W_ABS, 0, 0, DATA_NR),
    ];
    allow(&mut code, COMMON);
    if profile == Profile::Guest {
        allow(&mut code, GUEST);
        one_of(&mut code, "socket", argument(0), &SOCKETS.map(i32::unsigned_abs));
        // The low half: every request above fits in it.
        #[allow(clippy::cast_possible_truncation)]
        one_of(&mut code, "ioctl", argument(1), &IOCTLS.map(|request| request as u32));
    }
    // Code is mapped before the filter is there; none is added afterwards.
    for name in ["mmap", "mmap2", "mprotect"] {
        unless(&mut code, name, argument(2), libc::PROT_EXEC.unsigned_abs());
    }
    // `clone3` hides its flags from a filter; ENOSYS makes the C library use `clone`.
    if let Some(number) = number("clone3") {
        code.push(op(JEQ_K, 0, 1, number));
        code.push(op(RET_K, 0, 0, errno(libc::ENOSYS)));
    }
    // `clone` makes threads, never processes.
    if let Some(number) = number("clone") {
        code.push(op(JEQ_K, 0, 4, number));
        code.push(op(LD_W_ABS, 0, 0, argument(0)));
        code.push(op(JSET_K, 0, 1, libc::CLONE_THREAD.unsigned_abs()));
        code.push(op(RET_K, 0, 0, RET_ALLOW));
        code.push(op(RET_K, 0, 0, errno(libc::EPERM)));
    }
    code.push(op(RET_K, 0, 0, errno(libc::EPERM)));
    code
}

/// Allows calls whatever their arguments.
fn allow(code: &mut Vec<Instruction>, names: &str) {
    for name in names.split_whitespace() {
        if let Some(number) = number(name) {
            code.push(op(JEQ_K, 0, 1, number));
            code.push(op(RET_K, 0, 0, RET_ALLOW));
        }
    }
}

/// Allows a call whose argument at `offset` is one of `values`.
fn one_of(code: &mut Vec<Instruction>, name: &str, offset: u32, values: &[u32]) {
    let Some(number) = number(name) else { return };
    // The load, two for each value, and the refusal.
    let n = u8::try_from(2 * values.len() + 2).expect("the lists above are short");
    code.push(op(JEQ_K, 0, n, number));
    code.push(op(LD_W_ABS, 0, 0, offset));
    for value in values {
        code.push(op(JEQ_K, 0, 1, *value));
        code.push(op(RET_K, 0, 0, RET_ALLOW));
    }
    code.push(op(RET_K, 0, 0, errno(libc::EPERM)));
}

/// Allows a call whose argument at `offset` has none of the bits of `mask`.
fn unless(code: &mut Vec<Instruction>, name: &str, offset: u32, mask: u32) {
    let Some(number) = number(name) else { return };
    code.push(op(JEQ_K, 0, 4, number));
    code.push(op(LD_W_ABS, 0, 0, offset));
    code.push(op(JSET_K, 0, 1, mask));
    code.push(op(RET_K, 0, 0, errno(libc::EPERM)));
    code.push(op(RET_K, 0, 0, RET_ALLOW));
}

fn number(name: &str) -> Option<u32> {
    let number: Sysno = name.parse().ok()?;
    u32::try_from(number.id()).ok()
}

/// Confines the calling thread, and every thread it makes, to a profile.
/// `no_new_privs` must be set.
///
/// # Errors
///
/// What the kernel says where it has no seccomp.
#[allow(unsafe_code)]
pub(crate) fn install(profile: Profile) -> std::io::Result<()> {
    let code = program(profile);
    let program = libc::sock_fprog {
        len: u16::try_from(code.len()).expect("the list is far shorter than 4096"),
        filter: code.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `program` points at `code`, which outlives the call, and
    // `Instruction` has the layout of `struct sock_filter`.
    let done = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0)
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel does.
    fn verdict(profile: Profile, arch: u32, nr: u32, args: [u32; 3]) -> u32 {
        let code = program(profile);
        let (mut at, mut a) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = code[at];
            at += 1;
            match code {
                LD_W_ABS => {
                    a = match k {
                        DATA_NR => nr,
                        DATA_ARCH => arch,
                        16 => args[0],
                        24 => args[1],
                        32 => args[2],
                        other => panic!("loads offset {other}"),
                    }
                }
                JEQ_K => at += usize::from(if a == k { jt } else { jf }),
                JSET_K => at += usize::from(if a & k != 0 { jt } else { jf }),
                RET_K => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    const EPERM: u32 = RET_ERRNO | libc::EPERM as u32;

    fn check(profile: Profile, name: &str, args: [i32; 3], expected: u32) {
        let Some(nr) = number(name) else { return };
        let args = args.map(i32::cast_unsigned);
        assert_eq!(verdict(profile, AUDIT_ARCH, nr, args), expected, "{name} {args:?}");
    }

    #[test]
    fn only_what_a_guest_needs_is_allowed() {
        let check = |name, args, expected| check(Profile::Guest, name, args, expected);
        check("read", [0; 3], RET_ALLOW);
        check("futex", [0; 3], RET_ALLOW);
        check("openat2", [0; 3], RET_ALLOW);
        check("connect", [0; 3], RET_ALLOW);
        check("clone", [libc::CLONE_THREAD | libc::CLONE_VM, 0, 0], RET_ALLOW);
        check("clone", [libc::SIGCHLD, 0, 0], EPERM);
        check("clone", [libc::CLONE_NEWUSER, 0, 0], EPERM);
        check("clone3", [0; 3], RET_ERRNO | libc::ENOSYS.unsigned_abs());
        for name in [
            "execve",
            "execveat",
            "fork",
            "ptrace",
            "process_vm_readv",
            "mount",
            "open_tree",
            "pivot_root",
            "chroot",
            "setns",
            "unshare",
            "bpf",
            "kill",
            "keyctl",
            "userfaultfd",
            "io_uring_setup",
            "open_by_handle_at",
            "memfd_create",
            "pkey_mprotect",
            "mknodat",
            "socketpair",
        ] {
            check(name, [0; 3], EPERM);
        }
        assert_eq!(verdict(Profile::Guest, AUDIT_ARCH ^ 1, 0, [0; 3]), RET_KILL_PROCESS);
    }

    #[test]
    fn sockets_are_of_the_network_only() {
        let check = |domain, expected| check(Profile::Guest, "socket", [domain, 0, 0], expected);
        for domain in SOCKETS {
            check(domain, RET_ALLOW);
        }
        for domain in [libc::AF_UNIX, libc::AF_PACKET, libc::AF_VSOCK, libc::AF_ALG, -1, 0] {
            check(domain, EPERM);
        }
    }

    #[test]
    fn devices_are_not_controlled_and_code_is_not_added() {
        let check = |name, args, expected| check(Profile::Guest, name, args, expected);
        check("ioctl", [0, i32::try_from(libc::FIONBIO).unwrap(), 0], RET_ALLOW);
        check("ioctl", [0, 0x5412, 0], EPERM); // TIOCSTI
        for name in ["mmap", "mmap2", "mprotect"] {
            check(name, [0, 0, libc::PROT_READ | libc::PROT_WRITE], RET_ALLOW);
            check(name, [0, 0, libc::PROT_READ | libc::PROT_EXEC], EPERM);
        }
    }

    #[test]
    fn the_compiler_reaches_neither_files_nor_the_network() {
        let check = |name, expected| check(Profile::Compiler, name, [0; 3], expected);
        for name in ["read", "write", "mmap", "brk", "futex", "exit_group"] {
            check(name, RET_ALLOW);
        }
        for name in ["open", "openat", "openat2", "socket", "connect", "ioctl", "execve", "link"] {
            check(name, EPERM);
        }
    }
}
