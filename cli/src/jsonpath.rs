//! The useful part of `kubectl`'s JSONPath templates.
//!
//! ```text
//! text {.a.b} {.a['k.v/x']} {.a\.b} {.l[0]} {.l[-1]} {.l[1:3]} {.l[*].a}
//! {.l[?(@.type=="Ready")].status}   ==, !=, or only a path: is there
//! {range .items[*]}…{end}  {"\n"}
//! ```
//!
//! What a path does not find is nothing, as in `kubectl`. `..` is not known.

use anyhow::{anyhow, bail};
use serde_json::Value;

/// Deepest nesting of ranges and filters.
const DEPTH_MAX: usize = 16;

/// A template, read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Template(Vec<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Path(Vec<Step>),
    Range(Vec<Step>, Vec<Node>),
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Root,
    Field(String),
    All,
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    Filter(Vec<Step>, Option<(bool, Value)>),
}

impl Template {
    /// Reads a template.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        if !text.contains('{') {
            bail!("jsonpath: put what is to be replaced into braces: {{.metadata.name}}");
        }
        let mut parser = Parser { rest: text };
        let nodes = parser.nodes(0)?;
        if !parser.rest.is_empty() {
            bail!("jsonpath: {{end}} without {{range}}");
        }
        Ok(Self(nodes))
    }

    /// The template filled from `object`.
    pub(crate) fn fill(&self, object: &Value) -> String {
        let mut out = String::new();
        fill(&self.0, object, object, &mut out);
        out
    }
}

fn fill(nodes: &[Node], root: &Value, current: &Value, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(steps) => {
                let found = find(steps, root, current);
                let texts: Vec<String> = found.into_iter().map(show).collect();
                out.push_str(&texts.join(" "));
            }
            Node::Range(steps, body) => {
                for item in find(steps, root, current) {
                    fill(body, root, item, out);
                }
            }
        }
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn find<'a>(steps: &[Step], root: &'a Value, current: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![current];
    for step in steps {
        found = found.into_iter().flat_map(|value| follow(step, root, value)).collect();
    }
    found
}

fn follow<'a>(step: &Step, root: &'a Value, value: &'a Value) -> Vec<&'a Value> {
    let place = |index: i64, length: usize| -> Option<usize> {
        let length = i64::try_from(length).ok()?;
        usize::try_from(if index < 0 { index + length } else { index }).ok()
    };
    match (step, value) {
        (Step::Root, _) => vec![root],
        (Step::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
        (Step::All, Value::Array(list)) => list.iter().collect(),
        (Step::All, Value::Object(map)) => map.values().collect(),
        (Step::Index(index), Value::Array(list)) => {
            place(*index, list.len()).and_then(|index| list.get(index)).into_iter().collect()
        }
        (Step::Slice(from, to), Value::Array(list)) => {
            let from = from.map_or(Some(0), |from| place(from, list.len())).unwrap_or(0);
            let to = to.map_or(Some(list.len()), |to| place(to, list.len())).unwrap_or(0);
            list.iter().take(to).skip(from).collect()
        }
        (Step::Filter(path, test), Value::Array(list)) => list
            .iter()
            .filter(|item| {
                let found = find(path, root, item);
                match test {
                    None => !found.is_empty(),
                    Some((equal, wanted)) => found.iter().any(|f| (*f == wanted) == *equal),
                }
            })
            .collect(),
        _ => Vec::new(),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    /// Nodes up to the end, or to the `{end}` of a range.
    fn nodes(&mut self, depth: usize) -> anyhow::Result<Vec<Node>> {
        if depth > DEPTH_MAX {
            bail!("jsonpath: ranges are nested too deeply");
        }
        let mut nodes = Vec::new();
        while !self.rest.is_empty() {
            let Some(open) = self.rest.find('{') else {
                nodes.push(Node::Text(std::mem::take(&mut self.rest).to_owned()));
                break;
            };
            if open > 0 {
                nodes.push(Node::Text(self.rest[..open].to_owned()));
            }
            let inner = &self.rest[open + 1..];
            let close = closing(inner).ok_or_else(|| {
                anyhow!("jsonpath: a brace is not closed: {}", &self.rest[open..])
            })?;
            let expression = inner[..close].trim();
            if expression == "end" {
                if depth == 0 {
                    return Ok(nodes);
                }
                self.rest = &inner[close + 1..];
                return Ok(nodes);
            }
            self.rest = &inner[close + 1..];
            if let Some(path) = expression.strip_prefix("range ") {
                let steps = path_of(path.trim(), depth)?;
                let before = self.rest.len();
                let body = self.nodes(depth + 1)?;
                if before == 0 {
                    bail!("jsonpath: {{range}} without {{end}}");
                }
                nodes.push(Node::Range(steps, body));
            } else if expression.starts_with(['"', '\'']) {
                nodes.push(Node::Text(literal(expression)?));
            } else {
                nodes.push(Node::Path(path_of(expression, depth)?));
            }
        }
        Ok(nodes)
    }
}

/// Where the brace closes that was opened before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '}') => return Some(at),
            _ => {}
        }
    }
    None
}

/// A quoted text.
fn literal(text: &str) -> anyhow::Result<String> {
    let malformed = || anyhow!("jsonpath: {text} is not a text in quotes");
    let quote = text.chars().next().ok_or_else(malformed)?;
    let inner = text[1..].strip_suffix(quote).ok_or_else(malformed)?;
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next().ok_or_else(malformed)? {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                other => out.push(other),
            },
            c if c == quote => return Err(malformed()),
            c => out.push(c),
        }
    }
    Ok(out)
}

fn path_of(text: &str, depth: usize) -> anyhow::Result<Vec<Step>> {
    if depth > DEPTH_MAX {
        bail!("jsonpath: filters are nested too deeply");
    }
    let mut steps = Vec::new();
    let mut rest = text;
    if let Some(after) = rest.strip_prefix('$') {
        steps.push(Step::Root);
        rest = after;
    } else if let Some(after) = rest.strip_prefix('@') {
        rest = after;
    }
    while !rest.is_empty() {
        if rest.starts_with("..") {
            bail!("jsonpath: {text}: \"..\" is not supported: write the path out");
        }
        if let Some(inner) = rest.strip_prefix('[') {
            let close = closing_bracket(inner)
                .ok_or_else(|| anyhow!("jsonpath: {text}: a bracket is not closed"))?;
            steps.push(bracket(inner[..close].trim(), text, depth)?);
            rest = &inner[close + 1..];
            continue;
        }
        let after = rest.strip_prefix('.').unwrap_or(rest);
        if after.len() == rest.len() && !steps.is_empty() {
            bail!("jsonpath: {text}: \"{rest}\" is not understood");
        }
        let (name, next) = field(after);
        match name.as_str() {
            "" if next.starts_with('[') => {}
            "" if next.is_empty() && steps.is_empty() => return Ok(steps),
            "" => bail!("jsonpath: {text}: a name is missing"),
            "*" => steps.push(Step::All),
            _ => steps.push(Step::Field(name)),
        }
        rest = next;
    }
    Ok(steps)
}

/// The name that `text` begins with, and what follows it.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn closing_bracket(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str, text: &str, depth: usize) -> anyhow::Result<Step> {
    let malformed = || anyhow!("jsonpath: {text}: [{inner}] is not understood");
    if inner == "*" {
        return Ok(Step::All);
    }
    if inner.starts_with(['"', '\'']) {
        return Ok(Step::Field(literal(inner)?));
    }
    if let Some(test) = inner.strip_prefix("?(").and_then(|test| test.strip_suffix(')')) {
        let (path, test) = match (test.split_once("=="), test.split_once("!=")) {
            (Some((path, wanted)), _) => (path, Some((true, value_of(wanted.trim())?))),
            (None, Some((path, wanted))) => (path, Some((false, value_of(wanted.trim())?))),
            (None, None) if test.contains(['<', '>', '~']) => return Err(malformed()),
            (None, None) => (test, None),
        };
        return Ok(Step::Filter(path_of(path.trim(), depth + 1)?, test));
    }
    let number = |text: &str| match text.trim() {
        "" => Ok(None),
        text => text.parse::<i64>().map(Some).map_err(|_| malformed()),
    };
    match inner.split_once(':') {
        Some((from, to)) => Ok(Step::Slice(number(from)?, number(to)?)),
        None => Ok(Step::Index(number(inner)?.ok_or_else(malformed)?)),
    }
}

fn value_of(text: &str) -> anyhow::Result<Value> {
    if text.starts_with(['"', '\'']) {
        return literal(text).map(Value::String);
    }
    serde_json::from_str(text).map_err(|_| anyhow!("jsonpath: {text} is not a value"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(template: &str, expected: &str) {
        let object = json!({
            "metadata": {"name": "web", "labels": {"app.kubernetes.io/name": "x", "a.b": "dotted"}},
            "items": [
                {"name": "one", "n": 1, "ready": true, "conditions": [
                    {"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
                {"name": "two", "n": 2, "tags": ["p", "q"]},
                {"name": "three", "n": 3},
            ],
        });
        let filled = Template::parse(template).map(|template| template.fill(&object));
        assert_eq!(filled.unwrap_or_else(|error| error.to_string()), expected, "{template}");
    }

    #[test]
    fn templates_are_filled() {
        check("{.metadata.name}", "web");
        check("name={.metadata.name}{\"\\n\"}", "name=web\n");
        check("{.metadata.labels['app.kubernetes.io/name']}", "x");
        check("{.metadata.labels.a\\.b}", "dotted");
        check("{.items[*].name}", "one two three");
        check("{.items[0].name} {.items[-1].name}", "one three");
        check("{.items[1:].name}", "two three");
        check("{.items[:2].n}", "1 2");
        check("{range .items[*]}{.name}={.n}{'\\t'}{end}!", "one=1\ttwo=2\tthree=3\t!");
        check("{.items[?(@.name==\"two\")].tags}", "[\"p\",\"q\"]");
        check("{.items[?(@.n!=2)].name}", "one three");
        check("{.items[?(@.tags)].name}", "two");
        check("{.items[?(@.ready==true)].conditions[?(@.type=='Ready')].status}", "True");
        check("{range .items[*]}{$.metadata.name}-{@.n} {end}", "web-1 web-2 web-3 ");
        check("{.nothing.at[3].all}", "");
        check("{$.metadata.name}", "web");
        check("{range .items[?(@.tags)]}{range .tags[*]}<{@}>{end}{end}", "<p><q>");
    }

    #[test]
    fn what_is_not_understood_is_said() {
        check(
            "metadata.name",
            "jsonpath: put what is to be replaced into braces: {.metadata.name}",
        );
        check("{.a", "jsonpath: a brace is not closed: {.a");
        check("{..name}", "jsonpath: ..name: \"..\" is not supported: write the path out");
        check("{.a[}", "jsonpath: .a[: a bracket is not closed");
        check("{.a[x]}", "jsonpath: .a[x]: [x] is not understood");
        check("{.a[?(@.n>1)]}", "jsonpath: .a[?(@.n>1)]: [?(@.n>1)] is not understood");
        check("{.items}{end}", "jsonpath: {end} without {range}");
        check("{range .items[*]}", "jsonpath: {range} without {end}");
        for bad in ["{'}", "{\"a}", "{.a.}", "{[}", "{'", "{.a['b]}", "{.a[?(@.b==)]}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
        let deep = format!("{}{}", "{range .a}".repeat(50), "{end}".repeat(50));
        Template::parse(&deep).unwrap_err();
    }
}
