//! A tree of names and values as indented text; the values of a block line up.

use serde_json::Value;

use crate::text::printable;

/// Spaces between a name's colon and its value.
const GAP: usize = 2;
/// Spaces of a level.
const INDENT: usize = 2;

/// One thing that is said.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    /// `Name:  value`.
    Text(String, String),
    /// Several values below each other, the first beside the name.
    Lines(String, Vec<String>),
    /// Entries below a name.
    Block(String, Vec<Entry>),
    /// A table below a name.
    Table(String, Vec<Vec<String>>),
}

impl Entry {
    /// A block, or `<none>` where there is nothing in it.
    pub(super) fn block(name: &str, entries: Vec<Self>) -> Self {
        if entries.is_empty() {
            return Self::Text(name.to_owned(), "<none>".to_owned());
        }
        Self::Block(name.to_owned(), entries)
    }

    /// A table with a header.
    pub(super) fn table(name: &str, header: &[&str], rows: Vec<Vec<String>>) -> Self {
        let dashes = header.iter().map(|title| "-".repeat(title.len())).collect();
        let header = header.iter().map(|title| (*title).to_owned()).collect();
        let rows = [header, dashes].into_iter().chain(rows).collect();
        Self::Table(name.to_owned(), rows)
    }

    fn name(&self) -> &str {
        match self {
            Self::Text(name, _)
            | Self::Lines(name, _)
            | Self::Block(name, _)
            | Self::Table(name, _) => name,
        }
    }
}

/// What is said of an object, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outline(pub(super) Vec<Entry>);

impl Outline {
    pub(super) fn push(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    pub(super) fn extend(&mut self, entry: Option<Entry>) {
        self.0.extend(entry);
    }

    pub(super) fn text(&mut self, name: &str, value: &str) {
        self.push(Entry::Text(name.to_owned(), value.to_owned()));
    }

    /// As [`Outline::text`], but nothing where the value is empty.
    pub(super) fn text_if(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.text(name, value);
        }
    }

    pub(super) fn lines(&mut self, name: &str, lines: Vec<String>) {
        self.push(Entry::Lines(name.to_owned(), lines));
    }

    /// All of an object but its metadata.
    pub(super) fn rest(&mut self, object: &Value) {
        let fields = object.as_object().into_iter().flatten();
        for (key, value) in fields.filter(|(key, _)| *key != "metadata") {
            self.push(whole(key, value));
        }
    }

    /// The text.
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        render(&self.0, 0, &mut out);
        out
    }
}

/// `holderIdentity` as `Holder Identity`.
fn title(key: &str) -> String {
    let mut title = String::new();
    for (n, c) in key.chars().enumerate() {
        match c {
            c if n == 0 => title.extend(c.to_uppercase()),
            c if c.is_uppercase() => {
                title.push(' ');
                title.push(c);
            }
            c => title.push(c),
        }
    }
    title
}

/// A value as an entry, with all that is in it.
fn whole(key: &str, value: &Value) -> Entry {
    let name = title(key);
    match value {
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| whole(key, value)).collect();
            Entry::block(&name, entries)
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            let entries = list.iter().enumerate().map(|(n, value)| whole(&n.to_string(), value));
            Entry::block(&name, entries.collect())
        }
        Value::Array(list) => Entry::Lines(name, list.iter().map(text).collect()),
        other => Entry::Text(name, text(other)),
    }
}

/// A scalar as text; nothing for what is not there.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn render(entries: &[Entry], indent: usize, out: &mut String) {
    let beside = |entry: &&Entry| matches!(entry, Entry::Text(..) | Entry::Lines(..));
    let widths = entries.iter().filter(beside).map(|entry| entry.name().chars().count());
    let width = widths.max().unwrap_or(0) + 1 + GAP;
    let pad = " ".repeat(indent);
    for entry in entries {
        let name = printable(entry.name());
        match entry {
            Entry::Text(_, value) => {
                let line = format!("{pad}{:width$}{}", format!("{name}:"), one_line(value));
                out.push_str(line.trim_end());
                out.push('\n');
            }
            Entry::Lines(_, lines) => {
                let none = ["<none>".to_owned()];
                let lines = if lines.is_empty() { &none[..] } else { lines };
                for (n, line) in lines.iter().enumerate() {
                    let name = if n == 0 { format!("{name}:") } else { String::new() };
                    let line = format!("{pad}{name:width$}{}", one_line(line));
                    out.push_str(line.trim_end());
                    out.push('\n');
                }
            }
            Entry::Block(_, entries) => {
                out.push_str(&format!("{pad}{name}:\n"));
                render(entries, indent + INDENT, out);
            }
            Entry::Table(_, rows) => {
                out.push_str(&format!("{pad}{name}:\n"));
                table(rows, indent + INDENT, out);
            }
        }
    }
}

fn table(rows: &[Vec<String>], indent: usize, out: &mut String) {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| {
        rows.iter().filter_map(|row| row.get(n)).map(|cell| one_line(cell).chars().count()).max()
    };
    let widths: Vec<usize> = (0..n_columns).map(|n| width(n).unwrap_or(0) + GAP).collect();
    for row in rows {
        let mut line = " ".repeat(indent);
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{:width$}", one_line(cell)));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// A value that cannot break the outline's lines.
fn one_line(value: &str) -> String {
    printable(&value.trim_end().replace('\n', " "))
}
