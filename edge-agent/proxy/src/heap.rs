//! Gives memory back that a burst took: the C library keeps what is freed, for ever
//! where small pieces are left behind it.
//!
//! Knows nothing of what was freed. Other C libraries than glibc give back by
//! themselves, or not at all.
#![allow(unsafe_code)]

/// Gives what is free to the kernel; takes a millisecond for each 10 MB or so.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no argument can be wrong, and it may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
