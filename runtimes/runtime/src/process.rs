//! Processes that are not ours: identity across pid reuse, signals through
//! pidfds, and the exit status the kernel keeps for them.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;

/// Wall clock, in milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Gives every signal but those of `except` its default effect: a program inherits
/// which ones are ignored. Whoever starts an agent with `nohup` ignores SIGHUP, and
/// a terminal would never hang up.
pub fn default_signals(except: &[i32]) {
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| !except.contains(signal)) {
        // SAFETY: the default effect is no function of ours. It fails for SIGKILL and
        // SIGSTOP, whose effect is never another, and for those of the C library.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// The kernel's random name for this boot; empty where /proc has none.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// When a process started, in clock ticks since boot: with the pid, its identity.
///
/// `None` once it is gone. A zombie still has one.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the fields follow its end.
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

/// Whether a process has ended but is not reaped.
fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
}

/// A pidfd of the process `pid` that started at `ticks`.
///
/// # Errors
/// `NotFound` if it is gone, has ended, or another process has the pid now.
pub(crate) fn open(pid: i32, ticks: u64) -> io::Result<OwnedFd> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, format!("process {pid} is gone"));
    let raw = rustix::process::Pid::from_raw(pid).filter(|_| pid > 1).ok_or_else(gone)?;
    let fd = match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Err(gone()),
        Err(error) => return Err(error.into()),
    };
    // Compared after the pidfd exists: from here on the pid cannot change hands unseen.
    if start_ticks(pid) != Some(ticks) || is_zombie(pid) {
        return Err(gone());
    }
    Ok(fd)
}

/// Sends a signal; a process that is gone is fine.
pub(crate) fn signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let signal = Signal::from_named_raw(signal).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{signal} is not a signal"))
    })?;
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until `fd` shows one of `flags`, or the time is over. True if it does.
pub(crate) fn wait_for(fd: &impl AsFd, flags: PollFlags, timeout_ms: u32) -> bool {
    let timeout = Timespec {
        tv_sec: i64::from(timeout_ms / 1000),
        tv_nsec: i64::from(timeout_ms % 1000) * 1_000_000,
    };
    let mut fds = [PollFd::new(fd, flags)];
    loop {
        match poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) => return fds[0].revents().intersects(flags),
        }
    }
}

/// Exit status of a process that is not our child, as `wait` would give it.
///
/// The kernel keeps it with the pidfd from 6.15 on, once the parent has reaped
/// the process; older kernels cannot say.
pub(crate) fn exit_status_of_stranger(pidfd: &OwnedFd) -> Option<i32> {
    /// `_IOWR(0xFF, 11, struct pidfd_info)` with the first 64 bytes of the struct.
    const PIDFD_GET_INFO: u32 = 0xC040_FF0B;
    /// Asks for `exit_code`.
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    // POLLHUP follows the reaping; PID 1 of a small system may take its time.
    wait_for(pidfd, PollFlags::HUP, 5_000);
    // struct pidfd_info: u64 mask, u64 cgroupid, u32 × 11 (pid … fsgid), i32 exit_code at byte 60.
    let mut info = [0_u64; 8];
    info[0] = PIDFD_INFO_EXIT;
    // SAFETY: the descriptor is a pidfd, and `info` is writable and as long as the request says.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, info.as_mut_ptr()) };
    if result != 0 || info[0] & PIDFD_INFO_EXIT == 0 {
        return None;
    }
    let bytes = info[7].to_ne_bytes();
    Some(i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]))
}

/// Locks a file for its descriptor, against this process's other descriptors
/// too, and against shims, which take a record lock. False if another has it.
///
/// Not a record lock: those are lost as soon as the process closes any
/// descriptor of the file, and the agent looks at locks from many tasks.
#[allow(clippy::cast_possible_truncation, reason = "small constants; the type differs by target")]
pub(crate) fn lock_descriptor(file: &fs::File) -> io::Result<bool> {
    // SAFETY: all of `flock` is plain data, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as _;
    lock.l_whence = libc::SEEK_SET as _;
    // SAFETY: the descriptor is open, and the kernel only reads `lock`.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// The process that holds a record lock on a file; `None` for nobody, and for a
/// lock that belongs to a descriptor.
#[allow(clippy::cast_possible_truncation, reason = "small constants; the type differs by target")]
pub(crate) fn lock_holder(file: &fs::File) -> io::Result<Option<i32>> {
    // SAFETY: all of `flock` is plain data, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as _;
    lock.l_whence = libc::SEEK_SET as _;
    // SAFETY: the descriptor is open, and `lock` is writable and of the type the call fills.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let is_held = lock.l_type != libc::F_UNLCK as libc::c_short;
    // -1 where a descriptor holds it.
    Ok(Some(lock.l_pid).filter(|pid| is_held && *pid > 1))
}

/// Whether the process of a pidfd has ended.
pub(crate) fn has_ended(pidfd: &OwnedFd) -> bool {
    wait_for(pidfd, PollFlags::IN, 0)
}

/// Waits, in a task, until the process of a pidfd has ended.
///
/// # Errors
/// The reactor cannot take another descriptor.
pub(crate) async fn ended(pidfd: OwnedFd) -> io::Result<()> {
    // SAFETY: an OwnedFd is one descriptor for as long as it lives, and nothing
    // here replaces or closes it while the reactor has it.
    let pidfd = unsafe { AsyncFd::register(pidfd) }?;
    pidfd.readable().await.map(drop)
}

/// Splits a wait status into exit code and signal.
pub(crate) fn decode_status(status: i32) -> (i32, Option<i32>) {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        (128 + signal, Some(signal))
    } else {
        (libc::WEXITSTATUS(status), None)
    }
}

/// Gives the heap that the start needed back to the system.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let me = i32::try_from(std::process::id()).unwrap();
        let ticks = start_ticks(me).unwrap();
        open(me, ticks).unwrap();
        assert_eq!(open(me, ticks + 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(open(0, 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_status_splits_into_code_and_signal() {
        assert_eq!(decode_status(7 << 8), (7, None));
        assert_eq!(decode_status(9), (137, Some(9)));
    }
}
