//! Questions and answers as they travel (RFC 1035, 3596, 2782, 6891).
//!
//! [`Query::read`] takes what a client sent, [`Writer`] makes the answer and stops
//! where it is full, [`Records`] walks through what a server answered. Everything
//! is bounded by the length of the message. Knows no names of a cluster.

use std::net::IpAddr;

use super::name::Name;

/// Bytes before the question.
pub(super) const HEADER_BYTES: usize = 12;

/// Most bytes of an answer over UDP: fits one packet of every usual network
/// (<https://www.dnsflagday.net/2020/>).
pub(super) const UDP_BYTES_MAX: u16 = 1232;

/// Most bytes over UDP for a client that says nothing.
const UDP_BYTES_PLAIN: u16 = 512;

/// What records are of.
pub(super) mod kind {
    pub(in crate::dns) const A: u16 = 1;
    pub(in crate::dns) const NS: u16 = 2;
    pub(in crate::dns) const CNAME: u16 = 5;
    pub(in crate::dns) const SOA: u16 = 6;
    pub(in crate::dns) const PTR: u16 = 12;
    pub(in crate::dns) const MX: u16 = 15;
    pub(in crate::dns) const TXT: u16 = 16;
    pub(in crate::dns) const AAAA: u16 = 28;
    pub(in crate::dns) const SRV: u16 = 33;
    pub(in crate::dns) const DNAME: u16 = 39;
    pub(in crate::dns) const OPT: u16 = 41;
    pub(in crate::dns) const IXFR: u16 = 251;
    pub(in crate::dns) const AXFR: u16 = 252;
    pub(in crate::dns) const ANY: u16 = 255;
}

/// The internet's class of records.
pub(super) const CLASS_IN: u16 = 1;

/// What became of a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rcode(pub(super) u16);

impl Rcode {
    pub(super) const OK: Self = Self(0);
    pub(super) const FORMAT: Self = Self(1);
    pub(super) const SERVER_FAILED: Self = Self(2);
    pub(super) const NO_NAME: Self = Self(3);
    pub(super) const NOT_IMPLEMENTED: Self = Self(4);
    pub(super) const REFUSED: Self = Self(5);
    pub(super) const BAD_VERSION: Self = Self(16);
}

/// Bits of the header's third and fourth byte.
pub(super) mod flag {
    pub(in crate::dns) const RESPONSE: u16 = 0x8000;
    pub(in crate::dns) const OPCODE: u16 = 0x7800;
    pub(in crate::dns) const AUTHORITATIVE: u16 = 0x0400;
    pub(in crate::dns) const TRUNCATED: u16 = 0x0200;
    pub(in crate::dns) const RECURSION_DESIRED: u16 = 0x0100;
    pub(in crate::dns) const RECURSION_AVAILABLE: u16 = 0x0080;
    pub(in crate::dns) const AUTHENTIC: u16 = 0x0020;
    pub(in crate::dns) const CHECKING_DISABLED: u16 = 0x0010;
    pub(in crate::dns) const RCODE: u16 = 0x000f;
}

/// The number of two bytes at `at`.
pub(super) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

/// The number of four bytes at `at`.
pub(super) fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?))
}

/// What a client asks.
#[derive(Debug)]
pub(super) struct Query<'a> {
    /// Its number.
    pub(super) id: u16,
    /// Flags of the header.
    pub(super) flags: u16,
    /// The question as it was written.
    pub(super) question: &'a [u8],
    /// The name in it.
    pub(super) name: Name,
    /// Which records are asked for.
    pub(super) kind: u16,
    /// Of which class.
    pub(super) class: u16,
    /// What the client says beyond the plain protocol.
    pub(super) edns: Option<Edns>,
}

/// What a client says in its OPT record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edns {
    /// Most bytes over UDP that it takes.
    pub(super) udp_bytes_max: u16,
    /// Only 0 exists.
    pub(super) version: u8,
    /// It wants signatures.
    pub(super) dnssec_ok: bool,
}

impl<'a> Query<'a> {
    /// Reads a question.
    ///
    /// # Errors
    /// It is none: what to answer, if anything.
    pub(super) fn read(message: &'a [u8]) -> Result<Self, Option<Vec<u8>>> {
        let (Some(id), Some(flags)) = (u16_at(message, 0), u16_at(message, 2)) else {
            return Err(None);
        };
        if message.len() < HEADER_BYTES || flags & flag::RESPONSE != 0 {
            return Err(None);
        }
        let refuse = |rcode: Rcode| Err(Some(head(id, flags, rcode)));
        if flags & flag::OPCODE != 0 {
            return refuse(Rcode::NOT_IMPLEMENTED);
        }
        Self::read_body(message, id, flags).map_or_else(|| refuse(Rcode::FORMAT), Ok)
    }

    fn read_body(message: &'a [u8], id: u16, flags: u16) -> Option<Self> {
        if u16_at(message, 4)? != 1 {
            return None;
        }
        // A pointer in the first name would lead into the header.
        let (name, at) = Name::read(message, HEADER_BYTES)?;
        if at != HEADER_BYTES + name.as_bytes().len() {
            return None;
        }
        let (kind, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
        let mut edns = None;
        for record in Records::after_question(message, at + 4) {
            let record = record?;
            if record.kind != kind::OPT {
                continue;
            }
            let is_root = message.get(record.at) == Some(&0);
            if edns.is_some() || record.section != Section::Additional || !is_root {
                return None;
            }
            let [_, version, high, _] = record.ttl.to_be_bytes();
            edns = Some(Edns { udp_bytes_max: record.class, version, dnssec_ok: high & 0x80 != 0 });
        }
        let question = &message[HEADER_BYTES..at + 4];
        Some(Self { id, flags, question, name, kind, class, edns })
    }

    /// Most bytes of an answer.
    pub(super) fn answer_bytes_max(&self, over_tcp: bool) -> usize {
        if over_tcp {
            return usize::from(u16::MAX);
        }
        let asked = self.edns.map_or(UDP_BYTES_PLAIN, |edns| edns.udp_bytes_max);
        usize::from(asked.clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX))
    }
}

/// The answer to what is no question: a header alone.
fn head(id: u16, flags: u16, rcode: Rcode) -> Vec<u8> {
    let kept = flags & (flag::OPCODE | flag::RECURSION_DESIRED);
    let mut message = id.to_be_bytes().to_vec();
    message.extend((flag::RESPONSE | kept | rcode.0).to_be_bytes());
    message.resize(HEADER_BYTES, 0);
    message
}

/// The OPT record of an answer.
pub(super) fn opt(rcode: Rcode, dnssec_ok: bool) -> [u8; 11] {
    let [size_high, size_low] = UDP_BYTES_MAX.to_be_bytes();
    let [_, code] = (rcode.0 >> 4).to_be_bytes();
    let dnssec = if dnssec_ok { 0x80 } else { 0 };
    [0, 0, 41, size_high, size_low, code, 0, dnssec, 0, 0, 0]
}

/// A part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// A record in a message.
#[derive(Clone, Debug)]
pub(super) struct RawRecord {
    /// Which part of the message it is in.
    pub(super) section: Section,
    /// Where it begins.
    pub(super) at: usize,
    /// What it is of.
    pub(super) kind: u16,
    /// Its class.
    pub(super) class: u16,
    /// Where its time to live is.
    pub(super) ttl_at: usize,
    /// For how many seconds it is true.
    pub(super) ttl: u32,
    /// Where its data is.
    pub(super) data: std::ops::Range<usize>,
}

/// Walks through the records of a message; `None` once where they break off.
#[derive(Debug)]
pub(super) struct Records<'a> {
    message: &'a [u8],
    at: usize,
    left: [u16; 3],
    is_broken: bool,
}

impl<'a> Records<'a> {
    /// The records after the question that ends at `at`.
    pub(super) fn after_question(message: &'a [u8], at: usize) -> Self {
        let left = [6, 8, 10].map(|count| u16_at(message, count).unwrap_or(0));
        Self { message, at, left, is_broken: false }
    }

    fn read(&mut self, section: Section) -> Option<RawRecord> {
        let at = self.at;
        let after = Name::skip(self.message, at)?;
        let data_at = after + 10;
        let data_bytes = usize::from(u16_at(self.message, after + 8)?);
        let data = data_at..data_at + data_bytes;
        self.message.get(data.clone())?;
        self.at = data.end;
        Some(RawRecord {
            section,
            at,
            kind: u16_at(self.message, after)?,
            class: u16_at(self.message, after + 2)?,
            ttl_at: after + 4,
            ttl: u32_at(self.message, after + 4)?,
            data,
        })
    }
}

impl Iterator for Records<'_> {
    type Item = Option<RawRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_broken {
            return None;
        }
        let sections = [Section::Answer, Section::Authority, Section::Additional];
        let (left, section) = self.left.iter_mut().zip(sections).find(|(left, _)| **left > 0)?;
        *left -= 1;
        let record = self.read(section);
        self.is_broken = record.is_none();
        Some(record)
    }
}

/// A record to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Whose; `None` for the name that was asked for.
    pub(super) owner: Option<Name>,
    /// For how many seconds it is true.
    pub(super) ttl: u32,
    /// What it says.
    pub(super) data: Data,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    Address(IpAddr),
    Name(u16, Name),
    Srv { weight: u16, port: u16, target: Name },
    Txt(&'static str),
    Soa { server: Name, mailbox: Name, serial: u32, negative_ttl: u32 },
    Raw { kind: u16, bytes: Vec<u8> },
}

impl Data {
    /// What it is of.
    pub(super) fn kind(&self) -> u16 {
        match self {
            Self::Address(IpAddr::V4(_)) => kind::A,
            Self::Address(IpAddr::V6(_)) => kind::AAAA,
            Self::Name(kind, _) | Self::Raw { kind, .. } => *kind,
            Self::Srv { .. } => kind::SRV,
            Self::Txt(_) => kind::TXT,
            Self::Soa { .. } => kind::SOA,
        }
    }

    /// The data of a record of a message, with its names written out.
    pub(super) fn copied(message: &[u8], record: &RawRecord) -> Option<Self> {
        let raw = message.get(record.data.clone())?;
        // How many bytes stand before the names, how many names, how many after.
        let (before, n_names, after) = match record.kind {
            kind::CNAME | kind::NS | kind::PTR | kind::DNAME => (0, 1, 0),
            kind::MX => (2, 1, 0),
            kind::SRV => (6, 1, 0),
            kind::SOA => (0, 2, 20),
            _ => return Some(Self::Raw { kind: record.kind, bytes: raw.to_vec() }),
        };
        let mut bytes = raw.get(..before)?.to_vec();
        let mut at = record.data.start + before;
        for _ in 0..n_names {
            let (name, next) = Name::read(message, at)?;
            bytes.extend(name.as_bytes());
            at = next;
        }
        bytes.extend(message.get(at..at + after)?);
        (at + after == record.data.end).then_some(Self::Raw { kind: record.kind, bytes })
    }
}

/// Writes an answer; stops where it is full.
#[derive(Debug)]
pub(super) struct Writer {
    message: Vec<u8>,
    bytes_max: usize,
    opt: Option<[u8; 11]>,
    /// Names that later ones point to.
    anchors: Vec<Anchor>,
    counts: [u16; 3],
}

impl Writer {
    /// Begins the answer to `query`.
    pub(super) fn new(query: &Query<'_>, over_tcp: bool, extra_flags: u16, rcode: Rcode) -> Self {
        let kept = query.flags & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
        let code = rcode.0 & flag::RCODE;
        let flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | kept | extra_flags | code;
        let mut message = Vec::with_capacity(256);
        message.extend(query.id.to_be_bytes());
        message.extend(flags.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        message.extend(query.question);
        let opt = query.edns.map(|edns| opt(rcode, edns.dnssec_ok));
        let bytes_max = query.answer_bytes_max(over_tcp) - opt.map_or(0, |opt| opt.len());
        let n_written = query.name.as_bytes().len();
        let anchors = vec![Anchor { at: HEADER_BYTES, n_written, name: query.name.clone() }];
        Self { message, bytes_max, opt, anchors, counts: [0; 3] }
    }

    /// Adds a record; false where it has no room, and then nothing is added.
    pub(super) fn push(&mut self, section: Section, record: &Record) -> bool {
        let before = self.message.len();
        let n_anchors = self.anchors.len();
        match &record.owner {
            Some(name) => {
                self.name(name);
            }
            // Where the question is.
            None => self.message.extend([0xc0, 0x0c]),
        }
        self.message.extend(record.data.kind().to_be_bytes());
        self.message.extend(CLASS_IN.to_be_bytes());
        self.message.extend(record.ttl.to_be_bytes());
        let length_at = self.message.len();
        self.message.extend([0, 0]);
        self.data(&record.data);
        let length = u16::try_from(self.message.len() - length_at - 2);
        let count = &mut self.counts[section as usize];
        match length {
            Ok(length) if self.message.len() <= self.bytes_max && *count < u16::MAX => {
                self.message[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
                *count += 1;
                true
            }
            _ => {
                self.message.truncate(before);
                self.anchors.truncate(n_anchors);
                false
            }
        }
    }

    /// Adds the records of the answer, and says where some are missing.
    pub(super) fn answers<'r>(&mut self, records: impl IntoIterator<Item = &'r Record>) {
        for record in records {
            if !self.push(Section::Answer, record) {
                self.message[2] |= flag::TRUNCATED.to_be_bytes()[0];
                return;
            }
        }
    }

    /// Adds what has room.
    pub(super) fn additional<'r>(&mut self, records: impl IntoIterator<Item = &'r Record>) {
        for record in records {
            if !self.push(Section::Additional, record) {
                return;
            }
        }
    }

    /// The message.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if let Some(opt) = self.opt {
            self.message.extend(opt);
            self.counts[2] = self.counts[2].saturating_add(1);
        }
        for (at, count) in [6, 8, 10].into_iter().zip(self.counts) {
            self.message[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        self.message
    }

    fn data(&mut self, data: &Data) {
        match data {
            Data::Address(IpAddr::V4(v4)) => self.message.extend(v4.octets()),
            Data::Address(IpAddr::V6(v6)) => self.message.extend(v6.octets()),
            Data::Name(_, name) => {
                let at = self.message.len();
                let n_written = self.name(name);
                // The next record is the target's, as a rule.
                if data.kind() == kind::CNAME {
                    self.anchors.truncate(1);
                    self.anchors.push(Anchor { at, n_written, name: name.clone() });
                }
            }
            Data::Srv { weight, port, target } => {
                for number in [0, *weight, *port] {
                    self.message.extend(number.to_be_bytes());
                }
                // Without pointers (RFC 2782).
                self.message.extend(target.as_bytes());
            }
            Data::Txt(text) => {
                let text = &text.as_bytes()[..text.len().min(255)];
                self.message.push(u8::try_from(text.len()).unwrap_or(0));
                self.message.extend(text);
            }
            Data::Soa { server, mailbox, serial, negative_ttl } => {
                self.name(server);
                self.name(mailbox);
                for number in [*serial, 7200, 1800, 86_400, *negative_ttl] {
                    self.message.extend(number.to_be_bytes());
                }
            }
            Data::Raw { bytes, .. } => self.message.extend(bytes),
        }
    }

    /// Writes a name, with a pointer for the end that the message has already;
    /// returns how many bytes stand before the pointer.
    fn name(&mut self, name: &Name) -> usize {
        let bytes = name.as_bytes();
        for start in name.starts() {
            let Some(target) =
                self.anchors.iter().find_map(|anchor| anchor.pointer_to(&bytes[start..]))
            else {
                continue;
            };
            self.message.extend(&bytes[..start]);
            self.message.extend((0xc000 | target).to_be_bytes());
            return start;
        }
        self.message.extend(bytes);
        bytes.len()
    }
}

/// A name that is in the message already.
#[derive(Debug)]
struct Anchor {
    at: usize,
    /// How many of its bytes are there; a pointer follows.
    n_written: usize,
    name: Name,
}

impl Anchor {
    /// Where `rest` is, if the name ends in it.
    fn pointer_to(&self, rest: &[u8]) -> Option<u16> {
        let name = self.name.as_bytes();
        let offset = name.len().checked_sub(rest.len()).filter(|at| name[*at..] == *rest)?;
        let is_label = offset < self.n_written && self.name.starts().any(|at| at == offset);
        u16::try_from(self.at + offset).ok().filter(|at| is_label && *at < 0x4000)
    }
}

/// A question of ours to a server.
pub(super) fn question(
    id: u16,
    name: &Name,
    kind: u16,
    checking_disabled: bool,
    dnssec_ok: Option<bool>,
) -> Vec<u8> {
    let mut flags = flag::RECURSION_DESIRED;
    if checking_disabled {
        flags |= flag::CHECKING_DISABLED;
    }
    let mut message = id.to_be_bytes().to_vec();
    message.extend(flags.to_be_bytes());
    message.extend([0, 1, 0, 0, 0, 0, 0, u8::from(dnssec_ok.is_some())]);
    message.extend(name.as_bytes());
    message.extend(kind.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    if let Some(dnssec_ok) = dnssec_ok {
        message.extend(opt(Rcode::OK, dnssec_ok));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(tail: &[u8]) -> Vec<u8> {
        let mut message = question(7, &Name::from_text("a.b").unwrap(), kind::A, false, None);
        message.extend(tail);
        message
    }

    #[test]
    fn a_question_is_read_with_what_the_client_can_take() {
        let plain = query(&[]);
        let read = Query::read(&plain).unwrap();
        assert_eq!((read.id, read.kind, read.class), (7, kind::A, CLASS_IN));
        assert_eq!(read.question, &plain[HEADER_BYTES..]);
        assert_eq!((read.answer_bytes_max(false), read.answer_bytes_max(true)), (512, 65535));
        for (offered, expected) in [(0u16, 512), (800, 800), (4096, 1232)] {
            let mut message = query(&opt(Rcode::OK, true));
            message[11] = 1;
            let at = message.len() - 8;
            message[at..at + 2].copy_from_slice(&offered.to_be_bytes());
            let read = Query::read(&message).unwrap();
            assert!(read.edns.is_some_and(|edns| edns.dnssec_ok && edns.version == 0));
            assert_eq!(read.answer_bytes_max(false), expected);
        }
    }

    #[test]
    fn what_is_no_question_gets_an_error_with_its_number_or_nothing() {
        let check = |change: &dyn Fn(&mut Vec<u8>), expected: Option<Rcode>| {
            let mut message = query(&[]);
            change(&mut message);
            let refusal = Query::read(&message).unwrap_err();
            let rcode = refusal.map(|refusal| {
                assert_eq!((refusal.len(), u16_at(&refusal, 0)), (HEADER_BYTES, Some(7)));
                let flags = u16_at(&refusal, 2).unwrap();
                assert_ne!(flags & flag::RESPONSE, 0);
                Rcode(flags & flag::RCODE)
            });
            assert_eq!(rcode, expected);
        };
        check(&|message| message.truncate(11), None);
        check(&|message| message[2] |= 0x80, None);
        check(&|message| message[2] |= 0x28, Some(Rcode::NOT_IMPLEMENTED));
        check(&|message| message[5] = 0, Some(Rcode::FORMAT));
        check(&|message| message[5] = 2, Some(Rcode::FORMAT));
        check(&|message| message.truncate(20), Some(Rcode::FORMAT));
        // A pointer into the header.
        check(&|message| message[12] = 0xc0, Some(Rcode::FORMAT));
        // More records than there are bytes.
        check(&|message| message[10] = 0xff, Some(Rcode::FORMAT));
        // Two OPT records.
        let two = [opt(Rcode::OK, false), opt(Rcode::OK, false)].concat();
        let change = |message: &mut Vec<u8>| {
            message.extend(&two);
            message[11] = 2;
        };
        check(&change, Some(Rcode::FORMAT));
    }

    #[test]
    fn names_of_records_point_to_what_is_written_already() {
        let message = query(&[]);
        let query = Query::read(&message).unwrap();
        let name = |text| Name::from_text(text).unwrap();
        let mut writer = Writer::new(&query, true, 0, Rcode::OK);
        let data = Data::Name(kind::CNAME, name("x.y.b"));
        let first = Record { owner: None, ttl: 5, data };
        let data = Data::Address([1, 2, 3, 4].into());
        let second = Record { owner: Some(name("x.y.b")), ttl: 5, data: data.clone() };
        let third = Record { owner: Some(name("z.y.b")), ttl: 5, data: data.clone() };
        let fourth = Record { owner: Some(name("other.b")), ttl: 5, data };
        writer.answers([&first, &second, &third, &fourth]);
        let message = writer.finish();
        let end = HEADER_BYTES + query.question.len();
        let owners: Vec<(String, usize)> = Records::after_question(&message, end)
            .map(|record| {
                let at = record.unwrap().at;
                let (name, next) = Name::read(&message, at).unwrap();
                (name.to_string(), next - at)
            })
            .collect();
        let expected = [("a.b.", 2), ("x.y.b.", 2), ("z.y.b.", 4), ("other.b.", 8)];
        assert_eq!(owners, expected.map(|(name, n_bytes)| (name.to_owned(), n_bytes)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Query::read(&message);
            let n_records = Records::after_question(&message, HEADER_BYTES).count();
            prop_assert!(n_records <= message.len() / 11 + 1);
        }

        #[test]
        fn a_question_that_was_changed_is_read_or_refused(
            at in 0usize..60, value: u8, length in 0usize..60,
        ) {
            let mut message = query(&opt(Rcode::OK, true));
            message[11] = 1;
            message.truncate(length.max(12));
            if let Some(byte) = message.get_mut(at) {
                *byte = value;
            }
            if let Ok(query) = Query::read(&message) {
                let answer = Writer::new(&query, false, 0, Rcode::OK).finish();
                prop_assert_eq!(&answer[12..12 + query.question.len()], query.question);
            }
        }
    }
}
