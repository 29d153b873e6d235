//! When a pod must leave a tainted node. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use scheduler::{Taint, Toleration};

use super::plan::evicts;

/// Time until a pod with these tolerations must leave; zero for now, `None` for never.
///
/// `tainted` is how long the node has had each of its `NoExecute` taints. A
/// taint that is not tolerated ends it at once; else the shortest
/// `tolerationSeconds` counts, and none of them is for ever.
#[must_use]
pub fn evict_in(
    tolerations: &[Toleration],
    taints: &[Taint],
    tainted: &HashMap<Arc<str>, Duration>,
) -> Option<Duration> {
    let mut next: Option<Duration> = None;
    for taint in taints.iter().filter(|taint| evicts(taint)) {
        let covering: Vec<&Toleration> =
            tolerations.iter().filter(|toleration| toleration.covers(taint)).collect();
        if covering.is_empty() {
            return Some(Duration::ZERO);
        }
        let shortest = covering.iter().filter_map(|toleration| toleration.seconds).min();
        let Some(seconds) = shortest else { continue };
        let allowed = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let had = tainted.get(&taint.key).copied().unwrap_or_default();
        let left = allowed.saturating_sub(had);
        next = Some(next.map_or(left, |next| next.min(left)));
    }
    next
}

#[cfg(test)]
mod tests {
    use scheduler::{Effect, TolerationOperator};

    use super::*;

    #[test]
    fn the_shortest_toleration_counts() {
        let taint = |key: &str, effect| Taint { key: key.into(), value: "".into(), effect };
        let tolerate = |key: &str, seconds| Toleration {
            key: key.into(),
            operator: TolerationOperator::Exists,
            value: "".into(),
            effect: None,
            seconds,
        };
        let taints = [
            taint("a", Effect::NoExecute),
            taint("b", Effect::NoExecute),
            taint("c", Effect::NoSchedule),
        ];
        let had: HashMap<Arc<str>, Duration> =
            [("a".into(), Duration::from_secs(10)), ("b".into(), Duration::ZERO)].into();
        let seconds = Duration::from_secs;
        let rows: [(&[Toleration], Option<Duration>); 6] = [
            (&[], Some(Duration::ZERO)),
            (&[tolerate("a", None)], Some(Duration::ZERO)),
            (&[tolerate("a", None), tolerate("b", None)], None),
            (&[tolerate("a", Some(300)), tolerate("b", Some(400))], Some(seconds(290))),
            (&[tolerate("a", Some(300)), tolerate("b", Some(20))], Some(seconds(20))),
            (&[tolerate("", Some(5)), tolerate("a", None)], Some(Duration::ZERO)),
        ];
        for (tolerations, expected) in rows {
            assert_eq!(evict_in(tolerations, &taints, &had), expected, "{tolerations:?}");
        }
    }
}
