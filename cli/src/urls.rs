//! Paths and queries of the API, with what users typed escaped.

use std::fmt::Write as _;

/// Escapes a path segment or a value in a query.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// `path` with a query of the pairs that have a value.
pub(crate) fn with_query(path: &str, pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={}", escape(value)))
        .collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_types_stays_inside_its_place() {
        assert_eq!(escape("a/../b?c d"), "a%2F..%2Fb%3Fc%20d");
        let query = with_query("/x", &[("labelSelector", "a in (b,c)"), ("limit", "")]);
        assert_eq!(query, "/x?labelSelector=a%20in%20%28b%2Cc%29");
        assert_eq!(with_query("/x", &[("a", "")]), "/x");
    }
}
