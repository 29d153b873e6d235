//! Which machine a program was built for, and whether it needs others beside it:
//! read from the head of its ELF file.

use crate::Platform;

/// Bytes of the head that are enough for most programs.
pub const HEAD_BYTES: usize = 4096;

const PT_INTERP: u32 = 3;
/// Hard floats, in an arm program's flags.
const EF_ARM_ABI_FLOAT_HARD: u32 = 0x400;

/// What a program's head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Machine it runs on.
    pub platform: Platform,
    /// Whether it runs without a loader and libraries beside it.
    pub is_static: bool,
}

/// Reads the head of a program; `None` if it is none for Linux on a machine that
/// images have a name for.
#[must_use]
pub fn read(head: &[u8]) -> Option<Program> {
    if head.get(..4)? != b"\x7fELF" {
        return None;
    }
    let (is_64, is_little) = match (head.get(4)?, head.get(5)?) {
        (1, 1) => (false, true),
        (2, 1) => (true, true),
        (1, 2) => (false, false),
        (2, 2) => (true, false),
        _ => return None,
    };
    let u16_at = |at: usize| {
        let bytes: [u8; 2] = head.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let u32_at = |at: usize| {
        let bytes: [u8; 4] = head.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    // An executable, or one whose place is chosen when it starts.
    if !matches!(u16_at(16)?, 2 | 3) {
        return None;
    }
    let flags = u32_at(if is_64 { 48 } else { 36 })?;
    let (architecture, variant) = match (u16_at(18)?, is_64, is_little) {
        (62, true, true) => ("amd64", ""),
        (183, true, true) => ("arm64", "v8"),
        // Nothing in the head tells 6 and 7 apart; who builds with hard floats builds
        // for 7, but for Raspberry Pi 1 and Zero: `--platform` says so.
        (40, false, true) if flags & EF_ARM_ABI_FLOAT_HARD != 0 => ("arm", "v7"),
        (40, false, true) => ("arm", "v6"),
        (3, false, true) => ("386", ""),
        (243, true, true) => ("riscv64", ""),
        (22, true, false) => ("s390x", ""),
        (21, true, true) => ("ppc64le", ""),
        _ => return None,
    };
    let (table, size, n) = if is_64 {
        // The upper half of the offset is never needed for a table behind the head.
        (u32_at(32)?, u16_at(54)?, u16_at(56)?)
    } else {
        (u32_at(28)?, u16_at(42)?, u16_at(44)?)
    };
    let is_interpreter = |n: u16| {
        let at = usize::try_from(table).ok()?.checked_add(usize::from(n) * usize::from(size))?;
        u32_at(at).map(|kind| kind == PT_INTERP)
    };
    let is_static = !(0..n).any(|n| is_interpreter(n).unwrap_or(false));
    Some(Program { platform: Platform::linux(architecture, variant), is_static })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_program_is_for_this_machine() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let program = read(&bytes[..HEAD_BYTES]).unwrap();
        assert_eq!(program.platform, Platform::host());
        assert!(!program.is_static);
        assert_eq!(read(b"#!/bin/sh\n"), None);
        assert_eq!(read(b"\x7fELF"), None);
    }

    #[test]
    fn other_machines_are_known() {
        let check = |class: u8, machine: u16, flags: u32, expected: Option<&str>| {
            let mut head = vec![0; 64];
            head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
            head[16] = 2;
            head[18..20].copy_from_slice(&machine.to_le_bytes());
            let at = if class == 2 { 48 } else { 36 };
            head[at..at + 4].copy_from_slice(&flags.to_le_bytes());
            let found = read(&head).map(|program| program.platform.to_string());
            assert_eq!(found.as_deref(), expected);
        };
        check(2, 183, 0, Some("linux/arm64/v8"));
        check(1, 40, 0x0500_0400, Some("linux/arm/v7"));
        check(1, 40, 0x0500_0200, Some("linux/arm/v6"));
        check(2, 243, 0, Some("linux/riscv64"));
        check(2, 40, 0, None);
        check(1, 8, 0, None);
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&[b"\x7fELF\x02\x01".as_slice(), &tail].concat());
            let _ = read(&tail);
        }
    }
}
