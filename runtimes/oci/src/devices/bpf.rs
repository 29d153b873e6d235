//! A `BPF_PROG_TYPE_CGROUP_DEVICE` program made from device rules, and the raw
//! `bpf(2)` calls that load and attach it.
//!
//! The kernel calls the program for every open and mknod of a device node in the
//! cgroup, with `{ u32 access << 16 | kind, u32 major, u32 minor }`; 0 denies.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::{ALL, Kind, Rule};

/// One instruction: `u8 code, u4 destination, u4 source, i16 offset, i32 immediate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61; // dst = *(u32 *)(src + offset)
const MOVE: u8 = 0xbf; // dst = src
const MOVE_IMMEDIATE: u8 = 0xb7; // dst = immediate
const AND_IMMEDIATE: u8 = 0x57; // dst &= immediate
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77; // dst >>= immediate
const JUMP_NOT_EQUAL_IMMEDIATE: u8 = 0x55; // if dst != immediate, skip offset
const EXIT: u8 = 0x95; // return r0

const R0: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
/// Free once the context has been read.
const SCRATCH: u8 = 1;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

/// The program that allows exactly what some rule allows.
///
/// # Panics
/// A device number above 2³¹; the kernel's have 12 and 20 bits.
pub(super) fn program(rules: &[Rule]) -> Vec<Instruction> {
    let number = |n: u32| i32::try_from(n).expect("device numbers have at most 20 bits");
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(AND_IMMEDIATE, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_IMMEDIATE, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        let kind = if rule.kind == Kind::Block { 1 } else { 2 };
        // Each test that fails skips to the next rule.
        let mut tests = vec![(KIND, kind)];
        tests.extend(rule.major.map(|major| (MAJOR, number(major))));
        tests.extend(rule.minor.map(|minor| (MINOR, number(minor))));
        let mut body = Vec::new();
        let forbidden = ALL & !rule.access;
        if forbidden != 0 {
            body.push(instruction(MOVE, SCRATCH, ACCESS, 0, 0));
            body.push(instruction(AND_IMMEDIATE, SCRATCH, 0, 0, i32::from(forbidden)));
            tests.push((SCRATCH, 0));
        }
        // tests before `body`'s own go first, so that the offsets are counted once.
        let n_tests = tests.len();
        let length = body.len() + n_tests + 2;
        let mut at = 0;
        for (n, (register, value)) in tests.into_iter().enumerate() {
            if register == SCRATCH && n + 1 == n_tests {
                program.append(&mut body);
                at = length - 3;
            }
            let offset = i16::try_from(length - at - 1).expect("a rule has at most 8 instructions");
            program.push(instruction(JUMP_NOT_EQUAL_IMMEDIATE, register, 0, offset, value));
            at += 1;
        }
        program.push(instruction(MOVE_IMMEDIATE, R0, 0, 0, 1));
        program.push(instruction(EXIT, 0, 0, 0, 0));
    }
    program.push(instruction(MOVE_IMMEDIATE, R0, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// Has the kernel verify and take the program.
pub(super) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    /// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
    #[repr(C)]
    struct Load {
        kind: u32,
        n_instructions: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        n_instructions: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `load` is the head of bpf_attr (the kernel takes the rest as 0), and
    // what it points to lives until the call returns.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches the program to a cgroup; it goes with the cgroup.
pub(super) fn attach(program: &OwnedFd, cgroup: &impl AsFd) -> io::Result<()> {
    /// The head of `union bpf_attr` for `BPF_PROG_ATTACH`.
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    /// Beside, not instead of, what an ancestor has: every program must agree.
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let attach = Attach {
        target: cgroup.as_fd().as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attach` is the head of bpf_attr and both descriptors are open.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::{DEFAULT, MKNOD, READ, WRITE};
    use super::*;

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], access: u8, kind: Kind, major: u32, minor: u32) -> bool {
        let kind = if kind == Kind::Block { 1 } else { 2 };
        let context = [u32::from(access) << 16 | kind, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0_usize;
        for _ in 0..10_000 {
            let i = program[at];
            let (destination, source) =
                (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let immediate = i64::from(i.immediate).cast_unsigned();
            at += 1;
            match i.code {
                LOAD_WORD => {
                    assert_eq!(source, usize::from(CONTEXT));
                    registers[destination] =
                        u64::from(context[usize::try_from(i.offset).unwrap() / 4]);
                }
                MOVE => registers[destination] = registers[source],
                MOVE_IMMEDIATE => registers[destination] = immediate,
                AND_IMMEDIATE => registers[destination] &= immediate,
                SHIFT_RIGHT_IMMEDIATE => registers[destination] >>= immediate,
                JUMP_NOT_EQUAL_IMMEDIATE => {
                    if registers[destination] != immediate {
                        at += usize::try_from(i.offset).unwrap();
                    }
                }
                EXIT => return registers[0] == 1,
                code => panic!("{code:#x}"),
            }
        }
        panic!("the program does not end");
    }

    #[test]
    fn the_default_program_allows_null_and_no_disk() {
        let program = program(&DEFAULT);
        assert!(run(&program, READ | WRITE, Kind::Char, 1, 3));
        assert!(run(&program, MKNOD, Kind::Char, 1, 3));
        assert!(run(&program, WRITE, Kind::Char, 136, 77));
        assert!(!run(&program, READ, Kind::Char, 1, 1)); // mem
        assert!(!run(&program, READ, Kind::Char, 10, 200)); // tun
        for access in [MKNOD, READ, WRITE, READ | WRITE] {
            assert!(!run(&program, access, Kind::Block, 254, 0));
            assert!(!run(&program, access, Kind::Block, 1, 3));
        }
    }

    #[test]
    fn access_is_checked_bit_by_bit() {
        let rules = [
            Rule { kind: Kind::Char, major: Some(89), minor: Some(1), access: READ | WRITE },
            Rule { kind: Kind::Block, major: None, minor: None, access: READ },
            Rule { kind: Kind::Char, major: Some(89), minor: None, access: MKNOD },
        ];
        let program = program(&rules);
        assert!(run(&program, READ | WRITE, Kind::Char, 89, 1));
        assert!(run(&program, MKNOD, Kind::Char, 89, 1));
        assert!(!run(&program, MKNOD | READ, Kind::Char, 89, 1));
        assert!(!run(&program, READ, Kind::Char, 89, 2));
        assert!(run(&program, READ, Kind::Block, 8, 1));
        assert!(!run(&program, READ | WRITE, Kind::Block, 8, 1));
    }

    #[test]
    fn the_kernel_takes_the_programs() {
        let rules = [
            Rule { kind: Kind::Block, major: None, minor: None, access: READ },
            Rule { kind: Kind::Char, major: Some(89), minor: None, access: MKNOD },
        ];
        for program in [program(&DEFAULT), program(&rules), program(&[])] {
            match load(&program) {
                Ok(_) => {}
                // A machine without BPF cannot run this half of the test.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}
