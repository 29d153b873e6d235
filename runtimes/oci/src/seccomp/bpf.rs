//! From a table of system calls to a classic BPF program, and into the kernel.
//!
//! ```text
//! load arch; for each architecture: its number? → search the call's number
//! search: halve the list of ranges with one comparison each, about 8 deep
//! leaf: allow, errno, or look at an argument's low 32 bits
//! ```
#![allow(unsafe_code)]

use std::io;

use super::profile::{Action, Comparison, Condition, Operator, Rule, Table};

/// A filter, ready for the kernel.
#[derive(Clone)]
pub struct Program(Vec<libc::sock_filter>);

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({} instructions)", self.0.len())
    }
}

const LOAD: u16 = 0x20; // A = word at k
const AND: u16 = 0x54; // A &= k
const JUMP: u16 = 0x05; // skip k
const EQUAL: u16 = 0x15; // A == k ? skip jt : skip jf
const ABOVE: u16 = 0x25; // A > k ? skip jt : skip jf
const AT_LEAST: u16 = 0x35; // A >= k ? skip jt : skip jf
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

/// Offset of an argument's low half: these machines are little-endian, and every
/// argument looked at is an `int` or `unsigned int` to the kernel.
const fn argument(n: u8) -> u32 {
    ARGUMENTS + 8 * n as u32
}

fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn test(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Compiles the tables of one or two architectures.
pub(super) fn compile(tables: &[Table]) -> Program {
    let mut program = vec![statement(LOAD, ARCHITECTURE)];
    for table in tables {
        // A conditional jump reaches 255 far, a plain one anywhere.
        program.push(test(EQUAL, table.architecture, 1, 0));
        let over = program.len();
        program.push(statement(JUMP, 0));
        program.push(statement(LOAD, NUMBER));
        search(&mut program, table, &table.ranges());
        let distance = program.len() - over - 1;
        program[over].k = u32::try_from(distance).expect("a filter has at most 4096 instructions");
    }
    program.push(statement(RETURN, KILL_PROCESS));
    Program(program)
}

/// Emits the search of a list of ranges, each given by its first number.
fn search(program: &mut Vec<libc::sock_filter>, table: &Table, ranges: &[(u32, Action)]) {
    if let [(_, action)] = ranges {
        return leaf(program, table, action);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    // number ≥ first of the upper half: take the long jump, else fall into the lower half.
    program.push(test(AT_LEAST, high[0].0, 0, 1));
    let over = program.len();
    program.push(statement(JUMP, 0));
    search(program, table, low);
    let distance = program.len() - over - 1;
    program[over].k = u32::try_from(distance).expect("a filter has at most 4096 instructions");
    search(program, table, high);
}

fn leaf(program: &mut Vec<libc::sock_filter>, table: &Table, action: &Action) {
    let errno = |errno: u16| ERRNO | u32::from(errno);
    match action {
        Action::Allow => program.push(statement(RETURN, ALLOW)),
        Action::Errno(n) => program.push(statement(RETURN, errno(*n))),
        Action::Return(value) => program.push(statement(RETURN, *value)),
        Action::Rules(n) => {
            for rule in table.rules.get(*n).into_iter().flatten() {
                emit(program, rule);
            }
            program.push(statement(RETURN, table.otherwise.unwrap_or(KILL_PROCESS)));
        }
        Action::If(condition, otherwise) => {
            match *condition {
                Condition::OneOf(n, values) => {
                    program.push(statement(LOAD, argument(n)));
                    for (i, value) in values.iter().enumerate() {
                        // To the ALLOW behind the remaining tests and the refusal.
                        let jump = u8::try_from(values.len() - i).expect("a handful of values");
                        program.push(test(EQUAL, *value, jump, 0));
                    }
                }
                Condition::NoneOf(n, mask) => {
                    program.push(statement(LOAD, argument(n)));
                    program.push(statement(AND, mask));
                    program.push(test(EQUAL, 0, 1, 0));
                }
                Condition::Not(n, value) => {
                    program.push(statement(LOAD, argument(n)));
                    program.push(test(EQUAL, value, 0, 1));
                }
            }
            program.push(statement(RETURN, errno(*otherwise)));
            program.push(statement(RETURN, ALLOW));
        }
    }
}

/// Where a test goes on.
#[derive(Clone, Copy)]
enum Then {
    /// With the next instruction.
    Next,
    /// With the next comparison.
    Pass,
    /// With the next rule.
    Fail,
}

/// Emits a rule: its comparisons one after the other, then its action.
fn emit(program: &mut Vec<libc::sock_filter>, rule: &Rule) {
    // An instruction, and where it goes if it is a test.
    let mut all: Vec<(libc::sock_filter, Option<(Then, Then)>)> = Vec::new();
    let mut ends = Vec::new();
    for comparison in &rule.comparisons {
        all.extend(compare(comparison));
        ends.push(all.len());
    }
    let fail = all.len() + 1;
    for (at, (mut instruction, then)) in all.into_iter().enumerate() {
        if let Some((yes, no)) = then {
            let pass = ends.iter().copied().find(|end| *end > at).unwrap_or(fail);
            let distance = |then: Then| {
                let to = match then {
                    Then::Next => at + 1,
                    Then::Pass => pass,
                    Then::Fail => fail,
                };
                u8::try_from(to - at - 1).expect("a rule has at most 6 comparisons of 6")
            };
            (instruction.jt, instruction.jf) = (distance(yes), distance(no));
        }
        program.push(instruction);
    }
    program.push(statement(RETURN, rule.then));
}

/// A 64-bit comparison in 32-bit halves, the high one first.
#[allow(clippy::cast_possible_truncation)] // Halves are what is wanted.
fn compare(comparison: &Comparison) -> Vec<(libc::sock_filter, Option<(Then, Then)>)> {
    use Then::{Fail, Next, Pass};
    let (value, low_at) = (comparison.value, argument(comparison.argument));
    let (high, low) = ((value >> 32) as u32, value as u32);
    let load = |at: u32| (statement(LOAD, at), None);
    let check = |code: u16, k: u32, yes: Then, no: Then| (test(code, k, 0, 0), Some((yes, no)));
    let order = |code: u16, above: Then, below: Then| {
        vec![
            load(low_at + 4),
            check(ABOVE, high, above, Next),
            check(EQUAL, high, Next, below),
            load(low_at),
            check(code, low, above, below),
        ]
    };
    match comparison.operator {
        Operator::Equal => vec![
            load(low_at + 4),
            check(EQUAL, high, Next, Fail),
            load(low_at),
            check(EQUAL, low, Pass, Fail),
        ],
        Operator::NotEqual => vec![
            load(low_at + 4),
            check(EQUAL, high, Next, Pass),
            load(low_at),
            check(EQUAL, low, Fail, Pass),
        ],
        Operator::Greater => order(ABOVE, Pass, Fail),
        Operator::GreaterOrEqual => order(AT_LEAST, Pass, Fail),
        Operator::Less => order(AT_LEAST, Fail, Pass),
        Operator::LessOrEqual => order(ABOVE, Fail, Pass),
        Operator::MaskedEqual(mask) => vec![
            load(low_at + 4),
            (statement(AND, (mask >> 32) as u32), None),
            check(EQUAL, high, Next, Fail),
            load(low_at),
            (statement(AND, mask as u32), None),
            check(EQUAL, low, Pass, Fail),
        ],
    }
}

/// Sets the filter for the calling thread, for good.
pub(super) fn install(program: &Program) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.0.len()).map_err(io::Error::other)?,
        filter: program.0.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies `len` instructions from `filter`, which outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::profile;
    use super::*;
    use caps::Capability;

    /// What the kernel would do with a call.
    pub(in super::super) fn run(
        program: &Program,
        architecture: u32,
        number: u32,
        arguments: &[u64],
    ) -> &'static str {
        let mut data = [0_u8; 64];
        data[0..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&architecture.to_le_bytes());
        for (n, argument) in arguments.iter().enumerate() {
            data[16 + 8 * n..24 + 8 * n].copy_from_slice(&argument.to_le_bytes());
        }
        let (mut a, mut at) = (0_u32, 0_usize);
        for _ in 0..200 {
            let i = program.0[at];
            at += 1;
            let k = i.k as usize;
            match i.code {
                LOAD => a = u32::from_le_bytes(data[k..k + 4].try_into().unwrap()),
                AND => a &= i.k,
                JUMP => at += k,
                EQUAL => at += usize::from(if a == i.k { i.jt } else { i.jf }),
                AT_LEAST => at += usize::from(if a >= i.k { i.jt } else { i.jf }),
                ABOVE => at += usize::from(if a > i.k { i.jt } else { i.jf }),
                RETURN => {
                    return match i.k {
                        ALLOW => "allow",
                        KILL_PROCESS => "kill",
                        0x7ffc_0000 => "log",
                        k if k == ERRNO | 1 => "EPERM",
                        k if k == ERRNO | 13 => "EACCES",
                        k if k == ERRNO | 38 => "ENOSYS",
                        k => panic!("{k:#x}"),
                    };
                }
                code => panic!("{code:#x}"),
            }
        }
        panic!("the filter does not end within 200 steps");
    }

    #[test]
    fn every_architecture_allows_and_refuses_the_same() {
        for table_of in profile::TABLES_FOR_TESTS {
            let none = crate::capabilities::Set::new();
            let table = table_of(&none);
            let program = compile(std::slice::from_ref(&table));
            assert!(program.0.len() < 4096, "{program:?}");
            let check = |name: &str, arguments: &[u64], expected: &str| {
                let Some(number) = table.number(name) else { return };
                let found = run(&program, table.architecture, number, arguments);
                assert_eq!(found, expected, "{name} {arguments:?} on {:#x}", table.architecture);
            };
            for name in ["read", "openat", "execve", "exit_group", "futex", "capset", "mknodat"] {
                check(name, &[], "allow");
            }
            for name in ["mount", "umount2", "unshare", "setns", "pivot_root", "bpf", "keyctl"] {
                check(name, &[], "EPERM");
            }
            for name in ["io_uring_setup", "userfaultfd", "kexec_load", "reboot", "init_module"] {
                check(name, &[], "EPERM");
            }
            check("clone3", &[], "ENOSYS");
            check("clone", &[0x11], "allow");
            check("clone", &[0x1000_0000 | 0x11], "EPERM"); // CLONE_NEWUSER
            check("clone", &[0x0002_0000], "EPERM"); // CLONE_NEWNS
            check("socket", &[2, 1], "allow");
            check("socket", &[40, 1], "EPERM"); // AF_VSOCK
            check("personality", &[0], "allow");
            check("personality", &[0xffff_ffff], "allow");
            check("personality", &[0x0004_0000], "EPERM"); // ADDR_NO_RANDOMIZE
            let newest = table.newest;
            assert_eq!(run(&program, table.architecture, newest + 1, &[]), "ENOSYS");
            assert_eq!(run(&program, 0x1234, 0, &[]), "kill");
        }
    }

    #[test]
    fn each_number_does_what_the_table_says() {
        for table_of in profile::TABLES_FOR_TESTS {
            let table = table_of(&crate::capabilities::Set::new());
            let program = compile(std::slice::from_ref(&table));
            for number in 0..=table.newest {
                let found = run(&program, table.architecture, number, &[]);
                let expected = match table.action(number) {
                    Action::Allow | Action::If(..) => "allow",
                    Action::Errno(38) => "ENOSYS",
                    Action::Errno(_) => "EPERM",
                    other => panic!("{other:?}"),
                };
                assert_eq!(found, expected, "{number} on {:#x}", table.architecture);
            }
        }
    }

    #[test]
    fn capabilities_open_their_calls() {
        let admin: crate::capabilities::Set = [Capability::CAP_SYS_ADMIN].into();
        for table_of in profile::TABLES_FOR_TESTS {
            let table = table_of(&admin);
            let program = compile(std::slice::from_ref(&table));
            for name in ["mount", "unshare", "clone3"] {
                let number = table.number(name).unwrap();
                assert_eq!(run(&program, table.architecture, number, &[]), "allow", "{name}");
            }
            let number = table.number("reboot").unwrap();
            assert_eq!(run(&program, table.architecture, number, &[]), "EPERM");
        }
    }

    #[test]
    fn two_architectures_share_a_filter() {
        let none = crate::capabilities::Set::new();
        let [first, second, ..] = profile::TABLES_FOR_TESTS.map(|table_of| table_of(&none));
        let numbers = [first.number("mount").unwrap(), second.number("mount").unwrap()];
        let architectures = [first.architecture, second.architecture];
        let program = compile(&[first, second]);
        assert_eq!(run(&program, architectures[0], numbers[0], &[]), "EPERM");
        assert_eq!(run(&program, architectures[1], numbers[1], &[]), "EPERM");
        assert_eq!(run(&program, 0, 0, &[]), "kill");
    }
}
