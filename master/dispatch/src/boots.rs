//! Which start ("boot") of a node's agent is the current one.
//!
//! Every start of an agent has a random id, and every hello of a start is
//! numbered. A start that was replaced never speaks anew: what still arrives of
//! it is late. If it does speak anew, and then the other one again, two agents
//! use one identity (a cloned SD card), and neither is believed.

use std::collections::VecDeque;
use std::time::Duration;

use wire::Uid;
use wire::node::HelloV1;

/// Replaced starts remembered, so that what arrives late of them is known.
const PAST_MAX: usize = 8;
/// Two agents that come back in turn within this time use one identity.
const FLIP_WINDOW: Duration = Duration::from_secs(600);

/// What a hello is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The current start, saying something new.
    Current,
    /// A start not heard of before, or one that takes its place again.
    New,
    /// A late copy.
    Late,
    /// Two agents use this identity.
    Duplicate {
        /// Their boot ids.
        boots: [Uid; 2],
    },
}

/// The starts of one node's agent, as this run of the master has heard of them.
#[derive(Debug, Default)]
pub struct Boots {
    current: Option<Boot>,
    past: VecDeque<Boot>,
    /// A replaced start that spoke anew, and when.
    returned: Option<(Uid, Duration)>,
}

#[derive(Clone, Copy, Debug)]
struct Boot {
    id: Uid,
    hello_seq: u32,
}

impl Boots {
    /// The current start.
    #[must_use]
    pub fn current(&self) -> Option<Uid> {
        self.current.map(|boot| boot.id)
    }

    /// Whether `boot_id` was replaced by another.
    #[must_use]
    pub fn is_past(&self, boot_id: &Uid) -> bool {
        self.past.iter().any(|boot| boot.id == *boot_id)
    }

    /// Takes a hello into account.
    pub fn hear(&mut self, now: Duration, hello: &HelloV1) -> Heard {
        let heard = Boot { id: hello.boot_id, hello_seq: hello.hello_seq };
        if let Some(current) = &mut self.current
            && current.id == heard.id
        {
            if heard.hello_seq <= current.hello_seq {
                return Heard::Late;
            }
            current.hello_seq = heard.hello_seq;
            return Heard::Current;
        }
        let past = self.past.iter().position(|boot| boot.id == heard.id);
        let mut duplicate = None;
        if let Some(at) = past {
            if heard.hello_seq <= self.past[at].hello_seq {
                return Heard::Late;
            }
            self.past.remove(at);
            // One return may be a reordered hello of a start in between.
            if let Some((other, when)) = self.returned
                && other != heard.id
                && now.saturating_sub(when) < FLIP_WINDOW
            {
                duplicate = Some([other, heard.id]);
            }
            self.returned = Some((heard.id, now));
        }
        if let Some(replaced) = self.current.replace(heard) {
            self.past.push_back(replaced);
            if self.past.len() > PAST_MAX {
                self.past.pop_front();
            }
        }
        duplicate.map_or(Heard::New, |boots| Heard::Duplicate { boots })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(boots: &mut Boots, now_s: u64, id: u8, hello_seq: u32) -> Heard {
        let hello = crate::node::tests::hello(id, hello_seq, 0, 0);
        boots.hear(Duration::from_secs(now_s), &hello)
    }

    #[test]
    fn a_restart_replaces_and_its_late_messages_are_known() {
        let mut boots = Boots::default();
        assert_eq!(hear(&mut boots, 0, 1, 1), Heard::New);
        assert_eq!(hear(&mut boots, 1, 1, 2), Heard::Current);
        assert_eq!(hear(&mut boots, 1, 1, 2), Heard::Late);
        assert_eq!(hear(&mut boots, 2, 2, 1), Heard::New);
        assert_eq!(hear(&mut boots, 3, 1, 2), Heard::Late);
        assert_eq!(boots.current(), Some([2; 16]));
        assert!(boots.is_past(&[1; 16]) && !boots.is_past(&[2; 16]));
    }

    #[test]
    fn a_reordered_hello_between_two_starts_is_no_duplicate() {
        let mut boots = Boots::default();
        hear(&mut boots, 0, 1, 1);
        hear(&mut boots, 1, 3, 1);
        assert_eq!(hear(&mut boots, 2, 2, 1), Heard::New, "late, but how could one know");
        assert_eq!(hear(&mut boots, 3, 3, 2), Heard::New);
        assert_eq!(hear(&mut boots, 4, 3, 3), Heard::Current);
        assert_eq!(hear(&mut boots, 4, 2, 1), Heard::Late);
    }

    #[test]
    fn two_agents_in_turn_are_a_duplicate() {
        let mut boots = Boots::default();
        hear(&mut boots, 0, 1, 1);
        hear(&mut boots, 1, 2, 1);
        assert_eq!(hear(&mut boots, 2, 1, 2), Heard::New);
        assert_eq!(hear(&mut boots, 3, 2, 2), Heard::Duplicate { boots: [[1; 16], [2; 16]] });
        assert_eq!(hear(&mut boots, 4, 1, 3), Heard::Duplicate { boots: [[2; 16], [1; 16]] });
    }

    #[test]
    fn starts_that_come_back_after_long_are_no_duplicate() {
        let mut boots = Boots::default();
        hear(&mut boots, 0, 1, 1);
        hear(&mut boots, 1, 2, 1);
        assert_eq!(hear(&mut boots, 2, 1, 2), Heard::New);
        assert_eq!(hear(&mut boots, 3000, 2, 2), Heard::New);
    }
}
