//! The `bpf(2)` system call, as far as it is needed here: maps, one program, one
//! link, and a trial run of the program.
//!
//! Knows nothing of what the program decides.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::program::Instruction;

const MAP_CREATE: i32 = 0;
const MAP_UPDATE: i32 = 2;
const MAP_DELETE: i32 = 3;
const PROG_LOAD: i32 = 5;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;

const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_SOCKMAP: u32 = 15;
const NO_PREALLOC: u32 = 1;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;

/// Most bytes of what the verifier says.
const LOG_BYTES: usize = 64 << 10;

/// The kernel's `union bpf_attr`: zeros, and fields at their offsets.
#[repr(C, align(8))]
struct Attributes([u8; 128]);

impl Attributes {
    fn new() -> Self {
        Self([0; 128])
    }

    fn u32(mut self, offset: usize, value: u32) -> Self {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, offset: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(offset, fd.as_raw_fd().unsigned_abs())
    }

    fn pointer<T>(mut self, offset: usize, value: *const T) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&(value as u64).to_ne_bytes());
        self
    }

    fn name(mut self, offset: usize, name: &str) -> Self {
        self.0[offset..offset + name.len()].copy_from_slice(name.as_bytes());
        self
    }

    /// # Safety
    /// Every pointer in it is valid for what the command does with it.
    unsafe fn call(&mut self, command: i32) -> io::Result<i32> {
        // SAFETY: the kernel reads and writes within the 128 bytes, and by the
        // pointers that the caller answers for.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        i32::try_from(result).map_err(io::Error::other)
    }

    /// # Safety
    /// As [`Self::call`], and the command returns a new descriptor.
    unsafe fn open(&mut self, command: i32) -> io::Result<OwnedFd> {
        // SAFETY: the caller says so; the descriptor is new, so it is ours.
        unsafe { self.call(command).map(|fd| OwnedFd::from_raw_fd(fd)) }
    }
}

/// A map of the kernel.
#[derive(Debug)]
pub(super) struct Map {
    fd: OwnedFd,
    key_bytes: usize,
    value_bytes: usize,
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Map {
    /// A set of keys of this size.
    pub(super) fn set(name: &str, key_bytes: usize, n_max: u32) -> io::Result<Self> {
        Self::create(name, MAP_TYPE_HASH, key_bytes, 4, n_max, NO_PREALLOC)
    }

    /// A map from numbers to sockets.
    pub(super) fn sockets(name: &str, n_max: u32) -> io::Result<Self> {
        Self::create(name, MAP_TYPE_SOCKMAP, 4, 8, n_max, 0)
    }

    fn create(
        name: &str,
        kind: u32,
        key_bytes: usize,
        value_bytes: usize,
        n_max: u32,
        flags: u32,
    ) -> io::Result<Self> {
        let size = |n: usize| u32::try_from(n).map_err(io::Error::other);
        let mut attributes = Attributes::new()
            .u32(0, kind)
            .u32(4, size(key_bytes)?)
            .u32(8, size(value_bytes)?)
            .u32(12, n_max)
            .u32(16, flags)
            .name(28, name);
        // SAFETY: the attributes hold no pointer, and a map is a descriptor.
        let fd = unsafe { attributes.open(MAP_CREATE) }?;
        Ok(Self { fd, key_bytes, value_bytes })
    }

    /// Takes over a map that another process made.
    pub(super) fn adopt(fd: OwnedFd, key_bytes: usize, value_bytes: usize) -> Self {
        Self { fd, key_bytes, value_bytes }
    }

    pub(super) fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if key.len() != self.key_bytes || value.len() != self.value_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attributes = Attributes::new()
            .fd(0, self.fd.as_fd())
            .pointer(8, key.as_ptr())
            .pointer(16, value.as_ptr());
        // SAFETY: both are read only, and have the sizes that the map was made with.
        unsafe { attributes.call(MAP_UPDATE) }.map(drop)
    }

    pub(super) fn remove(&self, key: &[u8]) -> io::Result<()> {
        if key.len() != self.key_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attributes = Attributes::new().fd(0, self.fd.as_fd()).pointer(8, key.as_ptr());
        // SAFETY: the key is read only, and has the size that the map was made with.
        match unsafe { attributes.call(MAP_DELETE) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Has the kernel check and take the program. An error has the end of what the
/// verifier said.
pub(super) fn load(name: &str, code: &[Instruction]) -> io::Result<OwnedFd> {
    let licence = c"GPL";
    let n = u32::try_from(code.len()).map_err(io::Error::other)?;
    let attributes = || {
        Attributes::new()
            .u32(0, PROG_TYPE_SK_LOOKUP)
            .u32(4, n)
            .pointer(8, code.as_ptr())
            .pointer(16, licence.as_ptr())
            .name(48, name)
            .u32(68, ATTACH_SK_LOOKUP)
    };
    // SAFETY: `code` and `licence` outlive the call and are read only.
    let error = match unsafe { attributes().open(PROG_LOAD) } {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let mut log = vec![0_u8; LOG_BYTES];
    let mut again = attributes()
        .u32(24, 1)
        .u32(28, u32::try_from(LOG_BYTES).map_err(io::Error::other)?)
        .pointer(32, log.as_mut_ptr());
    // SAFETY: as above, and the log is written within its size.
    match unsafe { again.open(PROG_LOAD) } {
        Ok(program) => Ok(program),
        Err(_) => {
            let text = String::from_utf8_lossy(&log);
            let text = text.trim_end_matches('\0').trim_end();
            let last = text.lines().rev().take(3).collect::<Vec<_>>();
            let last = last.into_iter().rev().collect::<Vec<_>>().join("; ");
            Err(io::Error::new(error.kind(), format!("{error} {last}").trim_end().to_owned()))
        }
    }
}

/// Puts the program in force in a network namespace, until the link is closed.
pub(super) fn attach(program: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::new().fd(0, program).fd(4, namespace).u32(8, ATTACH_SK_LOOKUP);
    // SAFETY: the attributes hold no pointer, and a link is a descriptor.
    unsafe { attributes.open(LINK_CREATE) }
}

/// Puts another program in the place of the one behind a link, in one step.
pub(super) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::new().fd(0, link).fd(4, program);
    // SAFETY: the attributes hold no pointer.
    unsafe { attributes.call(LINK_UPDATE) }.map(drop)
}

/// Runs the program on a `struct bpf_sk_lookup`: what it returned, and the cookie of
/// the socket that it chose, or 0.
#[cfg(test)]
pub(super) fn trial(program: BorrowedFd<'_>, context: &[u8; 72]) -> io::Result<(u32, u64)> {
    const PROG_TEST_RUN: i32 = 10;
    let mut out = [0_u8; 72];
    let mut attributes = Attributes::new()
        .fd(0, program)
        .u32(40, 72)
        .u32(44, 72)
        .pointer(48, context.as_ptr())
        .pointer(56, out.as_mut_ptr());
    // SAFETY: both are as long as said; one is read, the other written.
    unsafe { attributes.call(PROG_TEST_RUN) }?;
    let returned = u32::from_ne_bytes(attributes.0[4..8].try_into().unwrap());
    Ok((returned, u64::from_ne_bytes(out[..8].try_into().unwrap())))
}
