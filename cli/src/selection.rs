//! Which objects a command is about: `pods`, `pods web db`, `pod/web deploy/db`,
//! `pods,deploy`.

use anyhow::bail;

use crate::kinds::{Kind, Kinds};

/// Objects of one kind: those named, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) kind: Kind,
    /// Empty for all.
    pub(crate) names: Vec<String>,
}

/// Reads the words of a command line.
pub(crate) fn parse(kinds: &Kinds, words: &[String]) -> anyhow::Result<Vec<Selection>> {
    let mut selections: Vec<Selection> = Vec::new();
    if words.iter().any(|word| word.contains('/')) {
        for word in words {
            let Some((kind, name)) = word.split_once('/') else {
                bail!(
                    "\"{word}\": there is no need to mix the forms: write KIND/NAME for each \
                     object, or KIND NAME…"
                )
            };
            if kind.is_empty() || name.is_empty() || name.contains('/') {
                bail!("\"{word}\": write KIND/NAME");
            }
            let kind = kinds.one(kind)?;
            match selections.iter_mut().find(|selection| selection.kind == kind) {
                Some(selection) => selection.names.push(name.to_owned()),
                None => selections.push(Selection { kind, names: vec![name.to_owned()] }),
            }
        }
        return Ok(selections);
    }
    let Some((first, names)) = words.split_first() else { bail!("name a kind, such as pods") };
    for word in first.split(',').filter(|word| !word.is_empty()) {
        for kind in kinds.named(word)? {
            if !selections.iter().any(|selection| selection.kind == kind) {
                selections.push(Selection { kind, names: names.to_vec() });
            }
        }
    }
    if selections.is_empty() {
        bail!("name a kind, such as pods");
    }
    Ok(selections)
}

/// Exactly one object, as `KIND/NAME` or `KIND NAME`.
pub(crate) fn one(kinds: &Kinds, words: &[String]) -> anyhow::Result<(Kind, String)> {
    match parse(kinds, words)?.as_slice() {
        [Selection { kind, names }] => match names.as_slice() {
            [name] => Ok((kind.clone(), name.clone())),
            _ => bail!("name one object: KIND/NAME"),
        },
        _ => bail!("name one object: KIND/NAME"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(words: &[&str], expected: &str) {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let text = match parse(&crate::kinds::tests::kinds(), &words) {
            Ok(selections) => selections
                .iter()
                .map(|s| format!("{}[{}]", s.kind.plural, s.names.join(" ")))
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(text, expected, "{words:?}");
    }

    #[test]
    fn all_forms_of_naming_objects_are_read() {
        check(&["po"], "pods[]");
        check(&["pods", "a", "b"], "pods[a b]");
        check(&["pod/a", "deploy/b", "pods/c"], "pods[a c] deployments[b]");
        check(&["pods,deploy"], "pods[] deployments[]");
        check(&["all"], "pods[] deployments[]");
        check(&["all,pods"], "pods[] deployments[]");
        check(&["pod/"], "\"pod/\": write KIND/NAME");
        check(&[""], "name a kind, such as pods");
    }

    #[test]
    fn one_object_is_exactly_one() {
        let kinds = crate::kinds::tests::kinds();
        let one = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            one(&kinds, &words).ok().map(|(kind, name)| kind.named(&name))
        };
        assert_eq!(one(&["deploy/web"]).as_deref(), Some("deployment.apps/web"));
        assert_eq!(one(&["pod", "a"]).as_deref(), Some("pod/a"));
        assert_eq!(one(&["pod"]), None);
        assert_eq!(one(&["pod", "a", "b"]), None);
        assert_eq!(one(&["pod/a", "deploy/b"]), None);
    }
}
