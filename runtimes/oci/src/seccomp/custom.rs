//! Filters that users bring: a file in the form of the OCI runtime specification
//! (`linux.seccomp`), which is what `seccompProfile.type: Localhost` names.
//!
//! ```json
//! { "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
//!   "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
//!   "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_ALLOW",
//!                  "args": [{ "index": 0, "value": 2, "op": "SCMP_CMP_EQ" }] }] }
//! ```
//!
//! A call that this architecture does not have is skipped, as libseccomp does.
//! What would make the filter another one than its author believes (an action,
//! a condition or a flag not known here) is an error.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::profile::{self, Action, Comparison, Operator, Rule, Table};

/// Longest profile, in bytes.
const PROFILE_BYTES_MAX: u64 = 1 << 20;
/// Most rules on one call.
const RULES_MAX: usize = 64;
/// `EPERM`, where a profile names no errno.
const ERRNO_DEFAULT: u32 = 1;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// It is too long.
    #[error("it is longer than {PROFILE_BYTES_MAX} bytes")]
    Long,
    /// It is not a profile.
    #[error("it is not a seccomp profile: {0}")]
    Syntax(#[from] serde_json::Error),
    /// It asks for what cannot be done.
    #[error("{0}")]
    Unsupported(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    syscalls: Vec<Syscall>,
}

/// Docker's way to name architectures.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscall {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    name: String,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    /// Docker's own: its profiles are made into ones without before they are used.
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

type Filter = serde_json::Map<String, serde_json::Value>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Reads a profile for the architectures of this machine.
pub(super) fn read(path: &Path) -> Result<Vec<Table>, ProfileError> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(PROFILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > PROFILE_BYTES_MAX {
        return Err(ProfileError::Long);
    }
    tables(&bytes, profile::tables(&crate::capabilities::Set::new()))
}

/// Fills tables of architectures, the machine's own first, with a profile.
fn tables(text: &[u8], tables: Vec<Table>) -> Result<Vec<Table>, ProfileError> {
    let profile: Profile = serde_json::from_slice(text)?;
    let otherwise = action(&profile.default_action, profile.default_errno_ret)?;
    let mut named: Vec<&str> = profile.architectures.iter().map(String::as_str).collect();
    for map in &profile.arch_map {
        named.push(&map.architecture);
        named.extend(map.sub_architectures.iter().flatten().map(String::as_str));
    }
    let mut filled = Vec::new();
    for (n, mut table) in tables.into_iter().enumerate() {
        // The machine's own is always there; another one dies unless it is named.
        if n > 0 && !named.is_empty() && !named.contains(&name(table.architecture)) {
            continue;
        }
        fill(&mut table, &profile, otherwise)?;
        filled.push(table);
    }
    Ok(filled)
}

fn fill(table: &mut Table, profile: &Profile, otherwise: u32) -> Result<(), ProfileError> {
    let mut by_number: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for call in &profile.syscalls {
        let is_conditional =
            |filter: &Option<Filter>| filter.as_ref().is_some_and(|filter| !filter.is_empty());
        if is_conditional(&call.includes) || is_conditional(&call.excludes) {
            return Err(ProfileError::Unsupported(
                "`includes` and `excludes` are Docker's own: give the rules that hold".into(),
            ));
        }
        let rule = Rule {
            comparisons: call.args.iter().flatten().map(comparison).collect::<Result<_, _>>()?,
            then: action(&call.action, call.errno_ret)?,
        };
        let own = (!call.name.is_empty()).then_some(&call.name);
        for number in call.names.iter().chain(own).filter_map(|name| table.number(name)) {
            let rules = by_number.entry(number).or_default();
            if rules.len() == RULES_MAX {
                return Err(ProfileError::Unsupported(format!(
                    "more than {RULES_MAX} rules on one call"
                )));
            }
            rules.push(rule.clone());
        }
    }
    let mut actions = BTreeMap::new();
    let mut lists = Vec::new();
    for (number, rules) in by_number {
        // The first rule that holds counts, so an unconditional one ends the list.
        let end = rules.iter().position(|rule| rule.comparisons.is_empty());
        let action = match (end, rules.as_slice()) {
            (Some(0), [first, ..]) => Action::Return(first.then),
            _ => {
                lists.push(rules);
                Action::Rules(lists.len() - 1)
            }
        };
        actions.insert(number, action);
    }
    table.replace(actions, lists, otherwise);
    Ok(())
}

/// `SECCOMP_RET_*` of an action.
fn action(name: &str, errno: Option<u32>) -> Result<u32, ProfileError> {
    let data = errno.unwrap_or(ERRNO_DEFAULT) & 0xfff;
    Ok(match name {
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | data,
        "SCMP_ACT_ERRNO" => 0x0005_0000 | data,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_KILL_PROCESS" => 0x8000_0000,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        other => {
            return Err(ProfileError::Unsupported(format!("action {other:?} cannot be done")));
        }
    })
}

fn comparison(argument: &Argument) -> Result<Comparison, ProfileError> {
    if argument.index > 5 {
        let text = format!("a system call has no argument {}", argument.index);
        return Err(ProfileError::Unsupported(text));
    }
    let plain = |operator| (operator, argument.value);
    let (operator, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => plain(Operator::Equal),
        "SCMP_CMP_NE" => plain(Operator::NotEqual),
        "SCMP_CMP_LT" => plain(Operator::Less),
        "SCMP_CMP_LE" => plain(Operator::LessOrEqual),
        "SCMP_CMP_GT" => plain(Operator::Greater),
        "SCMP_CMP_GE" => plain(Operator::GreaterOrEqual),
        // The first value is the mask.
        "SCMP_CMP_MASKED_EQ" => (Operator::MaskedEqual(argument.value), argument.value_two),
        other => {
            return Err(ProfileError::Unsupported(format!("comparison {other:?} is not known")));
        }
    };
    Ok(Comparison { argument: argument.index, operator, value })
}

/// What profiles call an `AUDIT_ARCH_*`.
fn name(architecture: u32) -> &'static str {
    match architecture {
        0xc000_003e => "SCMP_ARCH_X86_64",
        0x4000_0003 => "SCMP_ARCH_X86",
        0xc000_00b7 => "SCMP_ARCH_AARCH64",
        _ => "SCMP_ARCH_ARM",
    }
}

#[cfg(test)]
mod tests {
    use super::super::bpf::{self, tests::run};
    use super::super::profile::TABLES_FOR_TESTS;
    use super::*;

    fn of(text: &str) -> Result<Vec<Table>, ProfileError> {
        let none = crate::capabilities::Set::new();
        tables(text.as_bytes(), TABLES_FOR_TESTS.map(|table_of| table_of(&none)).into())
    }

    #[test]
    fn arguments_are_compared_in_full() {
        let high = 1_u64 << 32;
        type Case<'a> = (&'a str, u64, u64, &'a [(u64, bool)]);
        let table: [Case<'_>; 7] = [
            ("EQ", 7, 0, &[(7, true), (8, false), (high | 7, false)]),
            ("NE", 7, 0, &[(7, false), (8, true), (high | 7, true)]),
            ("LT", high, 0, &[(high - 1, true), (high, false), (high + 1, false), (0, true)]),
            (
                "LE",
                high,
                0,
                &[(high - 1, true), (high, true), (high + 1, false), (2 * high, false)],
            ),
            (
                "GT",
                high,
                0,
                &[(high - 1, false), (high, false), (high + 1, true), (2 * high, true)],
            ),
            (
                "GE",
                high + 5,
                0,
                &[(high + 4, false), (high + 5, true), (2 * high, true), (9, false)],
            ),
            (
                "MASKED_EQ",
                high | 3,
                high | 1,
                &[(high | 1, true), (high | 5, true), (1, false), (high | 3, false)],
            ),
        ];
        for (op, value, second, cases) in table {
            let text = format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":13,"syscalls":[{{"names":["mmap","no_such_call"],
                "action":"SCMP_ACT_ALLOW","args":[
                    {{"index":1,"value":{value},"valueTwo":{second},"op":"SCMP_CMP_{op}"}},
                    {{"index":0,"value":1,"op":"SCMP_CMP_EQ"}}]}}]}}"#
            );
            for table in of(&text).unwrap() {
                let Some(number) = table.number("mmap") else { continue };
                let program = bpf::compile(std::slice::from_ref(&table));
                for (given, holds) in cases {
                    let answer =
                        |first: u64| run(&program, table.architecture, number, &[first, *given]);
                    assert_eq!(
                        answer(1),
                        if *holds { "allow" } else { "EACCES" },
                        "{op} {given:#x}"
                    );
                    assert_eq!(answer(2), "EACCES", "every comparison must hold");
                }
                assert_eq!(run(&program, table.architecture, number + 1, &[]), "EACCES");
                assert_eq!(run(&program, table.architecture, 100_000, &[]), "EACCES");
            }
        }
    }

    #[test]
    fn the_first_rule_that_holds_counts() {
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["socket"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
            {"names":["socket","mount"],"action":"SCMP_ACT_ERRNO"},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW"}]}"#;
        for table in of(text).unwrap() {
            let program = bpf::compile(std::slice::from_ref(&table));
            let of = |name: &str, first: u64| {
                table.number(name).map(|n| run(&program, table.architecture, n, &[first]))
            };
            assert!(matches!(of("socket", 1), Some("log") | None));
            assert!(matches!(of("socket", 2), Some("EPERM") | None));
            assert_eq!(of("mount", 0), Some("EPERM"));
            assert_eq!(of("read", 0), Some("allow"));
        }
    }

    #[test]
    fn an_architecture_that_is_not_named_is_left_out() {
        let of = |list: &str| {
            let text = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","architectures":{list}}}"#);
            of(&text).unwrap().iter().map(|table| name(table.architecture)).collect::<Vec<_>>()
        };
        assert_eq!(of("[]").len(), 4);
        assert_eq!(of(r#"["SCMP_ARCH_ARM"]"#), ["SCMP_ARCH_X86_64", "SCMP_ARCH_ARM"]);
    }

    #[test]
    fn what_cannot_be_done_is_an_error() {
        let check = |text: &str, expected: &str| {
            let error = of(text).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("", "not a seccomp profile");
        check("[1", "not a seccomp profile");
        check("{}", "missing field `defaultAction`");
        check(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY");
        check(&"[".repeat(100_000), "not a seccomp profile");
        let call = |rest: &str| {
            format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ALLOW",{rest}}}]}}"#
            )
        };
        check(&call(r#""args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]"#), "no argument 6");
        check(&call(r#""args":[{"index":1,"value":1,"op":"like"}]"#), "\"like\"");
        check(&call(r#""includes":{"caps":["CAP_SYS_ADMIN"]}"#), "Docker's own");
    }
}
