//! Label selectors: `app=web,tier in (a, b),!canary` and their object form.
//!
//! The text form is read as `k8s.io/apimachinery/pkg/labels` reads it, with its
//! error texts: a lexer that knows `in` and `notin` only where an operator may
//! stand, and a parser over its tokens.

use std::fmt;

use serde_json::Value;

use super::SELECTOR_TEXT_MAX;
use crate::names;

/// Why a text or object is no label selector, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelSelectorError {
    /// The text stops making sense.
    #[error("{0}")]
    Syntax(String),
    /// The text is fine, but a key or value cannot be a label's.
    #[error("unable to parse requirement: {0}")]
    Requirement(String),
    /// An object-form operator that does not exist.
    #[error("{0:?} is not a valid label selector operator")]
    Operator(String),
    /// An object-form selector that is no object of the right shape.
    #[error("label selector is not {0}")]
    Shape(&'static str),
    /// Longer than any selector needs to be.
    #[error("label selector is longer than {SELECTOR_TEXT_MAX} bytes")]
    TooLong,
}

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// Present, with one of the values (`=`, `==`, `in`).
    In,
    /// Absent, or with none of the values (`!=`, `notin`).
    NotIn,
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
    /// Present, a number, and larger.
    GreaterThan,
    /// Present, a number, and smaller.
    LessThan,
}

/// One comparison of a [`LabelSelector`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// What with; sorted, without repeats.
    pub values: Vec<String>,
}

impl Requirement {
    /// Whether it holds for an object whose label `key` is `value`.
    #[must_use]
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|v| v == value);
        let bound = || self.values.first().and_then(|v| v.parse::<i64>().ok());
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => number().zip(bound()).is_some_and(|(n, bound)| n > bound),
            Operator::LessThan => number().zip(bound()).is_some_and(|(n, bound)| n < bound),
        }
    }
}

/// Requirements that must all hold. The default one holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// What must hold, sorted by key.
    pub requirements: Vec<Requirement>,
    /// Holds for nothing, as an absent `spec.selector` does.
    pub nothing: bool,
}

impl LabelSelector {
    /// A selector that holds for no object.
    #[must_use]
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// A selector for exactly these labels.
    #[must_use]
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let requirements = labels.into_iter().map(|(key, value)| Requirement {
            key: key.to_owned(),
            operator: Operator::In,
            values: vec![value.to_owned()],
        });
        Self::sorted(requirements.collect())
    }

    /// Reads the text of `?labelSelector=`.
    ///
    /// # Errors
    /// [`LabelSelectorError`], worded as Kubernetes does.
    pub fn parse(text: &str) -> Result<Self, LabelSelectorError> {
        if text.len() > SELECTOR_TEXT_MAX {
            return Err(LabelSelectorError::TooLong);
        }
        let mut parser = Parser { tokens: scan(text), at: 0 };
        Ok(Self::sorted(parser.requirements()?))
    }

    /// Reads the object form: `matchLabels` and `matchExpressions`.
    ///
    /// `null` selects nothing and `{}` everything, as in Kubernetes.
    ///
    /// # Errors
    /// An operator that does not exist, a key or value that cannot be a label's,
    /// or a wrong type.
    pub fn from_object(value: &Value) -> Result<Self, LabelSelectorError> {
        let object = match value {
            Value::Null => return Ok(Self::nothing()),
            Value::Object(object) => object,
            _ => return Err(LabelSelectorError::Shape("an object")),
        };
        let mut requirements = Vec::new();
        if let Some(labels) = object.get("matchLabels").filter(|v| !v.is_null()) {
            let labels = labels.as_object().ok_or(LabelSelectorError::Shape("a map of labels"))?;
            for (key, value) in labels {
                let value = value.as_str().ok_or(LabelSelectorError::Shape("a map of texts"))?;
                requirements.push(requirement(key, Operator::In, vec![value.to_owned()])?);
            }
        }
        if let Some(list) = object.get("matchExpressions").filter(|v| !v.is_null()) {
            let list = list.as_array().ok_or(LabelSelectorError::Shape("a list of expressions"))?;
            for expression in list {
                requirements.push(expression_of(expression)?);
            }
        }
        Ok(Self::sorted(requirements))
    }

    /// Whether it holds for everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Whether all hold, where `value_of` gives the value of a label.
    pub fn matches_with<'a>(&self, mut value_of: impl FnMut(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(value_of(&r.key)))
    }

    /// Whether all hold for these labels.
    #[must_use]
    pub fn matches(&self, labels: &std::collections::BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Whether all hold for an object's `metadata.labels`.
    #[must_use]
    pub fn matches_object(&self, object: &Value) -> bool {
        let labels = object.get("metadata").and_then(|m| m.get("labels"));
        self.matches_with(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    fn sorted(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }
}

/// The text form; what the `scale` subresource shows in `status.selector`.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, r) in self.requirements.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            let values = || r.values.join(",");
            match (r.operator, r.values.len()) {
                (Operator::In, 1) => write!(f, "{}={}", r.key, r.values[0])?,
                (Operator::In, _) => write!(f, "{} in ({})", r.key, values())?,
                (Operator::NotIn, 1) => write!(f, "{}!={}", r.key, r.values[0])?,
                (Operator::NotIn, _) => write!(f, "{} notin ({})", r.key, values())?,
                (Operator::Exists, _) => f.write_str(&r.key)?,
                (Operator::DoesNotExist, _) => write!(f, "!{}", r.key)?,
                (Operator::GreaterThan, _) => write!(f, "{}>{}", r.key, values())?,
                (Operator::LessThan, _) => write!(f, "{}<{}", r.key, values())?,
            }
        }
        Ok(())
    }
}

fn expression_of(expression: &Value) -> Result<Requirement, LabelSelectorError> {
    let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or_default();
    let values = match expression.get("values") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(values)) => values
            .iter()
            .map(|v| v.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .ok_or(LabelSelectorError::Shape("a list of texts"))?,
        Some(_) => return Err(LabelSelectorError::Shape("a list of texts")),
    };
    let operator = match text("operator") {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => return Err(LabelSelectorError::Operator(other.to_owned())),
    };
    requirement(text("key"), operator, values)
}

fn requirement(
    key: &str,
    operator: Operator,
    mut values: Vec<String>,
) -> Result<Requirement, LabelSelectorError> {
    let refuse = |text: String| Err(LabelSelectorError::Requirement(text));
    let wrong = names::qualified_name(key);
    if !wrong.is_empty() {
        return refuse(format!("<nil>: Invalid value: {key:?}: {}", wrong.join("; ")));
    }
    match operator {
        Operator::In | Operator::NotIn if values.is_empty() => {
            return refuse(
                "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty"
                    .to_owned(),
            );
        }
        Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
            return refuse(format!(
                "values: Invalid value: {values:?}: values set must be empty for exists and does not exist"
            ));
        }
        Operator::GreaterThan | Operator::LessThan
            if values.iter().any(|v| v.parse::<i64>().is_err()) =>
        {
            return refuse(format!(
                "values[0]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer",
                values.concat()
            ));
        }
        _ => {}
    }
    for (n, value) in values.iter().enumerate() {
        let wrong = names::label_value(value);
        if !wrong.is_empty() {
            return refuse(format!(
                "values[{n}][{key}]: Invalid value: {value:?}: {}",
                wrong.join("; ")
            ));
        }
    }
    values.sort();
    values.dedup();
    Ok(Requirement { key: key.to_owned(), operator, values })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Symbol(&'static str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Word(text) => text,
            Self::Symbol(text) => text,
            Self::End => "",
        }
    }
}

/// Longest first, so that `==` is not read as two `=`.
const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn scan(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let symbol = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol));
        let length = symbol.map_or_else(
            || {
                let stop = |c: char| c.is_whitespace() || "=!(),><".contains(c);
                rest.find(stop).unwrap_or(rest.len())
            },
            str::len,
        );
        let (word, after) = rest.split_at(length);
        tokens.push(symbol.map_or(Token::Word(word), Token::Symbol));
        rest = after.trim_start();
    }
    tokens.push(Token::End);
    tokens
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).copied().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, LabelSelectorError> {
        let starts = |token| matches!(token, Token::Word(_) | Token::Symbol("!"));
        let mut requirements = Vec::new();
        if self.peek() == Token::End {
            return Ok(requirements);
        }
        if !starts(self.peek()) {
            return syntax(self.peek(), ", expected: !, identifier, or 'end of string'");
        }
        loop {
            requirements.push(self.requirement()?);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Symbol(",") if starts(self.peek()) => {}
                Token::Symbol(",") => {
                    return syntax(self.peek(), ", expected: identifier after ','");
                }
                other => return syntax(other, ", expected: ',' or 'end of string'"),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, LabelSelectorError> {
        let absent = self.peek() == Token::Symbol("!");
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return unable(other, ", expected: identifier"),
        };
        if absent {
            return requirement(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return requirement(key, Operator::Exists, Vec::new());
        }
        let (operator, one) = match self.next() {
            Token::Symbol("=" | "==") => (Operator::In, true),
            Token::Symbol("!=") => (Operator::NotIn, true),
            Token::Symbol(">") => (Operator::GreaterThan, true),
            Token::Symbol("<") => (Operator::LessThan, true),
            Token::Word("in") => (Operator::In, false),
            Token::Word("notin") => (Operator::NotIn, false),
            other => return unable(other, ", expected: in, notin, =, ==, !=, gt, lt"),
        };
        let values = if one { vec![self.exact_value()?] } else { self.values()? };
        requirement(key, operator, values)
    }

    fn exact_value(&mut self) -> Result<String, LabelSelectorError> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(word) => {
                self.next();
                Ok(word.to_owned())
            }
            other @ Token::Symbol(_) => unable(other, ", expected: identifier"),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, LabelSelectorError> {
        let open = self.next();
        if open != Token::Symbol("(") {
            return unable(open, " expected: '('");
        }
        let mut values = Vec::new();
        if self.peek() == Token::Symbol(")") {
            self.next();
            return Ok(values);
        }
        loop {
            let value = match self.peek() {
                Token::Word(word) => {
                    self.next();
                    word
                }
                // An empty place is the empty value: `(,a)`, `(a,)`.
                Token::Symbol("," | ")") => "",
                other => return unable(other, ", expected: ',', ')' or identifier"),
            };
            values.push(value.to_owned());
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => return Ok(values),
                other => return unable(other, ", expected: ',' or ')'"),
            }
        }
    }
}

fn syntax<T>(found: Token<'_>, expected: &str) -> Result<T, LabelSelectorError> {
    Err(LabelSelectorError::Syntax(format!("found '{}'{expected}", found.text())))
}

fn unable<T>(found: Token<'_>, expected: &str) -> Result<T, LabelSelectorError> {
    Err(LabelSelectorError::Requirement(format!("found '{}'{expected}", found.text())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(text: &str, labels: &Value, expected: bool) {
        let selector = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let object = json!({"metadata": {"labels": labels}});
        assert_eq!(selector.matches_object(&object), expected, "{text} on {labels}");
        assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
    }

    #[test]
    fn every_operator_compares() {
        let labels = json!({"app": "web", "n": "5"});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web", true),
            ("app!=web", false),
            ("app=db", false),
            ("tier!=x", true),
            ("app in (web, db)", true),
            ("app in (db)", false),
            ("app notin (db)", true),
            ("tier notin (db)", true),
            ("tier in (,a)", false),
            ("app", true),
            ("!app", false),
            ("! tier", true),
            ("tier", false),
            ("n>4", true),
            ("n<5", false),
            ("app>1", false),
            ("tier=", false),
            ("app=web,n in (5),!tier", true),
            ("in=x", false),
            ("app,notin!=x", true),
        ] {
            check(text, &labels, expected);
        }
        check("app", &Value::Null, false);
        check("a=", &json!({"a": ""}), true);
    }

    #[test]
    fn errors_are_kubernetes() {
        for (text, error) in [
            ("a,", "found '', expected: identifier after ','"),
            ("=x", "found '=', expected: !, identifier, or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("a in (b c)", "unable to parse requirement: found 'c', expected: ',' or ')'"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            (
                "a in ()",
                "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
            ),
            ("!a=b", "found '=', expected: ',' or 'end of string'"),
            ("a==(", "unable to parse requirement: found '(', expected: identifier"),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().to_string(), error, "{text}");
        }
        let error = LabelSelector::parse("a@b=c").unwrap_err().to_string();
        assert!(
            error.starts_with(
                "unable to parse requirement: <nil>: Invalid value: \"a@b\": name part"
            ),
            "{error}"
        );
        assert!(LabelSelector::parse("a=b@").unwrap_err().to_string().contains("values[0][a]"));
    }

    #[test]
    fn the_object_form_is_the_same_selector() {
        let object = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "NotIn", "values": ["b", "a"]},
                {"key": "x", "operator": "DoesNotExist"},
            ],
        });
        let selector = LabelSelector::from_object(&object).unwrap();
        assert_eq!(selector.to_string(), "app=web,tier notin (a,b),!x");
        assert_eq!(selector, LabelSelector::parse(&selector.to_string()).unwrap());
        assert!(LabelSelector::from_object(&json!({})).unwrap().is_empty());
        let nothing = LabelSelector::from_object(&Value::Null).unwrap();
        assert!(!nothing.matches_object(&json!({})));
        let wrong = json!({"matchExpressions": [{"key": "a", "operator": "Like"}]});
        assert_eq!(
            LabelSelector::from_object(&wrong).unwrap_err().to_string(),
            "\"Like\" is not a valid label selector operator"
        );
        for wrong in [json!([]), json!({"matchLabels": 1}), json!({"matchLabels": {"a": 1}})] {
            assert!(LabelSelector::from_object(&wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "[a-z=!,()<> ä]{0,40}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
            }
        }
    }
}
