//! Names: which texts Kubernetes accepts as a name, a label, a key or a port,
//! and how a generated name is made.
//!
//! Every check returns all that is wrong, in Kubernetes' words, and an empty
//! list for a good value. It does not know which field of which kind holds the
//! value: that is `validation`.

/// Length of a DNS label, in bytes.
pub const DNS1123_LABEL_MAX: usize = 63;
/// Length of a DNS subdomain, in bytes.
pub const DNS1123_SUBDOMAIN_MAX: usize = 253;
/// Length of a label value, in bytes.
pub const LABEL_VALUE_MAX: usize = 63;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const QUALIFIED_EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];

/// What is wrong with `value` as an RFC 1123 label: a namespace, a container.
#[must_use]
pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(value, DNS1123_LABEL_MAX, &mut errors);
    if !is_dns_label(value) {
        errors.push(regex_error(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
            LABEL,
            &["my-name", "123-abc"],
        ));
    }
    errors
}

/// What is wrong with `value` as an RFC 1123 subdomain: the name of most kinds.
#[must_use]
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(value, DNS1123_SUBDOMAIN_MAX, &mut errors);
    if !value.split('.').all(is_dns_label) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            SUBDOMAIN,
            &["example.com"],
        ));
    }
    errors
}

/// What is wrong with `value` as an RFC 1035 label: the name of a Service.
#[must_use]
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(value, DNS1123_LABEL_MAX, &mut errors);
    if !(is_dns_label(value) && value.starts_with(|c: char| c.is_ascii_lowercase())) {
        errors.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// What is wrong with `value` as the key of a label, an annotation or a finalizer.
#[must_use]
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                let wrong = dns1123_subdomain(prefix);
                errors.extend(wrong.into_iter().map(|message| format!("prefix part {message}")));
            }
            name
        }
        _ => {
            let rule = regex_error(QUALIFIED_MESSAGE, QUALIFIED, QUALIFIED_EXAMPLES);
            return vec![format!(
                "a qualified name {rule} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > DNS1123_LABEL_MAX {
        errors.push(format!("name part {}", too_long_message(DNS1123_LABEL_MAX)));
    }
    if !is_qualified(name) {
        let rule = regex_error(QUALIFIED_MESSAGE, QUALIFIED, QUALIFIED_EXAMPLES);
        errors.push(format!("name part {rule}"));
    }
    errors
}

/// What is wrong with `value` as the value of a label.
#[must_use]
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(value, LABEL_VALUE_MAX, &mut errors);
    if !value.is_empty() && !is_qualified(value) {
        errors.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// What is wrong with `value` as a key of a ConfigMap or a Secret.
#[must_use]
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(value, DNS1123_SUBDOMAIN_MAX, &mut errors);
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if value.is_empty() || !value.bytes().all(good) {
        errors.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match value {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if value.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// What is wrong with `value` as the name of an environment variable.
#[must_use]
pub fn env_name(value: &str) -> Vec<String> {
    let good = |c: char| c.is_ascii_graphic() && c != '=' || c == ' ';
    if value.is_empty() {
        vec!["environment variable name must be non-empty".to_owned()]
    } else if !value.chars().all(good) {
        vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
    } else {
        Vec::new()
    }
}

/// What is wrong with `value` as the name of a port (an IANA service name).
#[must_use]
pub fn port_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(value, 15, &mut errors);
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if value.is_empty() || !value.bytes().all(good) {
        errors.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// What is wrong with `value` as the number of a port.
#[must_use]
pub fn port_number(value: i64) -> Vec<String> {
    if (1..=65535).contains(&value) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

/// What is wrong with `value` as one segment of a URL, as every name must be one.
#[must_use]
pub fn path_segment(value: &str) -> Vec<String> {
    if matches!(value, "." | "..") {
        return vec![format!("may not be '{value}'")];
    }
    let found = ['/', '%'].iter().filter(|c| value.contains(**c));
    found.map(|c| format!("may not contain '{c}'")).collect()
}

/// Characters of a generated name: no vowels, and no digits that read as one,
/// so that no word comes out.
///
/// Source: `k8s.io/apimachinery/pkg/util/rand`.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Characters appended to `generateName`.
const SUFFIX_LENGTH: usize = 5;

/// The name for an object with `generateName: prefix`.
///
/// Five characters are appended; a prefix longer than 58 is cut. `random` is
/// any 64 random bits; the caller tries again with others when the name is
/// taken.
#[must_use]
pub fn generate_name(prefix: &str, random: u64) -> String {
    let mut name = prefix.to_owned();
    let mut end = name.len().min(DNS1123_LABEL_MAX - SUFFIX_LENGTH);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name.push_str(&safe_suffix(random, SUFFIX_LENGTH));
    name
}

/// `length` characters (at most 13) of the generated-name alphabet from `random`.
///
/// Also names a ReplicaSet after the hash of its template.
#[must_use]
pub fn safe_suffix(random: u64, length: usize) -> String {
    let n_letters = SUFFIX_ALPHABET.len() as u64;
    let mut rest = random;
    let letters = (0..length.min(13)).map(|_| {
        let letter = usize::try_from(rest % n_letters).expect("less than 27");
        rest /= n_letters;
        char::from(SUFFIX_ALPHABET[letter])
    });
    letters.collect()
}

fn is_dns_label(value: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    value.bytes().all(|b| good(b) || b == b'-')
        && value.bytes().next().is_some_and(good)
        && value.bytes().last().is_some_and(good)
}

fn is_qualified(value: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric();
    value.bytes().all(|b| good(b) || matches!(b, b'-' | b'_' | b'.'))
        && value.bytes().next().is_some_and(good)
        && value.bytes().last().is_some_and(good)
}

fn too_long(value: &str, max: usize, errors: &mut Vec<String>) {
    if value.len() > max {
        errors.push(too_long_message(max));
    }
}

fn too_long_message(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// Kubernetes' wording of "does not match", the doubled blank included.
fn regex_error(message: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{regex}')", examples.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subdomains_and_labels_follow_rfc_1123() {
        for good in ["a", "a.b-c.1", "0"] {
            assert_eq!(dns1123_subdomain(good), Vec::<String>::new(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", ".a", "a_b", "ä"] {
            assert_eq!(dns1123_subdomain(bad).len(), 1, "{bad}");
        }
        assert!(dns1123_label(&"a".repeat(63)).is_empty());
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
        assert_eq!(
            dns1123_label("a.b")[0],
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
             and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', \
             regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
        );
        assert!(dns1035_label("a1").is_empty());
        assert_eq!(dns1035_label("1a").len(), 1);
    }

    #[test]
    fn qualified_names_have_an_optional_prefix() {
        for good in ["a", "A_b.c", "example.com/x", "kubernetes.io/metadata.name"] {
            assert_eq!(qualified_name(good), Vec::<String>::new(), "{good}");
        }
        assert_eq!(qualified_name("").len(), 2);
        assert_eq!(qualified_name("/x"), ["prefix part must be non-empty"]);
        assert!(qualified_name("a/b/c")[0].starts_with("a qualified name must consist"));
        assert!(qualified_name("Ex/b")[0].starts_with("prefix part a lowercase RFC 1123"));
        assert!(label_value("").is_empty());
        assert_eq!(label_value("-").len(), 1);
    }

    #[test]
    fn keys_ports_and_variables() {
        assert!(config_map_key("a_B-.9").is_empty());
        assert_eq!(config_map_key(".."), ["must not be '..'"]);
        assert_eq!(config_map_key("..a"), ["must not start with '..'"]);
        assert_eq!(config_map_key("a/b").len(), 1);
        assert!(port_name("http-1").is_empty());
        assert_eq!(port_name("80"), ["must contain at least one letter (a-z)"]);
        assert_eq!(port_name("a-very-long-port-name"), ["must be no more than 15 characters"]);
        assert!(port_number(65535).is_empty());
        assert_eq!(port_number(0).len(), 1);
        assert!(env_name("A.b-1").is_empty());
        assert_eq!(env_name("A=1").len(), 1);
        assert_eq!(path_segment("a/b%"), ["may not contain '/'", "may not contain '%'"]);
    }

    #[test]
    fn generated_names_fit_a_label_and_use_the_alphabet() {
        let name = generate_name("web-", 0);
        assert_eq!(name, "web-bbbbb");
        assert_eq!(generate_name(&"x".repeat(100), u64::MAX).len(), 63);
        assert_eq!(generate_name(&"ä".repeat(40), 1).len(), 63);
        assert_eq!(safe_suffix(u64::MAX, 13).len(), 13);
        assert!(dns1123_label(&generate_name("a-", 0x1234_5678_9abc)).is_empty());
    }
}
