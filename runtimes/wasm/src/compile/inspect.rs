//! Tells from a module's exports how it is run.
//!
//! | export | world |
//! | --- | --- |
//! | a module's function `_start` | a program |
//! | a component's `wasi:cli/run@0.2.…` | a program |
//! | a component's `wasi:http/incoming-handler@0.2.…` | an HTTP server |
//!
//! A component with both is a server: some toolchains add an idle `run`.

use wasmparser::{ExternalKind, Parser, Payload};
use wire::artifact::WorldV1;

use super::CompileError;

/// Most exports that a message names.
const SHOWN_MAX: usize = 8;

/// How `bytes`, a module or a component, are run. Looks at the outermost
/// exports only and validates nothing else.
///
/// # Errors
///
/// The bytes do not parse, or export nothing that a node calls.
pub fn world(bytes: &[u8]) -> Result<WorldV1, CompileError> {
    let invalid = |err: wasmparser::BinaryReaderError| CompileError::Invalid(err.to_string());
    let mut depth = 0_usize;
    let mut is_component = false;
    let mut has_start = false;
    let (mut runs, mut serves) = (false, false);
    let mut others: Vec<String> = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(invalid)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            // The end of the outermost one is the last payload.
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ExportSection(exports) if depth == 0 => {
                for export in exports {
                    let export = export.map_err(invalid)?;
                    has_start |= export.name == "_start" && export.kind == ExternalKind::Func;
                }
            }
            Payload::ComponentExportSection(exports) if depth == 0 => {
                is_component = true;
                for export in exports {
                    let name = export.map_err(invalid)?.name.name;
                    if name.starts_with("wasi:cli/run@0.2.") {
                        runs = true;
                    } else if name.starts_with("wasi:http/incoming-handler@0.2.") {
                        serves = true;
                    } else if others.len() < SHOWN_MAX {
                        others.push(name.chars().take(80).collect());
                    }
                }
            }
            Payload::Version { encoding: wasmparser::Encoding::Component, .. } if depth == 0 => {
                is_component = true;
            }
            _ => {}
        }
    }
    match (is_component, serves, runs, has_start) {
        (true, true, _, _) => Ok(WorldV1::Http),
        (true, _, true, _) | (false, _, _, true) => Ok(WorldV1::Command),
        (false, ..) => Err(CompileError::NoProgram(
            "the module exports no function _start: build it as a program, not as a library"
                .to_owned(),
        )),
        (true, ..) if others.iter().any(|name| name.contains("@0.3.")) => {
            Err(CompileError::NoProgram(format!(
                "the component is for WASI 0.3 ({}), nodes run 0.2: build it for wasm32-wasip2",
                others.join(", ")
            )))
        }
        (true, ..) => Err(CompileError::NoProgram(format!(
            "the component exports neither wasi:cli/run@0.2 nor wasi:http/incoming-handler@0.2, but {}",
            if others.is_empty() { "nothing".to_owned() } else { others.join(", ") }
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn component(exports: &[&str]) -> Vec<u8> {
        let exports: String =
            exports.iter().map(|name| format!(r#"(export "{name}" (instance $empty))"#)).collect();
        // The module within exports what would make it a program; it is not asked.
        let text = format!(
            r#"(component
                (core module (func (export "_start")))
                (instance $empty)
                {exports})"#
        );
        wat::parse_str(text).unwrap()
    }

    fn check(bytes: &[u8], expected: Result<WorldV1, &str>) {
        let found = world(bytes).map_err(|err| err.to_string());
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn exports_decide() {
        let run = "wasi:cli/run@0.2.0";
        let handler = "wasi:http/incoming-handler@0.2.3";
        check(&component(&[run]), Ok(WorldV1::Command));
        check(&component(&[handler]), Ok(WorldV1::Http));
        check(&component(&[run, handler]), Ok(WorldV1::Http));
        check(
            &component(&["a:b/c@1.0.0"]),
            Err("not a program: the component exports neither wasi:cli/run@0.2 nor \
                 wasi:http/incoming-handler@0.2, but a:b/c@1.0.0"),
        );
        check(
            &component(&["wasi:http/handler@0.3.0"]),
            Err("not a program: the component is for WASI 0.3 (wasi:http/handler@0.3.0), \
                 nodes run 0.2: build it for wasm32-wasip2"),
        );
        check(
            &component(&[]),
            Err("not a program: the component exports neither wasi:cli/run@0.2 nor \
                 wasi:http/incoming-handler@0.2, but nothing"),
        );
        let no_function = wat::parse_str(r#"(module (memory (export "_start") 1))"#).unwrap();
        world(&no_function).unwrap_err();
    }

    proptest! {
        #[test]
        fn garbage_is_refused(bytes: Vec<u8>) {
            let _ = world(&bytes);
            let module = [&[0, b'a', b's', b'm', 1, 0, 0, 0], bytes.as_slice()].concat();
            let _ = world(&module);
            let component = [&[0, b'a', b's', b'm', 0x0d, 0, 1, 0], bytes.as_slice()].concat();
            let _ = world(&component);
        }

        #[test]
        fn damage_is_no_panic(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut bytes = component(&["wasi:cli/run@0.2.0", "a:b/c"]);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = world(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            let _ = world(&bytes);
        }
    }
}
