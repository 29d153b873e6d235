//! Tokens of a pod's ServiceAccount, as its projected volumes show them.

use std::collections::BTreeMap;

/// Tokens of one pod, by audience (empty for the API server) and by how many
/// seconds they were asked for.
pub type PodTokens = BTreeMap<(String, u32), String>;
