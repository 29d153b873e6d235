//! On which nodes a pod finds the volumes its claims ask for.
//!
//! A claim that is bound keeps the pod where its volume is. One that waits for
//! its first pod is bound to what the chosen node has: the smallest volume that
//! fits, or a new one. Which volumes fit a claim is the caller's to know; here
//! they only have a place.

use std::sync::Arc;

use crate::filter::Rejection;
use crate::node::{Affinity, Node};

/// The claims of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Where the volumes are that are bound already; all must be reached.
    pub bound: Vec<Affinity>,
    /// Claims that wait for a node; the smallest first, so that it takes the
    /// smallest volume.
    pub unbound: Vec<Unbound>,
}

/// A claim that gets its volume with the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unbound {
    /// The node that was chosen before, where a volume is being made.
    pub selected: Option<Arc<str>>,
    /// Volumes that fit, the best first.
    pub candidates: Vec<Candidate>,
    /// Where a volume can be made for it; `None` for nowhere.
    pub provision: Option<Affinity>,
}

/// A volume that fits a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The volume's name.
    pub volume: Arc<str>,
    /// Where it is.
    pub affinity: Affinity,
}

/// What an unbound claim gets on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This volume.
    Volume(Arc<str>),
    /// A volume made there.
    Provision,
}

impl Claims {
    /// What each of the unbound claims gets on `node`, in their order.
    ///
    /// # Errors
    /// Why the pod cannot run there.
    pub fn choose(&self, node: &Node) -> Result<Vec<Choice>, Rejection> {
        if !self.bound.iter().all(|affinity| node.meets(affinity)) {
            return Err(Rejection::VolumeAffinity);
        }
        let mut taken: Vec<&Arc<str>> = Vec::new();
        let mut choices = Vec::with_capacity(self.unbound.len());
        for claim in &self.unbound {
            if claim.selected.as_ref().is_some_and(|selected| *selected != node.name) {
                return Err(Rejection::NoVolumeToBind);
            }
            let here =
                |one: &&Candidate| node.meets(&one.affinity) && !taken.contains(&&one.volume);
            if let Some(found) = claim.candidates.iter().find(here) {
                taken.push(&found.volume);
                choices.push(Choice::Volume(Arc::clone(&found.volume)));
            } else if claim.provision.as_ref().is_some_and(|where_to| node.meets(where_to)) {
                choices.push(Choice::Provision);
            } else {
                return Err(Rejection::NoVolumeToBind);
            }
        }
        Ok(choices)
    }
}

#[cfg(test)]
mod tests {
    use api::selector::{Operator, Requirement};

    use super::*;

    fn on(nodes: &[&str]) -> Affinity {
        let values = nodes.iter().map(|node| (*node).to_owned()).collect();
        vec![vec![Requirement { key: "host".to_owned(), operator: Operator::In, values }]]
    }

    fn node(name: &str) -> Node {
        Node { name: name.into(), labels: vec![("host".into(), name.into())], ..Node::default() }
    }

    fn unbound(volumes: &[(&str, &str)], provision: Option<Affinity>) -> Unbound {
        let candidate = |(volume, host): &(&str, &str)| Candidate {
            volume: (*volume).into(),
            affinity: on(&[host]),
        };
        Unbound { selected: None, candidates: volumes.iter().map(candidate).collect(), provision }
    }

    fn check(claims: &Claims, expected: &[(&str, Result<&[&str], Rejection>)]) {
        for (name, expected) in expected {
            let found = claims.choose(&node(name)).map(|choices| {
                choices
                    .iter()
                    .map(|choice| match choice {
                        Choice::Volume(volume) => volume.to_string(),
                        Choice::Provision => "new".to_owned(),
                    })
                    .collect::<Vec<_>>()
            });
            let expected =
                expected.clone().map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn bound_claims_keep_a_pod_where_its_volumes_are() {
        let claims = Claims { bound: vec![on(&["a", "b"]), on(&["b"])], unbound: vec![] };
        check(&claims, &[("a", Err(Rejection::VolumeAffinity)), ("b", Ok(&[]))]);
        check(&Claims::default(), &[("a", Ok(&[]))]);
    }

    #[test]
    fn no_volume_is_given_to_two_claims_of_a_pod() {
        let claim = || unbound(&[("small", "a"), ("large", "a"), ("other", "b")], None);
        let claims = Claims { bound: vec![], unbound: vec![claim(), claim()] };
        check(&claims, &[("a", Ok(&["small", "large"])), ("b", Err(Rejection::NoVolumeToBind))]);
    }

    #[test]
    fn what_no_volume_fits_is_made_where_that_may_be() {
        let claims =
            Claims { bound: vec![], unbound: vec![unbound(&[("v", "a")], Some(on(&["a", "b"])))] };
        check(
            &claims,
            &[("a", Ok(&["v"])), ("b", Ok(&["new"])), ("c", Err(Rejection::NoVolumeToBind))],
        );
    }

    #[test]
    fn a_node_that_was_chosen_stays() {
        let mut claim = unbound(&[], Some(Affinity::new()));
        claim.selected = Some("b".into());
        let claims = Claims { bound: vec![], unbound: vec![claim] };
        check(&claims, &[("a", Err(Rejection::NoVolumeToBind)), ("b", Ok(&["new"]))]);
    }
}
