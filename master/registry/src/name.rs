//! Names of repositories and tags. What parses is safe as a path: no component
//! begins with a dot or an underscore, and none is empty.

use std::fmt;

use crate::RegistryError;

/// Longest name of a repository, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Most components of a name, so that its folders stay few.
const COMPONENTS_MAX: usize = 16;
/// Longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;

/// The name of a repository, such as `team/app`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// A tag, such as `v1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Name {
    /// Reads a name.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, RegistryError> {
        let fits = text.len() <= NAME_BYTES_MAX
            && text.split('/').count() <= COMPONENTS_MAX
            && text.split('/').all(is_component);
        if fits { Ok(Self(text.to_owned())) } else { Err(RegistryError::bad_name(text)) }
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Tag {
    /// Reads a tag.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, RegistryError> {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = text.as_bytes();
        let fits = (1..=TAG_BYTES_MAX).contains(&bytes.len())
            && is_word(bytes[0])
            && bytes.iter().all(|b| is_word(*b) || matches!(b, b'.' | b'-'));
        if fits { Ok(Self(text.to_owned())) } else { Err(RegistryError::bad_tag(text)) }
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digest that a tag made by cosign is about: `sha256-<hex>.sig`.
    #[must_use]
    pub fn subject(&self) -> Option<image::Digest> {
        let hex = self.0.strip_prefix("sha256-")?;
        let hex = [".sig", ".att", ".sbom"].iter().find_map(|end| hex.strip_suffix(end))?;
        format!("sha256:{hex}").parse().ok()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let is_word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut rest = part.as_bytes();
    loop {
        let n = rest.iter().take_while(|b| is_word(b)).count();
        if n == 0 {
            return false;
        }
        rest = &rest[n..];
        if rest.is_empty() {
            return true;
        }
        let separator = rest.iter().take_while(|b| !is_word(b)).count();
        let is_known = matches!(&rest[..separator], b"." | b"_" | b"__")
            || rest[..separator].iter().all(|b| *b == b'-');
        if !is_known {
            return false;
        }
        rest = &rest[separator..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_tags_are_those_of_the_specification() {
        for good in ["a", "team/app", "a.b/c_d/e__f/g--h", "0"] {
            assert_eq!(Name::parse(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(256);
        let deep = ["a"; 17].join("/");
        for bad in [
            "", "/", "a/", "A", "..", "a/../b", "_tags", "a/_tags", "a..b", "a._b", "-a", &long,
            &deep,
        ] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
        Tag::parse("v1.0_X-y").unwrap();
        for bad in ["", ".x", "-x", "a/b", "a b", &"a".repeat(129)] {
            assert!(Tag::parse(bad).is_err(), "{bad}");
        }
        let digest = image::Digest::of(b"x");
        let tag = Tag::parse(&format!("sha256-{}.sig", digest.hex())).unwrap();
        assert_eq!(tag.subject(), Some(digest));
        assert_eq!(Tag::parse("v1.sig").unwrap().subject(), None);
    }

    proptest! {
        #[test]
        fn what_parses_never_leaves_its_folder(text in "[a-z0-9./_-]{0,30}") {
            if let Ok(name) = Name::parse(&text) {
                let path = std::path::Path::new(name.as_str());
                let plain = |c: std::path::Component<'_>| {
                    matches!(c, std::path::Component::Normal(part)
                        if !part.to_string_lossy().starts_with('_'))
                };
                prop_assert!(path.components().all(plain));
            }
        }
    }
}
