//! The seccomp filter of a container, for x86-64, arm64 and 32-bit arm.
//!
//! [`profile`] says what is allowed, [`bpf`] turns that into the kernel's
//! program. Made here rather than by libseccomp, which is a C library, or
//! seccompiler, which has no 32-bit arm and tests call after call where this
//! one searches.
//!
//! A 64-bit kernel also runs 32-bit programs, whose calls have other numbers;
//! the filter knows both. On any third architecture the process is killed.

mod bpf;
mod custom;
mod profile;

use std::io;
use std::path::Path;

pub use bpf::Program;
pub use custom::ProfileError;

use crate::capabilities::Set;

/// The default filter, for a container with these capabilities.
pub(crate) fn default_filter(capabilities: &Set) -> Program {
    bpf::compile(&profile::tables(capabilities))
}

/// Makes the filter of a profile in a file.
///
/// # Errors
/// It cannot be read, or says what cannot be done.
pub fn load(path: &Path) -> Result<Program, ProfileError> {
    Ok(bpf::compile(&custom::read(path)?))
}

/// Sets the filter for this process, for good.
///
/// Takes CAP_SYS_ADMIN or `no_new_privs`; does not set the latter.
pub(crate) fn install(program: &Program) -> io::Result<()> {
    bpf::install(program)
}
