//! Names of runs and pods on this machine.

use std::fmt::Write as _;

use wire::Uid;

/// Longest container id, in bytes.
const ID_BYTES_MAX: usize = 63;

/// A uid as Kubernetes writes it.
#[must_use]
pub fn uid_text(uid: &Uid) -> String {
    uuid::Uuid::from_bytes(*uid).hyphenated().to_string()
}

/// Reads what [`uid_text`] wrote.
#[must_use]
pub fn parse_uid(text: &str) -> Option<Uid> {
    uuid::Uuid::try_parse(text).ok().map(uuid::Uuid::into_bytes)
}

/// Names one run of one container: `<12 hex of the uid's hash>-<container>-<attempt>`,
/// at most 63 of `[a-z0-9-]`. A long name is cut; the hash covers all of it.
#[must_use]
pub fn container_id(pod: &Uid, container: &str, attempt: u32) -> String {
    let mut all = pod.to_vec();
    all.extend_from_slice(container.as_bytes());
    let prefix = hex(&ring::digest::digest(&ring::digest::SHA256, &all).as_ref()[..6]);
    let suffix = format!("-{attempt}");
    let room = ID_BYTES_MAX - prefix.len() - 1 - suffix.len();
    let name: String = container
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(room)
        .collect();
    format!("{prefix}-{name}{suffix}")
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_id_is_unique_and_fits_a_folder_name() {
        let long = "c".repeat(63);
        let longer = format!("{}d", "c".repeat(62));
        let ids: Vec<String> = [
            container_id(&[1; 16], "web", 0),
            container_id(&[1; 16], "web", 1),
            container_id(&[2; 16], "web", 0),
            container_id(&[1; 16], &long, u32::MAX),
            container_id(&[1; 16], &longer, u32::MAX),
        ]
        .into();
        let distinct: std::collections::BTreeSet<&String> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
        assert!(ids.iter().all(|id| runtime::dir::is_valid_id(id)), "{ids:?}");
    }

    #[test]
    fn a_uid_reads_back() {
        let uid = *b"0123456789abcdef";
        assert_eq!(parse_uid(&uid_text(&uid)), Some(uid));
        assert_eq!(parse_uid("x"), None);
    }
}
