//! Objects as YAML, in the form `kubectl -o yaml` has: keys sorted, lists not
//! indented, text over several lines as a block.
//!
//! Of our own, since people compare the two outputs, and since the emitter at
//! hand folds long lines.

use serde_json::Value;

/// Longer lines are broken at the next space.
const WIDTH: usize = 80;

/// `value` as a document, ending in a line end.
pub(crate) fn emit(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => emit_map(value, 0, &mut out),
        Value::Array(list) if !list.is_empty() => emit_list(value, 0, &mut out),
        other => {
            out.push_str(&scalar(other, 0, 0));
            out.push('\n');
        }
    }
    out
}

fn emit_map(value: &Value, indent: usize, out: &mut String) {
    let mut entries: Vec<_> = value.as_object().into_iter().flatten().collect();
    entries.sort_by(|a, b| a.0.cmp(b.0));
    for (n, (key, value)) in entries.into_iter().enumerate() {
        // The first key follows the dash of its list.
        if n > 0 || !out.ends_with("- ") {
            out.extend(std::iter::repeat_n(' ', indent));
        }
        out.push_str(&text(key, None));
        out.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                emit_map(value, indent + 2, out);
            }
            Value::Array(list) if !list.is_empty() => {
                out.push('\n');
                emit_list(value, indent, out);
            }
            other => {
                out.push(' ');
                let column = column(out);
                out.push_str(&scalar(other, indent + 2, column));
                out.push('\n');
            }
        }
    }
}

fn emit_list(value: &Value, indent: usize, out: &mut String) {
    for value in value.as_array().into_iter().flatten() {
        if !out.ends_with("- ") {
            out.extend(std::iter::repeat_n(' ', indent));
        }
        out.push_str("- ");
        match value {
            Value::Object(map) if !map.is_empty() => emit_map(value, indent + 2, out),
            Value::Array(list) if !list.is_empty() => emit_list(value, indent + 2, out),
            other => {
                let column = column(out);
                out.push_str(&scalar(other, indent + 2, column));
                out.push('\n');
            }
        }
    }
}

/// How many characters the last line of `out` has.
fn column(out: &str) -> usize {
    out.rsplit('\n').next().unwrap_or_default().chars().count()
}

/// A value that begins in `column`, whose further lines are indented by `indent`.
fn scalar(value: &Value, indent: usize, column: usize) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        Value::String(value) => fold(&text(value, Some(indent)), indent, column),
        other => other.to_string(),
    }
}

/// A text without line ends, broken at spaces where a line is longer than
/// [`WIDTH`], as Go's emitter does.
fn fold(text: &str, indent: usize, mut column: usize) -> String {
    if text.contains('\n') || text.starts_with('"') {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut after_space = true;
    while let Some(c) = chars.next() {
        // The quote that ends the text is no place to go on.
        let goes_on = chars.peek().is_some_and(|next| *next != ' ' && *next != '\'');
        if c == ' ' && !after_space && column > WIDTH && goes_on {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else {
            out.push(c);
            column += 1;
        }
        after_space = c == ' ';
    }
    out
}

/// A string; as a block only where `indent` says how deep.
fn text(value: &str, indent: Option<usize>) -> String {
    if let Some(indent) = indent.filter(|_| value.contains('\n') && fits_block(value)) {
        return block(value, indent);
    }
    if value.chars().any(is_special) || means_something_else(value) {
        return quoted(value);
    }
    if is_plain(value) { value.to_owned() } else { format!("'{}'", value.replace('\'', "''")) }
}

/// Characters that only double quotes can hold.
fn is_special(c: char) -> bool {
    (c.is_control()) || matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}' | '\u{85}')
}

/// Whether a reader would take the plain text for something else than a string.
fn means_something_else(value: &str) -> bool {
    let words = [
        "", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", "<<", ".nan", ".inf",
        "+.inf", "-.inf",
    ];
    if words.contains(&value.to_ascii_lowercase().as_str()) {
        return true;
    }
    let body = value.trim_start_matches(['+', '-']);
    if !body.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return false;
    }
    let digits = body.replace('_', "");
    let based = |prefix: &str, radix: u32| {
        digits
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_digit(radix)))
    };
    let sexagesimal =
        digits.contains(':') && digits.chars().all(|c| c.is_ascii_digit() || c == ':' || c == '.');
    let bytes = value.as_bytes();
    let date = bytes.len() >= 8 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-';
    digits.parse::<f64>().is_ok()
        || based("0x", 16)
        || based("0o", 8)
        || based("0b", 2)
        || sexagesimal
        || date
}

/// Whether a text needs no quotes.
fn is_plain(value: &str) -> bool {
    let Some(first) = value.chars().next() else { return false };
    let second = value.chars().nth(1);
    let starts = match first {
        '-' | '?' | ':' => second.is_some_and(|c| c != ' '),
        c => !" ,[]{}#&*!|>'\"%@`".contains(c),
    };
    starts
        && !value.ends_with([' ', ':'])
        && !value.contains(": ")
        && !value.contains(" #")
        && !value.starts_with("---")
        && !value.starts_with("...")
}

fn fits_block(value: &str) -> bool {
    // A space before a line's end needs quotes.
    !value.chars().any(|c| c != '\n' && c != '\t' && is_special(c))
        && !value.contains(" \n")
        && !value.ends_with(' ')
        && !value.starts_with('\t')
}

fn block(value: &str, indent: usize) -> String {
    let body = value.trim_end_matches('\n');
    // Where the first line begins with a space, the indentation cannot be guessed.
    let hint = if value.starts_with([' ', '\n']) { "2" } else { "" };
    let chomp = match value.len() - body.len() {
        0 => "-",
        1 if !body.is_empty() => "",
        _ => "+",
    };
    let mut out = format!("|{hint}{chomp}");
    let body = value.strip_suffix('\n').unwrap_or(value);
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            out.extend(std::iter::repeat_n(' ', indent));
            out.push_str(line);
        }
    }
    out
}

fn quoted(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{85}' => out.push_str("\\N"),
            c if is_special(c) && u32::from(c) < 0x100 => {
                out.push_str(&format!("\\x{:02X}", u32::from(c)));
            }
            c if is_special(c) => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_look_as_in_kubectl() {
        let value = json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "a", "labels": {}, "finalizers": []},
            "data": {"script": "#!/bin/sh\necho \"hi\"\n", "open": "a\nb", "many": "a\n\n\n"},
            "list": [{"b": [1, [2, 3]], "a": null}, "x", []],
        });
        expect![[r##"
            apiVersion: v1
            data:
              many: |+
                a


              open: |-
                a
                b
              script: |
                #!/bin/sh
                echo "hi"
            kind: ConfigMap
            list:
            - a: null
              b:
              - 1
              - - 2
                - 3
            - x
            - []
            metadata:
              finalizers: []
              labels: {}
              name: a
        "##]]
        .assert_eq(&emit(&value));
    }

    #[test]
    fn long_lines_are_broken_where_go_breaks_them() {
        let words = "a very long text that goes on and on and on and on and on and on and on and \
                     on and on, more than eighty characters";
        expect![[r#"
            annotations:
              long: a very long text that goes on and on and on and on and on and on and on and
                on and on, more than eighty characters
        "#]]
        .assert_eq(&emit(&json!({"annotations": {"long": words}})));
    }

    #[test]
    fn every_text_reads_back_as_itself() {
        let long = "word ".repeat(60) + "end";
        let long_quoted = format!("it's: {long} 'quoted'");
        let spaced = "two  spaces   and more ".repeat(10) + "end";
        let texts: &[&str] = &[
            "",
            " ",
            "a",
            "a b",
            "a: b",
            "a:b",
            "a:",
            "- a",
            "-a",
            "-",
            "?",
            ":",
            "#a",
            "a #b",
            "a#b",
            "true",
            "Yes",
            "on",
            "n",
            "null",
            "~",
            "1",
            "1.5",
            "0x1f",
            "0o17",
            "1e3",
            "12:30:45",
            "2026-11-23",
            "2026-11-23T07:36:35Z",
            "1_000",
            ".5",
            "+1",
            "-.inf",
            "v1",
            "1Gi",
            "'a'",
            "\"a\"",
            "it's",
            "[a]",
            "{a}",
            "*a",
            "&a",
            "!a",
            "|",
            ">",
            "%a",
            "@a",
            "`a`",
            "---",
            "--- a",
            "...",
            "a\nb",
            "a\nb\n",
            "a\nb\n\n",
            "\na",
            " a\nb",
            "a \nb",
            "a\tb",
            "\t",
            "a\n\tb",
            "a\r\nb",
            "\u{1b}[2J",
            "\u{85}",
            "\u{2028}",
            "\u{feff}",
            "ä€😀",
            "a\\b",
            "=",
            "<<",
            "a\n b\n",
            "\n",
            "\n\n",
            "\n x",
            " x\n",
            "  a\n b\n\n",
            "a\n\tb\n",
            &long,
            &long_quoted,
            &spaced,
            "100m",
            "0777",
            "09",
            "1.2.3",
            "NaN",
            ".nan",
            "key\u{0}",
        ];
        for &text in texts {
            let value = json!({"k": text, "l": [text], text: 1});
            let emitted = emit(&value);
            let back: Value = serde_saphyr::from_str(&emitted).unwrap_or_else(|error| {
                panic!("{text:?} became {emitted:?}: {error}");
            });
            assert_eq!(back, value, "{emitted:?}");
        }
    }
}
