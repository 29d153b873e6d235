//! Answers of other name servers, kept for as long as they are true, and longer
//! for the time when no server can be asked.
//!
//! Bounded in entries and in bytes; what was used longest ago goes first. Pure:
//! the time comes with the call.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::message::{
    self, HEADER_BYTES, Query, RawRecord, Rcode, Records, Section, flag, kind, opt, u16_at,
};
use super::name::Name;

/// Longest that an answer counts as true, whatever it says of itself.
const TTL_MAX: Duration = Duration::from_secs(3600);

/// Longest that "there is none" counts as true.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(300);

/// How long an answer may serve while no server can be asked (RFC 8767 says one
/// to three days).
const STALE_MAX: Duration = Duration::from_secs(3 * 24 * 3600);

/// What the client is told of an answer that has expired (RFC 8767, 4).
const STALE_TTL_S: u32 = 30;

/// What an entry takes beside its key and its message.
const ENTRY_BYTES: usize = 200;

/// What is asked of another server, and with which wishes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) kind: u16,
    pub(super) dnssec_ok: bool,
    pub(super) checking_disabled: bool,
}

impl Question {
    /// The question in what a client asks.
    pub(super) fn of(query: &Query<'_>) -> Self {
        Self {
            name: query.name.clone(),
            kind: query.kind,
            dnssec_ok: query.edns.is_some_and(|edns| edns.dnssec_ok),
            checking_disabled: query.flags & flag::CHECKING_DISABLED != 0,
        }
    }

    fn end(&self) -> usize {
        HEADER_BYTES + self.name.as_bytes().len() + 4
    }
}

/// What a server answered, checked, without its OPT record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    message: Vec<u8>,
    /// Where the question ends.
    question_end: usize,
    /// Where each time to live is.
    ttls_at: Vec<u16>,
    /// For how long it is true; `None` where it may not be kept.
    ttl: Option<Duration>,
}

impl Reply {
    /// Reads what a server says to the question with number `id`; `None` where it
    /// is no answer to that.
    pub(super) fn read(mut message: Vec<u8>, id: u16, question: &Question) -> Option<Self> {
        let flags = u16_at(&message, 2)?;
        let is_answer = u16_at(&message, 0)? == id
            && flags & flag::RESPONSE != 0
            && flags & flag::OPCODE == 0
            && u16_at(&message, 4)? == 1;
        let (name, at) = Name::read(&message, HEADER_BYTES)?;
        let is_same = name == question.name
            && at == HEADER_BYTES + name.as_bytes().len()
            && u16_at(&message, at)? == question.kind
            && u16_at(&message, at + 2)? == message::CLASS_IN;
        if !is_answer || !is_same {
            return None;
        }
        let question_end = question.end();
        let mut ttls_at = Vec::new();
        let mut ttl = None::<u32>;
        let mut soa_ttl = None;
        let mut rcode = Rcode(flags & flag::RCODE);
        let mut cut = None;
        let mut n_additional = 0;
        for record in Records::after_question(&message, question_end) {
            let record = record?;
            if record.kind == kind::OPT {
                if record.section != Section::Additional {
                    return None;
                }
                let [extended, ..] = record.ttl.to_be_bytes();
                if extended != 0 {
                    // All of those are about what OPT records say.
                    rcode = Rcode::FORMAT;
                }
                // The last record, as a rule; what is behind it is no loss.
                cut = Some((record.at, n_additional));
                break;
            }
            n_additional += u16::from(record.section == Section::Additional);
            ttls_at.push(u16::try_from(record.ttl_at).ok()?);
            // RFC 2181, 8: the highest bit is none.
            let record_ttl = if record.ttl >> 31 == 0 { record.ttl } else { 0 };
            if record.kind == kind::SOA && record.section == Section::Authority {
                let minimum = message::u32_at(&message, record.data.end.checked_sub(4)?)?;
                soa_ttl = Some(record_ttl.min(minimum));
            }
            if record.section == Section::Answer {
                ttl = Some(ttl.map_or(record_ttl, |least| least.min(record_ttl)));
            }
        }
        if let Some((at, n_additional)) = cut {
            message.truncate(at);
            message[10..12].copy_from_slice(&n_additional.to_be_bytes());
        }
        let is_truncated = flags & flag::TRUNCATED != 0;
        let flags = flags & !flag::RCODE | rcode.0;
        message[2..4].copy_from_slice(&flags.to_be_bytes());
        message.shrink_to_fit();
        ttls_at.shrink_to_fit();
        let kept = match rcode {
            _ if is_truncated => None,
            Rcode::OK if !has_only_aliases(&message, question) => {
                ttl.map(|ttl| Duration::from_secs(ttl.into()).min(TTL_MAX))
            }
            // There is none. A server that does not say for how long is asked again.
            Rcode::OK | Rcode::NO_NAME => {
                let least = soa_ttl.map_or(0, |soa| ttl.map_or(soa, |ttl| ttl.min(soa)));
                Some(Duration::from_secs(least.into()).min(NEGATIVE_TTL_MAX))
            }
            _ => None,
        };
        Some(Self { message, question_end, ttls_at, ttl: kept })
    }

    /// What became of the question.
    pub(super) fn rcode(&self) -> Rcode {
        Rcode(self.flags() & flag::RCODE)
    }

    /// Whether records are missing.
    pub(super) fn is_truncated(&self) -> bool {
        self.flags() & flag::TRUNCATED != 0
    }

    fn flags(&self) -> u16 {
        u16_at(&self.message, 2).unwrap_or(0)
    }

    /// The records of the answer, with the message they are in.
    pub(super) fn answers(&self) -> (&[u8], impl Iterator<Item = RawRecord>) {
        let records = Records::after_question(&self.message, self.question_end).flatten();
        (&self.message, records.take_while(|record| record.section == Section::Answer))
    }

    /// The message for a client, `age` after it came; with as many records as have
    /// room.
    pub(super) fn for_client(&self, query: &Query<'_>, over_tcp: bool, age: Age) -> Vec<u8> {
        let opt = query.edns.map(|edns| opt(Rcode::OK, edns.dnssec_ok));
        let bytes_max = query.answer_bytes_max(over_tcp) - opt.map_or(0, |opt| opt.len());
        let mut message = Vec::with_capacity(self.message.len().min(bytes_max) + 11);
        message.extend(&self.message);
        let kept = flag::RECURSION_DESIRED | flag::CHECKING_DISABLED;
        let of_server = self.flags() & (flag::TRUNCATED | flag::AUTHENTIC | flag::RCODE);
        let mut flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | query.flags & kept | of_server;
        for at in self.ttls_at.iter().copied().map(usize::from) {
            if let Some(ttl) = message::u32_at(&message, at) {
                message[at..at + 4].copy_from_slice(&age.ttl_s(ttl).to_be_bytes());
            }
        }
        message[HEADER_BYTES..self.question_end].copy_from_slice(query.question);
        if message.len() > bytes_max {
            let mut counts = [0u16; 3];
            let mut end = self.question_end;
            for record in Records::after_question(&message, self.question_end).flatten() {
                if record.data.end > bytes_max {
                    // What only helps may be missing.
                    if record.section != Section::Additional {
                        flags |= flag::TRUNCATED;
                    }
                    break;
                }
                counts[record.section as usize] += 1;
                end = record.data.end;
            }
            message.truncate(end);
            for (at, count) in [6, 8, 10].into_iter().zip(counts) {
                message[at..at + 2].copy_from_slice(&count.to_be_bytes());
            }
        }
        message[..2].copy_from_slice(&query.id.to_be_bytes());
        message[2..4].copy_from_slice(&flags.to_be_bytes());
        if let Some(opt) = opt {
            message.extend(opt);
            let n_additional = u16_at(&message, 10).unwrap_or(0).saturating_add(1);
            message[10..12].copy_from_slice(&n_additional.to_be_bytes());
        }
        message
    }
}

/// Whether the answer says only other names, and of the last of them nothing.
fn has_only_aliases(message: &[u8], question: &Question) -> bool {
    !matches!(question.kind, kind::CNAME | kind::DNAME | kind::ANY)
        && Records::after_question(message, question.end())
            .flatten()
            .take_while(|record| record.section == Section::Answer)
            .all(|record| matches!(record.kind, kind::CNAME | kind::DNAME))
}

/// How old an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// For how long it has been kept; it is true.
    Fresh(Duration),
    /// It was true once.
    Stale,
}

impl Age {
    /// The time to live that is left of `ttl_s`.
    pub(super) fn ttl_s(self, ttl_s: u32) -> u32 {
        match self {
            Self::Fresh(age) => {
                ttl_s.saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX))
            }
            Self::Stale => STALE_TTL_S,
        }
    }
}

/// Answers by question.
#[derive(Debug)]
pub(super) struct Cache {
    entries_max: usize,
    bytes_max: usize,
    n_bytes: usize,
    entries: HashMap<Arc<Question>, Entry>,
    /// The questions by when they were last used.
    used: BTreeMap<u64, Arc<Question>>,
    n_uses: u64,
}

#[derive(Debug)]
struct Entry {
    reply: Arc<Reply>,
    since: Instant,
    ttl: Duration,
    used: u64,
}

impl Cache {
    /// One of at most so many entries and bytes.
    pub(super) fn new(entries_max: usize, bytes_max: usize) -> Self {
        Self {
            entries_max,
            bytes_max,
            n_bytes: 0,
            entries: HashMap::new(),
            used: BTreeMap::new(),
            n_uses: 0,
        }
    }

    /// What is known, and how old it is.
    pub(super) fn get(&mut self, question: &Question, now: Instant) -> Option<(Arc<Reply>, Age)> {
        let entry = self.entries.get_mut(question)?;
        let age = now.saturating_duration_since(entry.since);
        if age >= STALE_MAX + entry.ttl {
            self.remove(question);
            return None;
        }
        let age = if age < entry.ttl { Age::Fresh(age) } else { Age::Stale };
        if let Some(question) = self.used.remove(&entry.used) {
            self.n_uses += 1;
            entry.used = self.n_uses;
            self.used.insert(self.n_uses, question);
        }
        Some((Arc::clone(&entry.reply), age))
    }

    /// Keeps an answer, if it may be kept.
    pub(super) fn put(&mut self, question: &Question, reply: &Arc<Reply>, now: Instant) {
        let Some(ttl) = reply.ttl else { return };
        let n_bytes = bytes(question, reply);
        if n_bytes > self.bytes_max / 16 {
            return;
        }
        self.remove(question);
        let question = Arc::new(question.clone());
        self.n_uses += 1;
        self.n_bytes += n_bytes;
        self.used.insert(self.n_uses, Arc::clone(&question));
        let entry = Entry { reply: Arc::clone(reply), since: now, ttl, used: self.n_uses };
        self.entries.insert(question, entry);
        while self.entries.len() > self.entries_max || self.n_bytes > self.bytes_max {
            let Some((_, oldest)) = self.used.first_key_value() else { return };
            let oldest = Arc::clone(oldest);
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, question: &Question) {
        if let Some(entry) = self.entries.remove(question) {
            self.used.remove(&entry.used);
            self.n_bytes -= bytes(question, &entry.reply);
        }
    }
}

fn bytes(question: &Question, reply: &Reply) -> usize {
    ENTRY_BYTES
        + question.name.as_bytes().len()
        + reply.message.capacity()
        + 2 * reply.ttls_at.capacity()
}

#[cfg(test)]
mod tests;
