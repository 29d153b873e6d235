//! Answers that are kept, aged, cut and thrown away.

use proptest::prelude::*;

use super::*;
use crate::dns::fixture::{ask, ask_edns, show};
use crate::dns::message::{CLASS_IN, Data, Record, Writer};

fn question(name: &str) -> Question {
    Question {
        name: Name::from_text(name).unwrap(),
        kind: kind::A,
        dnssec_ok: false,
        checking_disabled: false,
    }
}

fn address(ttl: u32, last: u8) -> Record {
    Record { owner: None, ttl, data: Data::Address([192, 0, 2, last].into()) }
}

fn soa(ttl: u32, negative_ttl: u32) -> Record {
    let name = Name::from_text("com").unwrap();
    let (server, mailbox) = (name.clone(), name.clone());
    Record { owner: Some(name), ttl, data: Data::Soa { server, mailbox, serial: 1, negative_ttl } }
}

/// What a server says about `name`.
fn message(name: &str, rcode: Rcode, answers: &[Record], authority: Option<Record>) -> Vec<u8> {
    let asked = ask_edns(name, kind::A);
    let query = Query::read(&asked).unwrap();
    let mut writer = Writer::new(&query, true, 0, rcode);
    writer.answers(answers);
    if let Some(record) = &authority {
        writer.push(Section::Authority, record);
    }
    writer.finish()
}

fn reply(name: &str, rcode: Rcode, answers: &[Record], authority: Option<Record>) -> Arc<Reply> {
    Arc::new(Reply::read(message(name, rcode, answers, authority), 77, &question(name)).unwrap())
}

#[test]
fn only_an_answer_to_the_question_counts() {
    let good = message("a.com", Rcode::OK, &[address(60, 1)], None);
    let asked = question("a.com");
    assert!(Reply::read(good.clone(), 77, &asked).is_some());
    assert!(Reply::read(good.clone(), 78, &asked).is_none());
    assert!(Reply::read(good.clone(), 77, &question("b.com")).is_none());
    assert!(
        Reply::read(good.clone(), 77, &Question { kind: kind::AAAA, ..asked.clone() }).is_none()
    );
    for (at, value) in [(2, 0x01), (2, 0x88), (5, 0), (5, 2), (7, 9)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert!(Reply::read(bad, 77, &asked).is_none(), "byte {at} is {value}");
    }
    // The case of letters does not matter.
    let mut other_case = good;
    other_case[13] = b'A';
    assert!(Reply::read(other_case, 77, &asked).is_some());
}

#[test]
fn an_answer_is_true_for_the_least_of_its_times() {
    let check = |rcode, answers: &[Record], authority, expected: Option<u64>| {
        let reply = reply("a.com", rcode, answers, authority);
        assert_eq!(reply.ttl, expected.map(Duration::from_secs));
    };
    check(Rcode::OK, &[address(60, 1), address(30, 2)], None, Some(30));
    check(Rcode::OK, &[address(1 << 31, 1)], None, Some(0));
    check(Rcode::OK, &[address(999_999, 1)], None, Some(3600));
    check(Rcode::NO_NAME, &[], Some(soa(60, 20)), Some(20));
    check(Rcode::NO_NAME, &[], Some(soa(10, 20)), Some(10));
    check(Rcode::NO_NAME, &[], Some(soa(9999, 9999)), Some(300));
    check(Rcode::OK, &[], Some(soa(60, 20)), Some(20));
    check(Rcode::OK, &[], None, Some(0));
    check(Rcode::SERVER_FAILED, &[], None, None);
    let alias = Data::Name(kind::CNAME, Name::from_text("b.com").unwrap());
    let alias = Record { owner: None, ttl: 15, data: alias };
    check(Rcode::OK, std::slice::from_ref(&alias), Some(soa(60, 20)), Some(15));
    check(Rcode::OK, &[alias, address(60, 1)], None, Some(15));
}

#[test]
fn a_client_gets_its_own_number_question_and_what_is_left_of_the_time() {
    let reply = reply("a.com", Rcode::OK, &[address(60, 1)], None);
    let mut asked = ask("a.com", kind::A);
    asked[0] = 5;
    asked[13] = b'A';
    let query = Query::read(&asked).unwrap();
    let answer = reply.for_client(&query, false, Age::Fresh(Duration::from_secs(45)));
    assert_eq!((answer[0], answer[13]), (5, b'A'));
    assert_eq!(show(&answer), "NOERROR\nAnswer a.com. 15 A 192.0.2.1\n");
    let stale = reply.for_client(&query, false, Age::Stale);
    assert_eq!(show(&stale), "NOERROR\nAnswer a.com. 30 A 192.0.2.1\n");
    let asked = ask_edns("a.com", kind::A);
    let answer = reply.for_client(&Query::read(&asked).unwrap(), false, Age::Stale);
    assert_eq!(show(&answer), "NOERROR\nAnswer a.com. 30 A 192.0.2.1\nAdditional OPT 1232\n");
}

#[test]
fn an_answer_that_does_not_fit_is_cut_between_records_and_says_so() {
    let records: Vec<Record> = (0..100).map(|n| address(60, n)).collect();
    let reply = reply("a.com", Rcode::OK, &records, None);
    let asked = ask("a.com", kind::A);
    let query = Query::read(&asked).unwrap();
    let udp = reply.for_client(&query, false, Age::Stale);
    assert!(udp.len() <= 512 && udp.len() > 490, "{}", udp.len());
    let text = show(&udp);
    assert!(text.starts_with("NOERROR tc\n"), "{text}");
    assert_eq!(text.lines().count(), 31);
    let tcp = show(&reply.for_client(&query, true, Age::Stale));
    assert_eq!((tcp.lines().count(), tcp.contains("tc")), (101, false));
}

#[test]
fn what_was_used_longest_ago_goes_first_and_bytes_are_counted() {
    let now = Instant::now();
    let mut cache = Cache::new(3, 1 << 20);
    let names = ["a.com", "b.com", "c.com", "d.com"];
    for name in &names[..3] {
        cache.put(&question(name), &reply(name, Rcode::OK, &[address(60, 1)], None), now);
    }
    assert!(cache.get(&question("a.com"), now).is_some());
    cache.put(&question("d.com"), &reply("d.com", Rcode::OK, &[address(60, 1)], None), now);
    let kept = names.map(|name| cache.get(&question(name), now).is_some());
    assert_eq!(kept, [true, false, true, true]);
    // The same again takes no more.
    let before = cache.n_bytes;
    cache.put(&question("d.com"), &reply("d.com", Rcode::OK, &[address(60, 1)], None), now);
    assert_eq!((cache.n_bytes, cache.entries.len(), cache.used.len()), (before, 3, 3));

    let mut cache = Cache::new(1000, 16 << 10);
    for n in 0..1000 {
        let name = format!("{n}.com");
        cache.put(&question(&name), &reply(&name, Rcode::OK, &[address(60, 1)], None), now);
        assert!(cache.n_bytes <= 16 << 10);
    }
    assert!(cache.entries.len() > 10, "{}", cache.entries.len());
    // What would push out a sixteenth of all is not kept.
    let records: Vec<Record> = (0..200).map(|n| address(60, n)).collect();
    cache.put(&question("big.com"), &reply("big.com", Rcode::OK, &records, None), now);
    assert!(cache.get(&question("big.com"), now).is_none());
}

#[test]
fn what_expired_is_stale_and_one_day_gone() {
    let now = Instant::now();
    let mut cache = Cache::new(10, 1 << 20);
    cache.put(&question("a.com"), &reply("a.com", Rcode::OK, &[address(60, 1)], None), now);
    let mut age = |seconds| {
        let later = now + Duration::from_secs(seconds);
        cache.get(&question("a.com"), later).map(|(_, age)| age)
    };
    assert_eq!(age(59), Some(Age::Fresh(Duration::from_secs(59))));
    assert_eq!(age(60), Some(Age::Stale));
    assert_eq!(age(3 * 24 * 3600), Some(Age::Stale));
    assert_eq!(age(3 * 24 * 3600 + 60), None);
    assert_eq!((cache.n_bytes, cache.used.len()), (0, 0));
}

proptest! {
    #[test]
    fn a_changed_answer_is_passed_on_whole_or_not_at_all(
        changes in proptest::collection::vec((0usize..200, any::<u8>()), 0..6),
        length in 12usize..200,
        over_tcp: bool,
    ) {
        let records = [address(60, 1), address(60, 2)];
        let mut message = message("a.com", Rcode::OK, &records, Some(soa(60, 20)));
        for (at, value) in changes {
            if let Some(byte) = message.get_mut(at) {
                *byte = value;
            }
        }
        message.truncate(length);
        if let Some(reply) = Reply::read(message, 77, &question("a.com")) {
            let asked = ask_edns("a.com", kind::A);
            let query = Query::read(&asked).unwrap();
            let answer = reply.for_client(&query, over_tcp, Age::Stale);
            prop_assert!(answer.len() <= query.answer_bytes_max(over_tcp));
            let end = HEADER_BYTES + query.question.len();
            prop_assert_eq!(&answer[HEADER_BYTES..end], query.question);
            let mut records = Records::after_question(&answer, end);
            prop_assert!(records.all(|record| record.is_some()));
            let (message, records) = reply.answers();
            for record in records.filter(|record| record.class == CLASS_IN) {
                let _ = Data::copied(message, &record);
            }
        }
    }
}
