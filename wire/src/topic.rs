//! The MQTT topics, and who writes each.
//!
//! Root `pinnace/1`. Nothing is retained, sessions are clean, QoS 2 is not used.
//!
//! | topic | writer | QoS | payload |
//! | --- | --- | --- | --- |
//! | `pinnace/1/n/<node>/d/s` | master | 1 | the set: snapshot, delta, part, up-to-date |
//! | `pinnace/1/n/<node>/d/c` | master | 1 | commands, report acknowledgements |
//! | `pinnace/1/n/<node>/u/h` | agent | 0 | heartbeat |
//! | `pinnace/1/n/<node>/u/r` | agent | 1 | hello, applied, reports |
//! | `pinnace/1/n/<node>/u/w` | agent (will) | 1 | gone |
//! | `pinnace/1/boot/<client>/req` | joining board | 1 | join request |
//! | `pinnace/1/boot/<client>/rsp` | master | 1 | join response |
//!
//! `<node>` is a DNS label of at most 63 characters, so it never holds what
//! MQTT gives a meaning to (`/`, `+`, `#`).
