//! Names as they travel: labels with their lengths, the root at the end.
//!
//! Always in lower case, since names are compared and never shown; what a client
//! wrote is echoed from its question. Reading follows a pointer only backwards,
//! so that no message makes it loop.

use std::fmt;

/// Most bytes of a name, its lengths and the root included (RFC 1035, 3.1).
const NAME_BYTES_MAX: usize = 255;

/// Most bytes of a label.
const LABEL_BYTES_MAX: usize = 63;

/// A name, with the root at its end.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name(Vec<u8>);

impl Name {
    /// `.`
    pub(super) fn root() -> Self {
        Self(vec![0])
    }

    /// Reads the name at `at`, through pointers; also says where the next thing
    /// begins. `None` where there is no name.
    pub(super) fn read(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Vec::with_capacity(64);
        let mut here = at;
        let mut next = None;
        // Where the part that is read began; a pointer leads before it.
        let mut barrier = at;
        loop {
            let length = usize::from(*message.get(here)?);
            match length {
                0 => {
                    name.push(0);
                    return Some((Self(name), next.unwrap_or(here + 1)));
                }
                1..=LABEL_BYTES_MAX => {
                    let label = message.get(here..here + 1 + length)?;
                    // One more for the root.
                    if name.len() + label.len() >= NAME_BYTES_MAX {
                        return None;
                    }
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    here += 1 + length;
                }
                0xc0.. => {
                    let low = usize::from(*message.get(here + 1)?);
                    let target = (length & 0x3f) << 8 | low;
                    next.get_or_insert(here + 2);
                    if target >= barrier {
                        return None;
                    }
                    barrier = target;
                    here = target;
                }
                _ => return None,
            }
        }
    }

    /// Passes over the name at `at`: where the next thing begins.
    pub(super) fn skip(message: &[u8], at: usize) -> Option<usize> {
        let mut here = at;
        while here - at < NAME_BYTES_MAX {
            let length = usize::from(*message.get(here)?);
            match length {
                0 => return Some(here + 1),
                1..=LABEL_BYTES_MAX => here += 1 + length,
                0xc0.. => {
                    let target = (length & 0x3f) << 8 | usize::from(*message.get(here + 1)?);
                    return (target < at).then_some(here + 2);
                }
                _ => return None,
            }
        }
        None
    }

    /// The name with these labels before `rest`; `None` where it gets too long, or
    /// where a label is none.
    pub(super) fn join<'a>(
        labels: impl IntoIterator<Item = &'a [u8]>,
        rest: &Self,
    ) -> Option<Self> {
        let mut name = Vec::with_capacity(64);
        for label in labels {
            let length =
                u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
            name.push(length);
            name.extend(label.iter().map(u8::to_ascii_lowercase));
        }
        name.extend(&rest.0);
        (name.len() <= NAME_BYTES_MAX).then_some(Self(name))
    }

    /// Reads text such as `cluster.local`, with or without a dot at the end.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Some(Self::root());
        }
        Self::join(text.split('.').map(str::as_bytes), &Self::root())
    }

    /// As it travels.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Where each label begins, the root left out.
    pub(super) fn starts(&self) -> impl Iterator<Item = usize> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let here = next;
            next += 1 + usize::from(self.0[here]);
            (self.0[here] > 0).then_some(here)
        })
        .fuse()
    }

    /// Its labels, the first first.
    pub(super) fn labels(&self) -> impl Iterator<Item = &[u8]> {
        self.starts().map(|at| &self.0[at + 1..at + 1 + usize::from(self.0[at])])
    }

    /// The labels before `zone`; `None` where the name is not in it.
    pub(super) fn before(&self, zone: &Self) -> Option<Vec<&[u8]>> {
        let end = self.0.len().checked_sub(zone.0.len())?;
        let is_boundary = end + 1 == self.0.len() || self.starts().any(|at| at == end);
        (is_boundary && self.0[end..] == zone.0)
            .then(|| self.labels().take(self.starts().take_while(|at| *at < end).count()).collect())
    }

    /// Its last `n_labels` labels.
    pub(super) fn last(&self, n_labels: usize) -> Self {
        let starts: Vec<usize> = self.starts().collect();
        let at = match n_labels {
            0 => self.0.len() - 1,
            n => starts.get(starts.len().saturating_sub(n)).copied().unwrap_or(0),
        };
        Self(self.0[at..].to_vec())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        if self.0.len() == 1 { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::from_text(text).unwrap()
    }

    #[test]
    fn names_are_read_through_pointers_and_in_lower_case() {
        let mut message = b"\x05LoCaL\x00".to_vec();
        message.extend(b"\x07Cluster\xc0\x00\x03svc\xc0\x07tail");
        assert_eq!(Name::read(&message, 0), Some((name("local"), 7)));
        assert_eq!(Name::read(&message, 7), Some((name("cluster.local"), 17)));
        assert_eq!(Name::read(&message, 17), Some((name("svc.cluster.local"), 23)));
        assert_eq!(Name::skip(&message, 17), Some(23));
    }

    #[test]
    fn pointers_that_lead_in_circles_or_forwards_are_no_names() {
        for message in [
            &b"\xc0\x00"[..],
            b"\xc0\x02\xc0\x00",
            b"\x01a\xc0\x00",
            b"\xc0\x7f",
            b"\x40a",
            b"\x80a",
            b"\x05abc",
            b"\xc0",
            b"",
        ] {
            assert_eq!(Name::read(message, 0), None, "{message:?}");
            assert_eq!(Name::skip(message, 0), None, "{message:?}");
        }
        // Two that point at each other, read from the second.
        assert_eq!(Name::read(b"\xc0\x02\xc0\x00", 2), None);
    }

    #[test]
    fn a_name_has_at_most_255_bytes() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        let fits = name(&longest);
        assert_eq!(fits.as_bytes().len(), 255);
        assert_eq!(Name::read(fits.as_bytes(), 0), Some((fits.clone(), 255)));
        assert_eq!(Name::from_text(&format!("{longest}a")), None);
        assert_eq!(Name::from_text(&"a".repeat(64)), None);
        assert_eq!(Name::from_text("a..b"), None);
        let mut long = vec![1, b'x'];
        long.extend(fits.as_bytes());
        assert_eq!(Name::read(&long, 0), None);
    }

    #[test]
    fn a_zone_ends_at_a_label() {
        let zone = name("cluster.local");
        let check = |text: &str, expected: Option<&[&str]>| {
            let name = name(text);
            let labels = name.before(&zone);
            let expected =
                expected.map(|labels| labels.iter().map(|l| l.as_bytes()).collect::<Vec<_>>());
            assert_eq!(labels, expected, "{text}");
        };
        check("a.SVC.cluster.local", Some(&["a", "svc"]));
        check("cluster.local", Some(&[]));
        check("mycluster.local", None);
        check("local", None);
        check("", None);
        // A byte of a label that looks like a length is none.
        check("x\u{7}cluster.local", None);
        assert_eq!(name("a.b").before(&Name::root()).unwrap().len(), 2);
        assert_eq!(name("a.b.c").last(2), name("b.c"));
        assert_eq!(name("a.b.c").last(0), Name::root());
        assert_eq!(name("a").last(5), name("a"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_name_that_reads_the_same_again_or_none(
            message in proptest::collection::vec(prop_oneof![0u8..4, 0xc0u8..0xc2, any::<u8>()], 0..300),
            at in 0usize..310,
        ) {
            if let Some((name, next)) = Name::read(&message, at) {
                prop_assert!(name.as_bytes().len() <= NAME_BYTES_MAX);
                prop_assert!(next > at && next <= message.len());
                prop_assert_eq!(Name::skip(&message, at), Some(next));
                let again = Name::read(name.as_bytes(), 0);
                prop_assert_eq!(again, Some((name.clone(), name.as_bytes().len())));
                prop_assert!(name.labels().count() <= 127);
            }
        }
    }
}
