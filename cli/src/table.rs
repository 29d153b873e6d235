//! Tables as the server makes them, printed as `kubectl` prints them: columns
//! three spaces apart and at least six wide, the last one ragged.
//!
//! Source: `k8s.io/cli-runtime/pkg/printers/tableprinter.go` and the tab writer
//! that it uses.

use serde_json::Value;

use crate::text::printable;

const PADDING: usize = 3;
const WIDTH_MIN: usize = 6;

/// Rows of texts below a header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// How a server's table becomes texts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// Show what `-o wide` shows.
    pub(crate) wide: bool,
    /// A column with each row's namespace comes first.
    pub(crate) namespace: bool,
    /// What goes before each name: `pod/`.
    pub(crate) prefix: String,
    /// A column with each row's labels comes last.
    pub(crate) labels: bool,
}

/// A column that the server described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    name: String,
    wide: bool,
}

/// The columns of a `Table`; `None` where it does not say them again, as in a watch.
pub(crate) fn columns(table: &Value) -> Option<Vec<Column>> {
    let columns = table["columnDefinitions"].as_array().filter(|columns| !columns.is_empty())?;
    let column = |column: &Value| Column {
        name: column["name"].as_str().unwrap_or_default().to_owned(),
        wide: column["priority"].as_i64().unwrap_or(0) > 0,
    };
    Some(columns.iter().map(column).collect())
}

/// The header of a table.
pub(crate) fn header(columns: &[Column], layout: &Layout) -> Vec<String> {
    let mut header = Vec::new();
    if layout.namespace {
        header.push("NAMESPACE".to_owned());
    }
    let shown = columns.iter().filter(|column| layout.wide || !column.wide);
    header.extend(shown.map(|column| column.name.to_uppercase()));
    if layout.labels {
        header.push("LABELS".to_owned());
    }
    header
}

/// The texts of one row.
pub(crate) fn row(columns: &[Column], row: &Value, layout: &Layout) -> Vec<String> {
    let metadata = &row["object"]["metadata"];
    let mut texts = Vec::new();
    if layout.namespace {
        texts.push(metadata["namespace"].as_str().unwrap_or_default().to_owned());
    }
    for (n, column) in columns.iter().enumerate().filter(|(_, c)| layout.wide || !c.wide) {
        let mut text = cell(&row["cells"][n]);
        if n == 0 && column.name.eq_ignore_ascii_case("name") {
            text.insert_str(0, &layout.prefix);
        }
        texts.push(text);
    }
    if layout.labels {
        texts.push(labels(&metadata["labels"]));
    }
    texts
}

/// `a=b,c=d`, or `<none>`.
pub(crate) fn labels(labels: &Value) -> String {
    let mut pairs: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// A cell as text: its first line, and a sign where there is more.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => match text.split_once(['\n', '\r', '\x0c']) {
            Some((first, _)) => format!("{}...", printable(first)),
            None => printable(text),
        },
        other => other.to_string(),
    }
}

/// The width of each column, so that rows which follow later line up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Widths(Vec<usize>);

impl Widths {
    /// Widens the columns for `row`.
    fn fit(&mut self, row: &[String]) {
        for (n, text) in row.iter().enumerate() {
            let width = (text.chars().count() + PADDING).max(WIDTH_MIN);
            match self.0.get_mut(n) {
                Some(known) => *known = width.max(*known),
                None => self.0.push(width),
            }
        }
    }

    fn line(&self, row: &[String], out: &mut String) {
        for (n, text) in row.iter().enumerate() {
            out.push_str(text);
            // Only what something follows is padded.
            if n + 1 < row.len() {
                let width = self.0.get(n).copied().unwrap_or(WIDTH_MIN);
                let spaces = width.saturating_sub(text.chars().count());
                out.extend(std::iter::repeat_n(' ', spaces));
            }
        }
        out.push('\n');
    }
}

impl Table {
    /// The table as text; its columns are as wide as `widths` and wider if need be.
    pub(crate) fn render(&self, with_header: bool, widths: &mut Widths) -> String {
        if with_header {
            widths.fit(&self.header);
        }
        self.rows.iter().for_each(|row| widths.fit(row));
        let mut out = String::new();
        if with_header {
            widths.line(&self.header, &mut out);
        }
        self.rows.iter().for_each(|row| widths.line(row, &mut out));
        out
    }
}

/// A table of our own.
pub(crate) fn simple<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let header = header.iter().map(|text| (*text).to_owned()).collect();
    let rows = rows.into_iter().map(|row| row.map(|text| printable(&text)).to_vec()).collect();
    Table { header, rows }.render(true, &mut Widths::default())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn server_table() -> Value {
        json!({
            "kind": "Table",
            "columnDefinitions": [
                {"name": "Name", "priority": 0}, {"name": "Ready", "priority": 0},
                {"name": "Restarts", "priority": 0}, {"name": "Node", "priority": 1},
            ],
            "rows": [
                {"cells": ["web-1", "1/1", 0, "pi-1"],
                 "object": {"metadata": {"namespace": "shop", "labels": {"b": "2", "a": "1"}}}},
                {"cells": ["a-much-longer-name", "0/1", 12, null],
                 "object": {"metadata": {"namespace": "default"}}},
                {"cells": ["two\nlines\u{1b}", "0/1", 0, "x"],
                 "object": {"metadata": {"namespace": "default"}}},
            ],
        })
    }

    fn check(layout: &Layout, expected: Expect) {
        let table = server_table();
        let columns = columns(&table).unwrap();
        let rows = table["rows"].as_array().unwrap();
        let table = Table {
            header: header(&columns, layout),
            rows: rows.iter().map(|one| row(&columns, one, layout)).collect(),
        };
        expected.assert_eq(&table.render(true, &mut Widths::default()));
    }

    #[test]
    fn tables_look_as_in_kubectl() {
        check(
            &Layout::default(),
            expect![[r#"
                NAME                 READY   RESTARTS
                web-1                1/1     0
                a-much-longer-name   0/1     12
                two...               0/1     0
            "#]],
        );
        check(
            &Layout { wide: true, namespace: true, prefix: "pod/".to_owned(), labels: true },
            expect![[r#"
                NAMESPACE   NAME                     READY   RESTARTS   NODE    LABELS
                shop        pod/web-1                1/1     0          pi-1    a=1,b=2
                default     pod/a-much-longer-name   0/1     12         <nil>   <none>
                default     pod/two...               0/1     0          x       <none>
            "#]],
        );
    }

    #[test]
    fn columns_have_a_least_width_and_stay_as_wide_as_they_were() {
        let mut widths = Widths::default();
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let first = Table { header: row("A", "B"), rows: vec![row("x", "y")] };
        assert_eq!(first.render(true, &mut widths), "A     B\nx     y\n");
        let wide = Table { header: Vec::new(), rows: vec![row("12345678", "y")] };
        assert_eq!(wide.render(false, &mut widths), "12345678   y\n");
        let later = Table { header: Vec::new(), rows: vec![row("z", "y")] };
        assert_eq!(later.render(false, &mut widths), "z          y\n");
    }
}
