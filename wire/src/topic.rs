//! The MQTT topics, and who writes each.
//!
//! Root `pinnace/1`. Nothing is retained, sessions are clean, QoS 2 is not used.
//!
//! | topic | writer | QoS | payload |
//! | --- | --- | --- | --- |
//! | `pinnace/1/n/<node>/d/s` | master | 1 | the set: snapshot, delta, part, up-to-date |
//! | `pinnace/1/n/<node>/d/c` | master | 1 | commands, report acknowledgements, tokens |
//! | `pinnace/1/n/<node>/u/h` | agent | 0 | heartbeat |
//! | `pinnace/1/n/<node>/u/r` | agent | 1 | hello, applied, part acknowledgements, reports, wanted tokens |
//! | `pinnace/1/n/<node>/u/w` | agent (will) | 1 | gone |
//! | `pinnace/1/boot/<client>/req` | joining board | 1 | join request |
//! | `pinnace/1/boot/<client>/rsp` | master | 1 | join response |
//!
//! `<node>` is a DNS label of at most 63 characters, so it never holds what
//! MQTT gives a meaning to (`/`, `+`, `#`).
//!
//! A node publishes only below its own `u/` and subscribes only below its own
//! `d/`; a board without a certificate reaches only the two topics of its own
//! client id. [`Role`] is that rule.

use std::fmt;

/// The root of every topic; the number is the protocol's major version.
pub const ROOT: &str = "pinnace/1";
/// Most characters of a node's name.
pub const NODE_NAME_MAX: usize = 63;
/// Fewest and most characters of the client id of a board that joins.
pub const BOOT_CLIENT: std::ops::RangeInclusive<usize> = 8..=64;

/// A topic of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic<'a> {
    /// One of a node's own topics.
    Node {
        /// The node's name.
        node: &'a str,
        /// Which of them.
        channel: Channel,
    },
    /// `boot/<client>/req`
    JoinRequest {
        /// The MQTT client id of the board.
        client: &'a str,
    },
    /// `boot/<client>/rsp`
    JoinResponse {
        /// The MQTT client id of the board.
        client: &'a str,
    },
}

/// Which of a node's topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// `d/s`
    Set,
    /// `d/c`
    Command,
    /// `u/h`
    Heartbeat,
    /// `u/r`
    Report,
    /// `u/w`
    Will,
}

impl Channel {
    const ALL: [Channel; 5] =
        [Channel::Set, Channel::Command, Channel::Heartbeat, Channel::Report, Channel::Will];

    /// The end of the topic, such as `d/s`.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Channel::Set => "d/s",
            Channel::Command => "d/c",
            Channel::Heartbeat => "u/h",
            Channel::Report => "u/r",
            Channel::Will => "u/w",
        }
    }

    /// The MQTT quality of service that messages on this topic use, 0 or 1.
    #[must_use]
    pub const fn qos(self) -> u8 {
        match self {
            Channel::Heartbeat => 0,
            _ => 1,
        }
    }

    /// The full topic of `node`.
    #[must_use]
    pub fn of(self, node: &str) -> String {
        Topic::Node { node, channel: self }.to_string()
    }
}

impl<'a> Topic<'a> {
    /// Reads a topic; `None` for one that is not of this protocol.
    #[must_use]
    pub fn parse(topic: &'a str) -> Option<Self> {
        let rest = topic.strip_prefix(ROOT)?.strip_prefix('/')?;
        if let Some(rest) = rest.strip_prefix("n/") {
            let (node, suffix) = rest.split_once('/')?;
            check_node_name(node).ok()?;
            let channel = Channel::ALL.into_iter().find(|channel| channel.suffix() == suffix)?;
            return Some(Topic::Node { node, channel });
        }
        let (client, suffix) = rest.strip_prefix("boot/")?.split_once('/')?;
        if !is_boot_client(client) {
            return None;
        }
        match suffix {
            "req" => Some(Topic::JoinRequest { client }),
            "rsp" => Some(Topic::JoinResponse { client }),
            _ => None,
        }
    }
}

impl fmt::Display for Topic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Topic::Node { node, channel } => write!(f, "{ROOT}/n/{node}/{}", channel.suffix()),
            Topic::JoinRequest { client } => write!(f, "{ROOT}/boot/{client}/req"),
            Topic::JoinResponse { client } => write!(f, "{ROOT}/boot/{client}/rsp"),
        }
    }
}

/// The one filter a node subscribes to: everything the master sends it.
#[must_use]
pub fn down_filter(node: &str) -> String {
    format!("{ROOT}/n/{node}/d/#")
}

/// Who is at the other end of a connection, and so which topics are its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A node, by the name in its certificate.
    Node(String),
    /// A board without a certificate, by its client id.
    Boot(String),
}

impl Role {
    /// Whether a message on `topic` is taken.
    #[must_use]
    pub fn may_publish(&self, topic: &str) -> bool {
        match self {
            Role::Node(node) => {
                below(topic, node, "/u/").is_some_and(|rest| !rest.is_empty() && is_plain(rest))
            }
            Role::Boot(client) => topic == Topic::JoinRequest { client }.to_string(),
        }
    }

    /// Whether a subscription to `filter` is granted. A wildcard is fine where it
    /// cannot leave the node's own topics.
    #[must_use]
    pub fn may_subscribe(&self, filter: &str) -> bool {
        match self {
            Role::Node(node) => below(filter, node, "/d/").is_some_and(|rest| !rest.is_empty()),
            Role::Boot(client) => filter == Topic::JoinResponse { client }.to_string(),
        }
    }
}

/// What follows `pinnace/1/n/<node><branch>`.
fn below<'a>(topic: &'a str, node: &str, branch: &str) -> Option<&'a str> {
    topic.strip_prefix(ROOT)?.strip_prefix("/n/")?.strip_prefix(node)?.strip_prefix(branch)
}

fn is_plain(topic: &str) -> bool {
    !topic.contains(['+', '#', '\0'])
}

/// A client id that a joining board may use: letters, digits, `-` and `_`.
#[must_use]
pub fn is_boot_client(client: &str) -> bool {
    BOOT_CLIENT.contains(&client.len())
        && client.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Why a text cannot be a node's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeNameError {
    /// Empty, or too long.
    #[error("node name \"{0}\": must have 1 to 63 characters")]
    Length(String),
    /// A character that a DNS label has not.
    #[error(
        "node name \"{0}\": must consist of lower case letters, digits and '-', and start and end with a letter or digit"
    )]
    Character(String),
}

/// Checks that `name` is a DNS label of at most 63 characters.
///
/// # Errors
/// Says which rule it breaks; the name is cut in the message.
pub fn check_node_name(name: &str) -> Result<(), NodeNameError> {
    let shown = || name.chars().take(80).collect();
    if name.is_empty() || name.len() > NODE_NAME_MAX {
        return Err(NodeNameError::Length(shown()));
    }
    let bytes = name.as_bytes();
    let ends = [bytes[0], bytes[bytes.len() - 1]];
    let good = bytes
        .iter()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
        && !ends.contains(&b'-');
    if good { Ok(()) } else { Err(NodeNameError::Character(shown())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_reads_back_as_it_was_written() {
        for channel in Channel::ALL {
            let text = channel.of("board-7");
            assert_eq!(
                Topic::parse(&text),
                Some(Topic::Node { node: "board-7", channel }),
                "{text}"
            );
        }
        for topic in
            [Topic::JoinRequest { client: "a1b2c3d4" }, Topic::JoinResponse { client: "a1b2c3d4" }]
        {
            assert_eq!(Topic::parse(&topic.to_string()), Some(topic));
        }
    }

    #[test]
    fn what_is_not_a_topic_of_ours_is_none() {
        for text in [
            "",
            "pinnace/1",
            "pinnace/2/n/a/u/h",
            "pinnace/1/n/a",
            "pinnace/1/n/a/u/x",
            "pinnace/1/n//u/h",
            "pinnace/1/n/A/u/h",
            "pinnace/1/n/+/u/h",
            "pinnace/1/n/a/u/h/",
            "pinnace/1/boot/short/req",
            "pinnace/1/boot/a/b/req",
            "pinnace/1/boot/abcdefgh/xxx",
            "/pinnace/1/n/a/u/h",
            "$SYS/broker/uptime",
        ] {
            assert_eq!(Topic::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_node_reaches_only_its_own_topics() {
        let node = Role::Node("a".into());
        for (topic, publish, subscribe) in [
            ("pinnace/1/n/a/u/h", true, false),
            ("pinnace/1/n/a/u/x/7", true, false),
            ("pinnace/1/n/a/u/", false, false),
            ("pinnace/1/n/a/u/+", false, false),
            ("pinnace/1/n/a/d/s", false, true),
            ("pinnace/1/n/a/d/#", false, true),
            ("pinnace/1/n/ab/d/#", false, false),
            ("pinnace/1/n/ab/u/h", false, false),
            ("pinnace/1/n/b/u/h", false, false),
            ("pinnace/1/n/b/d/s", false, false),
            ("pinnace/1/n/+/d/#", false, false),
            ("pinnace/1/#", false, false),
            ("#", false, false),
            ("$share/g/pinnace/1/n/a/d/#", false, false),
            ("pinnace/1/boot/abcdefgh/req", false, false),
        ] {
            assert_eq!(node.may_publish(topic), publish, "publish {topic}");
            assert_eq!(node.may_subscribe(topic), subscribe, "subscribe {topic}");
        }
    }

    #[test]
    fn a_board_without_a_certificate_reaches_only_its_two_topics() {
        let boot = Role::Boot("abcdefgh".into());
        assert!(boot.may_publish("pinnace/1/boot/abcdefgh/req"));
        assert!(boot.may_subscribe("pinnace/1/boot/abcdefgh/rsp"));
        for topic in [
            "pinnace/1/boot/abcdefgh/rsp",
            "pinnace/1/boot/other123/req",
            "pinnace/1/boot/+/req",
            "pinnace/1/n/abcdefgh/u/r",
        ] {
            assert!(!boot.may_publish(topic), "{topic}");
        }
        for filter in ["pinnace/1/boot/+/rsp", "pinnace/1/boot/other123/rsp", "#"] {
            assert!(!boot.may_subscribe(filter), "{filter}");
        }
    }

    #[test]
    fn node_names_are_dns_labels() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "board-7", longest.as_str()] {
            assert_eq!(check_node_name(good), Ok(()), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a+", "#", "ä", "a b", too_long.as_str()] {
            assert!(check_node_name(bad).is_err(), "{bad}");
        }
    }
}
