//! Who asks: the result of authentication, and the names of the groups that
//! mean something here.

use std::collections::BTreeMap;

/// Members may do everything.
pub const MASTERS: &str = "system:masters";
/// Members are nodes, named by their user name.
pub const NODES: &str = "system:nodes";
/// Everybody who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everybody who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// What precedes a node's name in its user name.
pub const NODE_USER_PREFIX: &str = "system:node:";

/// Members are ServiceAccounts; with a colon and a namespace, those of it.
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// What precedes namespace, colon and name of a ServiceAccount in its user name.
pub(crate) const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// A user, as certificates and tokens name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User name, such as `admin` or `system:node:greenhouse-3`.
    pub user: String,
    /// Groups, [`AUTHENTICATED`] or [`UNAUTHENTICATED`] among them.
    pub groups: Vec<String>,
    /// Identity of the account over renames; empty where there is none.
    pub uid: String,
    /// What else its credential says: a token's pod and node.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A user that proved who it is.
    #[must_use]
    pub fn authenticated(user: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { user: user.to_owned(), groups, uid: String::new(), extra: BTreeMap::new() }
    }

    /// A part of the master itself, such as `pinnace:scheduler`; may do everything.
    #[must_use]
    pub fn master(component: &str) -> Self {
        Self::authenticated(component, &[MASTERS])
    }

    /// The node `name`.
    #[must_use]
    pub fn node(name: &str) -> Self {
        Self::authenticated(&format!("{NODE_USER_PREFIX}{name}"), &[NODES])
    }

    /// Somebody who did not say who they are.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            user: "system:anonymous".to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            uid: String::new(),
            extra: BTreeMap::new(),
        }
    }

    /// Whether `group` is among the groups.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Whether nobody is signed in.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.is_in(UNAUTHENTICATED)
    }

    /// The node's name, where this is a node.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        if !self.is_in(NODES) {
            return None;
        }
        self.user.strip_prefix(NODE_USER_PREFIX).filter(|name| !name.is_empty())
    }
}
