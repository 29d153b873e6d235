//! The system calls a guest's process keeps, as a BPF program.
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
/// Low half of the first argument (every target here is little-endian).
const DATA_ARG0: u32 = 16;

const LD_W_ABS: u16 = 0x20;
const JEQ_K: u16 = 0x15;
const JSET_K: u16 = 0x45;
const RET_K: u16 = 0x06;

/// What a running guest needs: memory, files it has open or may open in its
/// root, sockets of its pod, time, waiting, and threads of its own process.
///
/// By name, because the calls differ between architectures; a name this one
/// does not have is left out.
const ALLOWED: &str = "
    read write readv writev pread64 pwrite64 preadv pwritev lseek _llseek
    epoll_pwait epoll_pwait2 epoll_wait epoll_ctl epoll_create1 eventfd2 poll ppoll pselect6
    select _newselect futex futex_time64 clock_gettime clock_gettime64 clock_getres
    clock_getres_time64 clock_nanosleep clock_nanosleep_time64 nanosleep gettimeofday time
    getrandom mmap mmap2 munmap mprotect mremap madvise brk membarrier rseq
    open openat openat2 close close_range stat lstat fstat newfstatat fstatat64 stat64 lstat64
    fstat64 statx statfs fstatfs statfs64 fstatfs64 access faccessat faccessat2 readlink readlinkat
    getdents64 fcntl fcntl64 dup dup2 dup3 ftruncate ftruncate64 truncate fallocate fadvise64
    fadvise64_64 arm_fadvise64_64 fsync fdatasync sync_file_range sync_file_range2 mkdir mkdirat
    unlink unlinkat rmdir rename renameat renameat2 link linkat symlink symlinkat utimensat
    utimensat_time64 futimesat getcwd pipe2 ioctl
    socket bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt
    sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg recvmmsg_time64 send recv shutdown
    socketpair
    rt_sigaction rt_sigprocmask rt_sigreturn sigreturn sigaltstack rt_sigtimedwait restart_syscall
    set_robust_list get_robust_list set_tid_address sched_yield sched_getaffinity gettid getpid
    getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 tgkill
    getrusage sysinfo uname prlimit64 getrlimit ugetrlimit exit exit_group
    set_thread_area set_tls cacheflush riscv_flush_icache
";

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

/// The program.
pub(crate) fn program() -> Vec<Instruction> {
    let errno = |number: i32| RET_ERRNO | number.unsigned_abs();
    let mut code = vec![
        op(LD_W_ABS, 0, 0, DATA_ARCH),
        op(JEQ_K, 1, 0, AUDIT_ARCH),
        op(RET_K, 0, 0, RET_KILL_PROCESS),
        op(LD_W_ABS, 0, 0, DATA_NR),
    ];
    for name in ALLOWED.split_whitespace() {
        if let Some(number) = number(name) {
            code.push(op(JEQ_K, 0, 1, number));
            code.push(op(RET_K, 0, 0, RET_ALLOW));
        }
    }
    // `clone3` hides its flags from a filter; ENOSYS makes the C library use `clone`.
    if let Some(number) = number("clone3") {
        code.push(op(JEQ_K, 0, 1, number));
        code.push(op(RET_K, 0, 0, errno(libc::ENOSYS)));
    }
    // `clone` makes threads, never processes.
    if let Some(number) = number("clone") {
        code.push(op(JEQ_K, 0, 4, number));
        code.push(op(LD_W_ABS, 0, 0, DATA_ARG0));
        code.push(op(JSET_K, 0, 1, libc::CLONE_THREAD.unsigned_abs()));
        code.push(op(RET_K, 0, 0, RET_ALLOW));
        code.push(op(RET_K, 0, 0, errno(libc::EPERM)));
    }
    code.push(op(RET_K, 0, 0, errno(libc::EPERM)));
    code
}

fn number(name: &str) -> Option<u32> {
    let number: Sysno = name.parse().ok()?;
    u32::try_from(number.id()).ok()
}

/// Confines the calling thread, and every thread it makes, to [`ALLOWED`].
/// `no_new_privs` must be set.
///
/// # Errors
///
/// What the kernel says where it has no seccomp.
#[allow(unsafe_code)]
pub(crate) fn install() -> std::io::Result<()> {
    let code = program();
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
    fn verdict(arch: u32, nr: u32, arg0: u32) -> u32 {
        let code = program();
        let (mut at, mut a) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = code[at];
            at += 1;
            match code {
                LD_W_ABS => {
                    a = match k {
                        DATA_NR => nr,
                        DATA_ARCH => arch,
                        DATA_ARG0 => arg0,
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

    #[test]
    fn only_what_a_guest_needs_is_allowed() {
        let check = |name: &str, arg0: i32, expected: u32| {
            let nr = number(name).unwrap_or_else(|| panic!("{name} has a number"));
            assert_eq!(verdict(AUDIT_ARCH, nr, arg0.unsigned_abs()), expected, "{name}");
        };
        let eperm = RET_ERRNO | libc::EPERM.unsigned_abs();
        check("read", 0, RET_ALLOW);
        check("futex", 0, RET_ALLOW);
        check("clone", libc::CLONE_THREAD | libc::CLONE_VM, RET_ALLOW);
        check("clone", libc::SIGCHLD, eperm);
        check("clone", libc::CLONE_NEWUSER, eperm);
        check("clone3", 0, RET_ERRNO | libc::ENOSYS.unsigned_abs());
        for name in [
            "execve",
            "ptrace",
            "mount",
            "setns",
            "unshare",
            "bpf",
            "kill",
            "keyctl",
            "io_uring_setup",
        ] {
            check(name, 0, eperm);
        }
        assert_eq!(verdict(AUDIT_ARCH ^ 1, 0, 0), RET_KILL_PROCESS);
    }
}
