//! Field selectors: `metadata.name=web,status.phase!=Running`.

use std::fmt;

use super::SELECTOR_TEXT_MAX;

/// Why a text is no field selector, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldSelectorError {
    /// A term without an operator.
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term {
        /// The whole text.
        selector: String,
        /// The part that makes no sense.
        term: String,
    },
    /// A backslash before something that needs none.
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// Longer than any selector needs to be.
    #[error("field selector is longer than {SELECTOR_TEXT_MAX} bytes")]
    TooLong,
}

/// One comparison of a [`FieldSelector`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field's path, such as `spec.nodeName`.
    pub field: String,
    /// The text its value is compared with.
    pub value: String,
    /// Whether the two must be equal, or must differ.
    pub equal: bool,
}

/// Comparisons that must all hold. The default one holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// What must hold.
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Reads the text of `?fieldSelector=`.
    ///
    /// # Errors
    /// [`FieldSelectorError`], worded as Kubernetes does.
    pub fn parse(text: &str) -> Result<Self, FieldSelectorError> {
        if text.len() > SELECTOR_TEXT_MAX {
            return Err(FieldSelectorError::TooLong);
        }
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let (field, equal, value) = split_term(term).ok_or_else(|| {
                FieldSelectorError::Term { selector: text.to_owned(), term: term.to_owned() }
            })?;
            requirements.push(FieldRequirement {
                field: field.to_owned(),
                value: unescape(value)?,
                equal,
            });
        }
        Ok(Self { requirements })
    }

    /// Whether it holds for everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether all hold, where `value_of` gives the text of a field.
    pub fn matches(&self, mut value_of: impl FnMut(&str) -> String) -> bool {
        self.requirements.iter().all(|r| (value_of(&r.field) == r.value) == r.equal)
    }

    /// The value `field` must have, where the selector pins it to one.
    ///
    /// Lets a list by `metadata.name` become a single read.
    #[must_use]
    pub fn pinned(&self, field: &str) -> Option<&str> {
        let pins = |r: &&FieldRequirement| r.equal && r.field == field;
        self.requirements.iter().find(pins).map(|r| r.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, r) in self.requirements.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let operator = if r.equal { "=" } else { "!=" };
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", r.field)?;
        }
        Ok(())
    }
}

/// The terms between commas that no backslash protects.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == ',' {
            terms.push(&text[start..at]);
            start = at + 1;
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Field, whether equality is asked for, and the value, still escaped.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (at, _) in term.char_indices() {
        let rest = &term[at..];
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&term[..at], equal, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, FieldSelectorError> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => plain.push(escaped),
                other => {
                    let sequence = other.map_or_else(|| "\\".to_owned(), |c| format!("\\{c}"));
                    return Err(FieldSelectorError::Escape(sequence));
                }
            },
            ',' | '=' => return Err(FieldSelectorError::Escape(c.to_string())),
            _ => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn terms_are_joined_by_and() {
        let selector = FieldSelector::parse("metadata.name=a,status.phase!=Running,x==").unwrap();
        assert_eq!(selector.requirements.len(), 3);
        assert_eq!(selector.pinned("metadata.name"), Some("a"));
        assert_eq!(selector.pinned("status.phase"), None);
        let phase = |phase: &'static str| {
            move |field: &str| match field {
                "metadata.name" => "a".to_owned(),
                "status.phase" => phase.to_owned(),
                _ => String::new(),
            }
        };
        assert!(selector.matches(phase("Pending")));
        assert!(!selector.matches(phase("Running")));
        assert!(FieldSelector::parse("").unwrap().matches(|_| String::new()));
    }

    #[test]
    fn a_term_without_operator_is_refused() {
        assert_eq!(
            FieldSelector::parse("a=b,c").unwrap_err().to_string(),
            "invalid selector: 'a=b,c'; can't understand 'c'"
        );
        let refused = |text: &str| FieldSelector::parse(text).unwrap_err();
        assert_eq!(refused("a=b=c"), FieldSelectorError::Escape("=".to_owned()));
        assert_eq!(refused("a=b\\x"), FieldSelectorError::Escape("\\x".to_owned()));
        assert_eq!(refused(&"a".repeat(SELECTOR_TEXT_MAX + 1)), FieldSelectorError::TooLong);
    }

    proptest! {
        #[test]
        fn text_reads_back(value in "[a-z\\\\,=ä]{0,12}", equal: bool) {
            let selector = FieldSelector {
                requirements: vec![FieldRequirement { field: "a.b".to_owned(), value, equal }],
            };
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn garbage_never_panics(text in "[a-z=!,\\\\ä ]{0,40}") {
            let _ = FieldSelector::parse(&text);
        }
    }
}
