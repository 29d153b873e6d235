//! Which tokens of pods' ServiceAccounts to ask the master for, and when.
//!
//! ```text
//!  a pod of the set wants tokens ──► ask ──► answered ──► held ──► ask again, early
//!                                     ▲         │
//!                                     └─ 5 s … 60 s, a new connection, a problem
//! ```
//!
//! Every wait is counted from when the answer came, and the master says how long
//! a token is good from then, so no clock of the board matters. A token is asked
//! for anew when 70 to 80 % of its life are over (which of these, is drawn at the
//! start, so that a fleet does not ask at once), at the latest after a day; pods
//! whose turn comes soon are asked for with those whose turn is now. Nothing takes
//! a token away: one that expired while the link was down stays until it is back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use wire::Uid;
use wire::account::{PODS_MAX, PodTokensV1, TOKENS_OF_POD_MAX, TokensV1};
use wire::pod::PodV1;
use wire::set::{BodyV1, SnapshotV1};

use crate::tokens::{self, Found, Held, PodTokens, Table};

/// First wait for an answer, doubled to at most [`ASK_MAX`].
pub(super) const ASK_FIRST: Duration = Duration::from_secs(5);
/// Longest wait before a pod's tokens are asked for again.
pub(super) const ASK_MAX: Duration = Duration::from_secs(60);
/// A token is never older than this, however long it is good.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest reason for people, in bytes.
const PROBLEM_BYTES_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Tokens {
    pods: BTreeMap<Uid, Pod>,
    table: Table,
    /// After how many thousandths of its life a token is asked for anew.
    early: u32,
}

#[derive(Clone, Debug)]
struct Pod {
    /// When to ask (again).
    due: Duration,
    wait: Duration,
    /// Whether an answer is awaited.
    is_asked: bool,
}

impl Pod {
    fn new(due: Duration) -> Self {
        Self { due, wait: ASK_FIRST, is_asked: false }
    }
}

impl Tokens {
    /// Nothing is held. `boot_id` is random.
    pub(super) fn new(boot_id: &Uid) -> Self {
        let early = 700 + u32::from(boot_id[0]) * 100 / 255;
        Self { pods: BTreeMap::new(), table: Table::new(), early }
    }

    /// Takes what was kept, and the set that is on the disk; the time is that of the
    /// start, 0.
    pub(super) fn found(&mut self, found: &Found, set: Option<&SnapshotV1>) {
        self.table = found.iter().map(|(uid, (held, _))| (*uid, held.clone())).collect();
        let Some(set) = set else { return };
        self.set(set);
        for pod in pods(set) {
            // Where it is not known how old they are, or some are missing: at once.
            if let Some((held, Some(age))) = found.get(&pod.uid)
                && tokens::missing(pod, &held.tokens).is_none()
                && let Some(known) = self.pods.get_mut(&pod.uid)
            {
                known.due = refresh_after(held.lifetime_s, self.early).saturating_sub(*age);
            }
        }
    }

    /// Takes the newest set.
    pub(super) fn set(&mut self, set: &SnapshotV1) {
        let mut before = std::mem::take(&mut self.pods);
        self.pods = pods(set)
            .map(|pod| {
                let known = before.remove(&pod.uid);
                (pod.uid, known.unwrap_or_else(|| Pod::new(Duration::ZERO)))
            })
            .collect();
        let pods = &self.pods;
        self.table.retain(|uid, _| pods.contains_key(uid));
    }

    /// A new connection: what was asked for on the last one may never have arrived.
    pub(super) fn connected(&mut self, now: Duration) {
        for pod in self.pods.values_mut().filter(|pod| pod.is_asked) {
            pod.due = now;
            pod.wait = ASK_FIRST;
        }
    }

    /// The pods to ask for now, if any.
    pub(super) fn poll(&mut self, now: Duration) -> Option<Vec<Uid>> {
        if self.next_due().is_none_or(|due| now < due) {
            return None;
        }
        let soon = |uid: &Uid, pod: &Pod| {
            let lifetime_s = self.table.get(uid).map_or(0, |held| held.lifetime_s);
            let tenth = AGE_MAX.min(Duration::from_secs(lifetime_s.into())) / 10;
            !pod.is_asked && pod.due <= now + tenth
        };
        let mut due: Vec<(Duration, Uid)> = self
            .pods
            .iter()
            .filter(|(uid, pod)| pod.due <= now || soon(uid, pod))
            .map(|(uid, pod)| (pod.due, *uid))
            .collect();
        due.sort_unstable();
        due.truncate(PODS_MAX);
        let due: Vec<Uid> = due.into_iter().map(|(_, uid)| uid).collect();
        for uid in &due {
            let Some(pod) = self.pods.get_mut(uid) else { continue };
            pod.is_asked = true;
            pod.due = now + pod.wait;
            pod.wait = ASK_MAX.min(pod.wait * 2);
        }
        Some(due)
    }

    /// Takes an answer; whether what is held changed. What was not asked for, or
    /// was answered already, is left alone.
    pub(super) fn answered(&mut self, now: Duration, answer: TokensV1) -> bool {
        let mut changed = false;
        for answer in answer.pods {
            let Some(pod) = self.pods.get_mut(&answer.pod).filter(|pod| pod.is_asked) else {
                continue;
            };
            pod.is_asked = false;
            let held = self.table.entry(answer.pod).or_default();
            let new = held_of(&answer, held);
            if new.problem.is_empty() {
                *pod = Pod::new(now + refresh_after(new.lifetime_s, self.early));
            }
            changed |= *held != new;
            *held = new;
        }
        changed
    }

    /// All tokens are to be asked for anew.
    pub(super) fn refresh(&mut self, now: Duration) {
        for pod in self.pods.values_mut() {
            *pod = Pod::new(now);
        }
    }

    /// When to poll again at the latest.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.pods.values().map(|pod| pod.due).min()
    }

    /// What is held.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

/// The pods of a set that want tokens.
fn pods(set: &SnapshotV1) -> impl Iterator<Item = &PodV1> {
    set.items.iter().filter_map(|item| match &item.body {
        BodyV1::Pod(pod) if pod.ended.is_none() => {
            tokens::wanted(pod).next().is_some().then_some(&**pod)
        }
        _ => None,
    })
}

/// When to ask for a token again that is good for `lifetime_s` when it comes.
fn refresh_after(lifetime_s: u32, early: u32) -> Duration {
    let millis = u64::from(lifetime_s) * u64::from(early);
    // Never in a loop, whatever the master says.
    Duration::from_millis(millis).clamp(ASK_FIRST, AGE_MAX)
}

/// What is held after an answer: a problem leaves the tokens as they were.
fn held_of(answer: &PodTokensV1, before: &Held) -> Held {
    let n_tokens = answer.tokens.len();
    let problem = if !answer.problem.is_empty() {
        answer.problem.chars().take(PROBLEM_BYTES_MAX / 4).collect()
    } else if n_tokens == 0 || n_tokens > TOKENS_OF_POD_MAX {
        format!("the master gave {n_tokens} tokens")
    } else {
        String::new()
    };
    if !problem.is_empty() {
        return Held { problem, ..before.clone() };
    }
    let tokens = answer.tokens.iter();
    let tokens: PodTokens =
        tokens.map(|one| ((one.audience.clone(), one.expiration_s), one.token.clone())).collect();
    let lifetime_s = answer.tokens.iter().map(|one| one.lifetime_s).min().unwrap_or(0);
    Held { tokens: Arc::new(tokens), lifetime_s, problem }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::pods::tests::{container, pod};
    use wire::account::TokenV1;
    use wire::pod::{ProjectionV1, VolumeSourceV1, VolumeV1};
    use wire::set::ItemV1;

    fn with_token(uid: u8) -> PodV1 {
        let token = ProjectionV1::Token {
            audience: String::new(),
            expiration_s: 3607,
            path: "token".into(),
        };
        let source = VolumeSourceV1::Projected { sources: vec![token], default_mode: 0o644 };
        let mut pod = pod(vec![container("c")]);
        pod.uid = [uid; 16];
        pod.volumes = vec![VolumeV1 { name: "api".into(), source }];
        pod
    }

    fn set_of(pods: Vec<PodV1>) -> SnapshotV1 {
        let item =
            |pod: PodV1| ItemV1 { uid: pod.uid, generation: 1, body: BodyV1::Pod(Box::new(pod)) };
        SnapshotV1 { epoch: 1, revision: 1, items: pods.into_iter().map(item).collect() }
    }

    fn set(uids: impl IntoIterator<Item = u8>) -> SnapshotV1 {
        set_of(uids.into_iter().map(with_token).collect())
    }

    fn answer(uid: u8, token: &str) -> TokensV1 {
        let tokens = vec![TokenV1 {
            audience: String::new(),
            expiration_s: 3607,
            lifetime_s: 3607,
            token: token.into(),
        }];
        let pod = PodTokensV1 { pod: [uid; 16], tokens, problem: String::new() };
        TokensV1 { boot_id: [0; 16], pods: vec![pod] }
    }

    fn refusal(uid: u8) -> TokensV1 {
        let problem = "serviceaccounts \"x\" not found".to_owned();
        let pod = PodTokensV1 { pod: [uid; 16], tokens: vec![], problem };
        TokensV1 { boot_id: [0; 16], pods: vec![pod] }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// When which pods are asked for, in the seconds until `end`.
    fn asked(tokens: &mut Tokens, from: u64, end: u64) -> String {
        let mut text = String::new();
        for second in from..=end {
            if let Some(pods) = tokens.poll(at(second)) {
                let pods: Vec<u8> = pods.iter().map(|uid| uid[0]).collect();
                write!(text, "{second}:{pods:?} ").unwrap();
            }
        }
        text.trim_end().to_owned()
    }

    #[test]
    fn what_is_not_answered_is_asked_for_again_and_what_is_held_only_in_time() {
        let mut tokens = Tokens::new(&[255; 16]);
        tokens.set(&set([1, 2]));
        assert_eq!(
            asked(&mut tokens, 0, 200),
            "0:[1, 2] 5:[1, 2] 15:[1, 2] 35:[1, 2] 75:[1, 2] 135:[1, 2] 195:[1, 2]"
        );
        // The question or its answer was lost with the connection.
        tokens.connected(at(201));
        assert_eq!(asked(&mut tokens, 201, 203), "201:[1, 2]");
        assert!(tokens.answered(at(203), answer(1, "a")));
        assert!(!tokens.answered(at(203), answer(1, "late")), "nobody asked for it any more");
        assert!(!tokens.answered(at(203), answer(9, "strange")), "a pod of somebody else");
        assert!(tokens.answered(at(204), refusal(2)));
        assert_eq!(tokens.table()[&[1; 16]].tokens.values().next().unwrap(), "a");
        assert_eq!(tokens.table()[&[2; 16]].problem, "serviceaccounts \"x\" not found");
        // One is held for 80 % of 3607 s, the other asked for once a minute: the two
        // come together when the time of the first is near.
        let text = asked(&mut tokens, 204, 3400);
        assert!(text.starts_with("206:[2] 216:[2] 236:[2] 276:[2] 336:[2]"), "{text}");
        assert!(text.contains(" 2676:[2] 2736:[2, 1] 2741:[1]"), "{text}");
        // A new connection asks for nothing that is held.
        assert!(tokens.answered(at(3400), answer(1, "b")));
        assert!(tokens.answered(at(3400), answer(2, "c")));
        assert!(tokens.table()[&[2; 16]].problem.is_empty());
        tokens.connected(at(3401));
        assert_eq!(asked(&mut tokens, 3401, 3401 + 2000), "");
    }

    #[test]
    fn a_refusal_and_silence_leave_the_token_that_is_there() {
        let mut tokens = Tokens::new(&[0; 16]);
        tokens.set(&set([1]));
        tokens.poll(at(0)).unwrap();
        tokens.answered(at(1), answer(1, "a"));
        // The link is down for a week; then the account is gone.
        tokens.connected(at(604_800));
        tokens.poll(at(604_800)).unwrap();
        assert!(tokens.answered(at(604_801), refusal(1)));
        let held = &tokens.table()[&[1; 16]];
        assert_eq!((held.tokens.len(), held.problem.is_empty()), (1, false));
        tokens.poll(at(604_900)).unwrap();
        let empty = PodTokensV1 { pod: [1; 16], tokens: vec![], problem: String::new() };
        tokens.answered(at(604_901), TokensV1 { boot_id: [0; 16], pods: vec![empty] });
        assert_eq!(tokens.table()[&[1; 16]].tokens.len(), 1);
        assert_eq!(tokens.table()[&[1; 16]].problem, "the master gave 0 tokens");
    }

    #[test]
    fn pods_whose_turn_is_near_are_asked_for_together_and_never_too_many_at_once() {
        let mut tokens = Tokens::new(&[255; 16]);
        tokens.set(&set([1]));
        tokens.poll(at(0)).unwrap();
        tokens.answered(at(0), answer(1, "a"));
        tokens.set(&set([1, 2]));
        assert_eq!(asked(&mut tokens, 300, 300), "300:[2]");
        tokens.answered(at(300), answer(2, "a"));
        assert_eq!(asked(&mut tokens, 301, 2890), "2886:[1, 2]", "80 % of 3607 s");

        let mut tokens = Tokens::new(&[255; 16]);
        tokens.set(&set(0..=200));
        let mut n_asked = Vec::new();
        while let Some(pods) = tokens.poll(at(0)) {
            n_asked.push(pods.len());
        }
        assert_eq!(n_asked, [64, 64, 64, 9]);
    }

    #[test]
    fn pods_that_go_or_are_over_are_forgotten_and_a_jump_of_the_clock_asks_for_all() {
        let mut tokens = Tokens::new(&[255; 16]);
        tokens.set(&set([1, 2, 3]));
        tokens.poll(at(0)).unwrap();
        for uid in 1..=3 {
            tokens.answered(at(0), answer(uid, "a"));
        }
        let mut over = with_token(3);
        over.ended = Some(wire::status::PhaseV1::Succeeded);
        let mut without = with_token(4);
        without.volumes.clear();
        tokens.set(&set_of(vec![with_token(1), over, without]));
        assert_eq!(tokens.table().keys().collect::<Vec<_>>(), [&[1; 16]]);
        assert_eq!(asked(&mut tokens, 1, 100), "");
        tokens.refresh(at(101));
        assert_eq!(asked(&mut tokens, 101, 101), "101:[1]");
        assert!(tokens.answered(at(101), answer(1, "b")));
    }

    #[test]
    fn what_was_kept_is_asked_for_when_it_is_old_or_its_age_is_not_known() {
        let held = |lifetime_s| {
            let tokens = BTreeMap::from([((String::new(), 3607), "t".to_owned())]);
            Held { tokens: Arc::new(tokens), lifetime_s, problem: String::new() }
        };
        let incomplete = Held { tokens: Arc::default(), ..held(3607) };
        let found = Found::from([
            ([1; 16], (held(3607), Some(at(1000)))),
            ([2; 16], (held(3607), None)),
            ([3; 16], (held(3607), Some(at(5000)))),
            ([4; 16], (incomplete, Some(at(0)))),
            // Good for a year, and a day old at most.
            ([5; 16], (held(31_536_000), Some(at(10_000)))),
            ([6; 16], (held(3607), Some(at(0)))),
        ]);
        let mut tokens = Tokens::new(&[255; 16]);
        tokens.found(&found, Some(&set(1..=5)));
        assert_eq!(asked(&mut tokens, 0, 0), "0:[2, 3, 4]");
        for uid in 2..=4 {
            tokens.answered(at(1), answer(uid, "n"));
        }
        assert_eq!(asked(&mut tokens, 1, 1700), "");
        assert_eq!(asked(&mut tokens, 1701, 1890), "1886:[1]");
        tokens.answered(at(1890), answer(1, "n"));
        assert!(!tokens.table().contains_key(&[6; 16]), "it is in no set");
    }
}
