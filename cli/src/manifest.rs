//! Manifests: files, folders or standard input with objects in YAML or JSON.
//!
//! Each document is read for itself, so that one that is broken hides no other,
//! and every message names the file, the document and its first line.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde_json::Value;

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// Deepest folder that `-R` goes into.
const DEPTH_MAX: usize = 32;

/// Where a document stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file, or `standard input`.
    pub(crate) file: String,
    /// Its number in the file, from 1.
    pub(crate) document: usize,
    /// Its first line in the file, from 1.
    pub(crate) line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {} (line {})", self.file, self.document, self.line)
    }
}

/// An object and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) place: Place,
    pub(crate) object: Value,
}

impl Document {
    pub(crate) fn text(&self, key: &str) -> &str {
        self.object[key].as_str().unwrap_or_default()
    }
}

/// What was read: objects, and what could not be read.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    pub(crate) documents: Vec<Document>,
    pub(crate) failures: Vec<anyhow::Error>,
}

/// Reads everything that `sources` name: files, folders, or `-`.
pub(crate) fn read(sources: &[PathBuf], recursive: bool) -> anyhow::Result<Manifests> {
    let mut manifests = Manifests::default();
    for source in sources {
        if source.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin()
                .take(FILE_BYTES_MAX + 1)
                .read_to_string(&mut text)
                .context("cannot read standard input")?;
            if text.len() as u64 > FILE_BYTES_MAX {
                bail!("standard input has more than {} MB", FILE_BYTES_MAX >> 20);
            }
            manifests.add("standard input", &text);
            continue;
        }
        if let Some(url) = source.to_str().filter(|s| s.contains("://")) {
            bail!("{url}: fetch it first, and check it: curl -fsS {url} | pinnace apply -f -");
        }
        let mut files = Vec::new();
        collect(source, recursive, 0, &mut files)?;
        for file in files {
            match read_file(&file) {
                Ok(text) => manifests.add(&file.display().to_string(), &text),
                Err(error) => manifests.failures.push(error),
            }
        }
    }
    if manifests.documents.is_empty() && manifests.failures.is_empty() {
        let names: Vec<String> = sources.iter().map(|s| s.display().to_string()).collect();
        bail!("no objects in {}", names.join(", "));
    }
    Ok(manifests)
}

/// The files below `path`, in the order of their names; a file that is named
/// itself may have any extension.
fn collect(
    path: &Path,
    recursive: bool,
    depth: usize,
    files: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    let cannot = || format!("cannot read {}", path.display());
    let metadata = std::fs::metadata(path).with_context(cannot)?;
    if !metadata.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    if depth > DEPTH_MAX {
        bail!("{}: folders are nested too deeply", path.display());
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).with_context(cannot)? {
        entries.push(entry.with_context(cannot)?.path());
    }
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            if recursive {
                collect(&entry, recursive, depth + 1, files)?;
            }
            continue;
        }
        let extension = entry.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) {
            files.push(entry);
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(path).with_context(cannot)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).with_context(cannot)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        bail!("{} has more than {} MB", path.display(), FILE_BYTES_MAX >> 20);
    }
    Ok(text)
}

impl Manifests {
    fn add(&mut self, file: &str, text: &str) {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.trim_start().starts_with('{') {
            return self.add_json(file, text);
        }
        let mut document = 0;
        for (line, part) in split(text) {
            if is_blank(part) {
                continue;
            }
            document += 1;
            let place = Place { file: file.to_owned(), document, line };
            match serde_saphyr::from_str::<Value>(part) {
                Ok(Value::Null) => {}
                Ok(object) => self.add_object(place, object),
                Err(error) => {
                    let at = error.location().map_or(1, |at| at.line());
                    let line = line + usize::try_from(at).unwrap_or(1).saturating_sub(1);
                    let problem = yaml_problem(&error.without_snippet().to_string());
                    let problem = format!("line {line}: cannot read YAML: {problem}");
                    self.failures.push(anyhow!("{place}: {problem}"));
                }
            }
        }
    }

    /// JSON values one after the other.
    fn add_json(&mut self, file: &str, text: &str) {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let mut document = 0;
        loop {
            let skipped = text[values.byte_offset()..].len()
                - text[values.byte_offset()..].trim_start().len();
            let line = 1 + text[..values.byte_offset() + skipped].matches('\n').count();
            document += 1;
            let place = Place { file: file.to_owned(), document, line };
            match values.next() {
                None => return,
                Some(Ok(object)) => self.add_object(place, object),
                Some(Err(error)) => {
                    self.failures.push(anyhow!("{place}: cannot read JSON: {error}"));
                    return;
                }
            }
        }
    }

    /// Takes an object, or the objects of a list.
    fn add_object(&mut self, place: Place, object: Value) {
        let text = |key: &str| object[key].as_str().unwrap_or_default();
        if !object.is_object() {
            return self
                .failures
                .push(anyhow!("{place}: not an object: it needs apiVersion, kind and metadata"));
        }
        for key in ["apiVersion", "kind"] {
            if text(key).is_empty() {
                return self.failures.push(anyhow!("{place}: {key} is missing"));
            }
        }
        if text("kind").ends_with("List") && object["items"].is_array() {
            let mut object = object;
            if let Value::Array(items) = object["items"].take() {
                for item in items {
                    self.add_object(place.clone(), item);
                }
            }
            return;
        }
        if object["metadata"]["name"].as_str().unwrap_or_default().is_empty() {
            let kind = text("kind");
            let problem = if object["metadata"]["generateName"].is_string() {
                "generateName cannot be applied: give it a name"
            } else {
                "metadata.name is missing"
            };
            return self.failures.push(anyhow!("{place}: {kind}: {problem}"));
        }
        self.documents.push(Document { place, object });
    }
}

/// What a parser says, without its own idea of the place and of its settings.
fn yaml_problem(said: &str) -> String {
    let line = said.lines().next().unwrap_or_default();
    let line = line.split(" at line ").next().unwrap_or_default();
    line.split(", set DuplicateKeyPolicy").next().unwrap_or_default().to_owned()
}

/// The documents of a YAML text with the line each begins on.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut offset = 0;
    for (n, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end_matches(['\n', '\r']);
        let is_marker = |marker: &str| {
            bare.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
        };
        if is_marker("---") {
            parts.push((start_line, &text[start..offset]));
            // What follows the marker on its line belongs to the document.
            (start, start_line) = (offset + 3, n + 1);
        } else if is_marker("...") {
            parts.push((start_line, &text[start..offset]));
            (start, start_line) = (offset + line.len(), n + 2);
        }
        offset += line.len();
    }
    parts.push((start_line, &text[start..]));
    parts
}

/// Whether a text has nothing but comments, directives and blank lines.
fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line.starts_with("%YAML")
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expected: Expect) {
        let mut manifests = Manifests::default();
        manifests.add("a.yaml", text);
        let mut out = String::new();
        for document in &manifests.documents {
            let name = &document.object["metadata"]["name"];
            out.push_str(&format!("{}: {} {name}\n", document.place, document.text("kind")));
        }
        for failure in &manifests.failures {
            out.push_str(&format!("error: {failure}\n"));
        }
        expected.assert_eq(&out);
    }

    #[test]
    fn documents_are_split_where_yaml_splits_them() {
        check(
            "# a comment\n---\napiVersion: v1\nkind: A\nmetadata: {name: one}\n--- # Source: x\n\
             apiVersion: v1\nkind: B\nmetadata: {name: two}\ndata:\n  text: |\n    ---\n    a\n\
             ---\n# nothing\n---\n--- {apiVersion: v1, kind: C, metadata: {name: three}}\n...\n\
             apiVersion: v1\r\nkind: D\r\nmetadata: {name: four}\r\n---\r\n",
            expect![[r#"
                a.yaml, document 1 (line 2): A "one"
                a.yaml, document 2 (line 6): B "two"
                a.yaml, document 3 (line 17): C "three"
                a.yaml, document 4 (line 19): D "four"
            "#]],
        );
    }

    #[test]
    fn json_and_lists_are_read_too() {
        check(
            "{\"apiVersion\":\"v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"one\"}}\n\n\
             {\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[\
             {\"apiVersion\":\"v1\",\"kind\":\"B\",\"metadata\":{\"name\":\"two\"}},{\"kind\":\"C\"}]}\n{oops",
            expect![[r#"
                a.yaml, document 1 (line 1): A "one"
                a.yaml, document 2 (line 3): B "two"
                error: a.yaml, document 2 (line 3): apiVersion is missing
                error: a.yaml, document 3 (line 4): cannot read JSON: key must be a string at line 4 column 2
            "#]],
        );
    }

    #[test]
    fn a_broken_document_hides_no_other() {
        check(
            "apiVersion: v1\nkind: A\nmetadata: {name: one}\n---\napiVersion: v1\nkind: [B\n---\n\
             just text\n---\nkind: A\n---\napiVersion: v1\nkind: A\nmetadata: {generateName: a-}\n\
             ---\na: 1\na: 2\n",
            expect![[r#"
                a.yaml, document 1 (line 1): A "one"
                error: a.yaml, document 2 (line 4): line 6: cannot read YAML: unclosed bracket '['
                error: a.yaml, document 3 (line 7): not an object: it needs apiVersion, kind and metadata
                error: a.yaml, document 4 (line 9): apiVersion is missing
                error: a.yaml, document 5 (line 11): A: generateName cannot be applied: give it a name
                error: a.yaml, document 6 (line 15): line 17: cannot read YAML: duplicate mapping key: a
            "#]],
        );
    }

    #[test]
    fn folders_are_read_in_order_and_deep_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let object = |name: &str| format!("apiVersion: v1\nkind: A\nmetadata: {{name: {name}}}\n");
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        for (file, name) in
            [("b.yaml", "b"), ("a.yml", "a"), ("c.json", "c"), ("d.txt", "d"), ("deep/e.yaml", "e")]
        {
            let text = if file.ends_with("json") {
                format!(
                    "{{\"apiVersion\":\"v1\",\"kind\":\"A\",\"metadata\":{{\"name\":\"{name}\"}}}}"
                )
            } else {
                object(name)
            };
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let names = |recursive| -> Vec<String> {
            let read = read(&[dir.path().to_owned()], recursive).unwrap();
            let name = |d: &Document| d.object["metadata"]["name"].as_str().unwrap().to_owned();
            read.documents.iter().map(name).collect()
        };
        assert_eq!(names(false), ["a", "b", "c"]);
        assert_eq!(names(true), ["a", "b", "c", "e"]);
        let text = read(&[dir.path().join("d.txt")], false).unwrap();
        assert_eq!(text.documents.len(), 1);
        read(&[dir.path().join("missing")], false).unwrap_err();
        read(&[dir.path().join("deep/nothing")], false).unwrap_err();
    }
}
