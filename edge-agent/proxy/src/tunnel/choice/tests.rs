//! What is tried, when, and what is used: as text, from events as text.

use super::*;

const ALL: [Lane; 3] = [Lane::Quic, Lane::Tls, Lane::Relay];

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 7443))
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A choice of node `a` about peer `b`, and the time.
struct Bench {
    choice: Choice,
    now: Duration,
    next_way: u64,
}

impl Bench {
    fn new(addresses: &[u8]) -> Self {
        let mut choice = Choice::new(Timing::default(), &ALL, "a", "b");
        let now = ms(1000);
        choice.set_addresses(now, addresses.iter().copied().map(address).collect());
        Self { choice, now, next_way: 0 }
    }

    /// Polls after so many milliseconds, and says what was done.
    fn after(&mut self, n_ms: u64) -> String {
        self.now += ms(n_ms);
        let actions = self.choice.poll(self.now);
        text(&actions)
    }

    fn want(&mut self) -> String {
        self.choice.wanted(self.now);
        self.after(0)
    }

    fn fail(&mut self, number: u32) -> String {
        self.choice.failed(self.now, number, "no");
        self.after(0)
    }

    fn connect(
        &mut self,
        number: Option<u32>,
        lane: Lane,
        remote: Option<u8>,
        rtt_us: u32,
    ) -> String {
        self.next_way += 1;
        let way = Way {
            id: self.next_way,
            lane,
            remote: remote.map(address),
            is_dialled: number.is_some(),
            rtt_us,
        };
        let mut actions = self.choice.connected(self.now, number, way);
        actions.extend(self.choice.poll(self.now));
        text(&actions)
    }

    /// The way is in use, and does so.
    fn use_way(&mut self, id: u64, loss: u32) {
        let used = self.now;
        let measured = Measured { rtt_us: 1000, loss, n_streams: 1, used, is_heard: true };
        self.choice.measured(id, measured);
    }

    fn leave_alone(&mut self, id: u64) {
        let used = self.now;
        self.choice.measured(id, Measured { used, ..Measured::default() });
    }

    fn state(&self) -> State {
        self.choice.state(self.now)
    }
}

fn text(actions: &[Action]) -> String {
    let text: Vec<String> = actions
        .iter()
        .map(|action| match action {
            Action::Dial(number, target) => format!("{number}={target}"),
            Action::Abort(number) => format!("-{number}"),
            Action::Close(id) => format!("x{id}"),
        })
        .collect();
    text.join(" ").replace(":7443", "").replace("10.0.0.", ".")
}

#[test]
fn nothing_is_tried_before_somebody_wants_to_go_there() {
    let mut bench = Bench::new(&[1]);
    assert_eq!((bench.after(100_000), bench.state()), (String::new(), State::Idle));
    assert_eq!((bench.want().as_str(), bench.state()), ("1=quic .1", State::Trying));
    assert_eq!(bench.connect(Some(1), Lane::Quic, Some(1), 1000), "");
    assert_eq!(bench.state(), State::Up(1));
    assert_eq!(bench.choice.why(), "");
}

#[test]
fn all_ways_are_tried_in_order_and_the_next_at_once_where_nothing_is_under_way() {
    let mut bench = Bench::new(&[1, 2]);
    assert_eq!(bench.want(), "1=quic .1");
    assert_eq!(bench.after(150), "2=quic .2");
    assert_eq!(bench.after(150), "3=tls .1");
    assert_eq!(bench.after(150), "4=tls .2");
    assert_eq!(bench.after(1000), "");
    assert_eq!(bench.after(50), "5=relay");

    let mut bench = Bench::new(&[1]);
    assert_eq!(bench.want(), "1=quic .1");
    assert_eq!(bench.fail(1), "2=tls .1");
    assert_eq!(bench.fail(2), "3=relay");
    assert_eq!(bench.fail(3), "");
    assert_eq!(bench.state(), State::Down(bench.now + ms(1000)));
    assert_eq!(bench.choice.why(), "quic 10.0.0.1:7443: no; tls 10.0.0.1:7443: no; relay: no");
    // A peer without addresses: the master may know it.
    assert_eq!(Bench::new(&[]).want(), "1=relay");
}

#[test]
fn the_first_that_answers_is_used_and_better_ones_go_on() {
    let mut bench = Bench::new(&[1]);
    bench.want();
    assert_eq!(bench.after(300), "2=tls .1");
    assert_eq!(bench.after(1200), "3=relay");
    assert_eq!(bench.connect(Some(3), Lane::Relay, None, 9000), "");
    assert_eq!(bench.state(), State::Up(1));
    assert_eq!(bench.connect(Some(2), Lane::Tls, Some(1), 1000), "");
    assert_eq!(bench.state(), State::Up(2));
    assert_eq!(bench.connect(Some(1), Lane::Quic, Some(1), 1000), "");
    assert_eq!(bench.state(), State::Up(3));

    let mut bench = Bench::new(&[1]);
    bench.want();
    bench.after(300);
    assert_eq!(bench.connect(Some(1), Lane::Quic, Some(1), 1000), "-2", "the rest is stopped");
}

#[test]
fn a_peer_that_is_gone_is_asked_less_and_less_and_at_once_when_it_moves() {
    let mut bench = Bench::new(&[1]);
    let mut number = 0;
    for expected_s in [1, 2, 4, 8, 16, 32, 60, 60] {
        for _ in 0..3 {
            bench.want();
            number += 1;
            bench.fail(number);
        }
        let until = bench.now + Duration::from_secs(expected_s);
        assert_eq!(bench.state(), State::Down(until), "{expected_s}");
        assert_eq!(bench.want(), "", "too early");
        bench.now = until;
    }
    for _ in 0..3 {
        bench.want();
        number += 1;
        bench.fail(number);
    }
    bench.choice.set_addresses(bench.now, vec![address(2)]);
    assert_eq!(bench.want(), format!("{}=quic .2", number + 1));
    // Or when the peer comes by itself.
    bench.fail(number + 1);
    bench.connect(None, Lane::Tls, Some(9), 0);
    assert_eq!(bench.state(), State::Up(1));
}

#[test]
fn what_is_not_the_best_is_reviewed_after_a_minute_then_less_often() {
    let mut bench = Bench::new(&[1]);
    bench.want();
    bench.fail(1);
    bench.connect(Some(2), Lane::Tls, Some(1), 1000);
    assert_eq!(bench.choice.why(), "quic 10.0.0.1:7443: no");
    let mut number = 2;
    for wait_s in [60, 120, 240, 480, 480] {
        bench.use_way(1, 0);
        assert_eq!(bench.after(wait_s * 1000 - 1), "", "{wait_s}");
        number += 1;
        assert_eq!(bench.after(1), format!("{number}=quic .1"));
        bench.fail(number);
        assert_eq!(bench.state(), State::Up(1));
    }
    // A change of the network is a reason to look again.
    bench.choice.set_addresses(bench.now, vec![address(1), address(2)]);
    assert_eq!(bench.after(0), format!("{}=quic .1", number + 1));
    bench.connect(Some(number + 1), Lane::Quic, Some(1), 1000);
    assert_eq!(bench.state(), State::Up(2));
    // The old way stays while something is on it, and goes when nothing is.
    bench.use_way(2, 0);
    assert_eq!(bench.after(40_000), "");
    bench.leave_alone(1);
    assert_eq!(bench.after(9_999), "");
    assert_eq!(bench.after(1), "x1");
}

#[test]
fn what_nobody_uses_is_closed_and_not_reviewed() {
    let mut bench = Bench::new(&[1]);
    bench.want();
    bench.fail(1);
    bench.connect(Some(2), Lane::Tls, Some(1), 1000);
    assert_eq!(bench.after(60_000), "", "no review");
    assert_eq!(bench.after(119_999), "");
    assert_eq!(bench.after(1), "x1");
    assert_eq!(bench.state(), State::Idle);
}

#[test]
fn both_ends_prefer_the_way_that_the_lesser_name_dialled() {
    for (node, peer) in [("a", "b"), ("b", "a")] {
        for own_first in [true, false] {
            let mut choice = Choice::new(Timing::default(), &ALL, node, peer);
            let way = |id, is_dialled| Way {
                id,
                lane: Lane::Quic,
                remote: Some(address(1)),
                is_dialled,
                rtt_us: 1000,
            };
            choice.connected(ms(1), None, way(1, own_first));
            choice.connected(ms(1), None, way(2, !own_first));
            let by_a = if (node == "a") == own_first { 1 } else { 2 };
            assert_eq!(choice.state(ms(1)), State::Up(by_a), "{node} {own_first}");
        }
    }
}

#[test]
fn a_peer_that_came_through_the_master_is_tried_directly() {
    let mut bench = Bench::new(&[1]);
    assert_eq!(bench.connect(None, Lane::Relay, None, 0), "1=quic .1");
    assert_eq!(bench.state(), State::Up(1));
    assert_eq!(bench.fail(1), "2=tls .1");
    assert_eq!(bench.fail(2), "");
    assert_eq!(bench.state(), State::Up(1));
}

#[test]
fn a_way_that_gives_no_answer_is_not_used_until_it_is_heard() {
    let mut bench = Bench::new(&[1]);
    bench.want();
    bench.connect(Some(1), Lane::Quic, Some(1), 1000);
    bench.choice.suspect(bench.now, 1);
    assert_eq!(bench.state(), State::Trying);
    assert_eq!(bench.after(0), "2=quic .1");
    bench.use_way(1, 0);
    assert_eq!(bench.state(), State::Up(1), "it was heard");
    bench.choice.suspect(bench.now, 1);
    bench.connect(Some(2), Lane::Quic, Some(1), 1000);
    assert_eq!(bench.state(), State::Up(2));
}

#[test]
fn quic_that_loses_much_is_left_for_tls() {
    let mut bench = Bench::new(&[1]);
    bench.want();
    bench.connect(Some(1), Lane::Quic, Some(1), 1000);
    bench.use_way(1, 2500);
    assert_eq!(bench.after(60_000), "2=tls .1");
    assert_eq!(bench.connect(Some(2), Lane::Tls, Some(1), 1000), "");
    assert_eq!(bench.state(), State::Up(2));
}

#[test]
fn of_two_addresses_the_faster_is_used() {
    let mut bench = Bench::new(&[1, 2]);
    bench.want();
    bench.after(150);
    assert_eq!(bench.connect(Some(2), Lane::Quic, Some(2), 9000), "-1");
    bench.use_way(1, 0);
    bench.choice.measured(1, Measured { rtt_us: 9000, n_streams: 1, ..Measured::default() });
    assert_eq!(bench.after(60_000), "3=quic .1");
    bench.connect(Some(3), Lane::Quic, Some(1), 6500);
    assert_eq!(bench.state(), State::Up(1), "not so much faster");
    assert_eq!(bench.after(10_000), "x2");
    bench.choice.measured(1, Measured { rtt_us: 9000, n_streams: 1, ..Measured::default() });
    assert_eq!(bench.after(120_000), "4=quic .1");
    bench.connect(Some(4), Lane::Quic, Some(1), 2000);
    assert_eq!(bench.state(), State::Up(3));
}

#[test]
fn a_peer_that_leaves_gets_nothing_new_and_is_dialled_again() {
    let mut bench = Bench::new(&[1]);
    bench.want();
    bench.connect(Some(1), Lane::Quic, Some(1), 1000);
    bench.use_way(1, 0);
    bench.choice.leaving(1);
    assert_eq!(bench.state(), State::Idle);
    assert_eq!(bench.want(), "2=quic .1");
}

#[test]
fn what_follows_no_change_of_the_network_has_to_prove_itself() {
    let mut bench = Bench::new(&[1]);
    bench.want();
    bench.connect(Some(1), Lane::Quic, Some(1), 1000);
    bench.choice.network_changed(bench.now);
    assert_eq!(bench.state(), State::Up(1), "who dialled by QUIC may move");
    let mut bench = Bench::new(&[1]);
    bench.connect(None, Lane::Quic, Some(1), 1000);
    bench.use_way(1, 0);
    bench.choice.network_changed(bench.now);
    assert_eq!((bench.after(0).as_str(), bench.state()), ("1=quic .1", State::Trying));
}

#[test]
fn a_peer_that_moved_is_dialled_where_it_is_now() {
    let mut bench = Bench::new(&[1]);
    bench.want();
    bench.connect(Some(1), Lane::Quic, Some(1), 1000);
    bench.use_way(1, 0);
    bench.choice.set_addresses(bench.now, vec![address(2)]);
    assert_eq!(bench.after(0), "2=quic .2");
    // While it is looked for, it moves once more.
    bench.choice.set_addresses(bench.now, vec![address(3)]);
    assert_eq!(bench.after(0), "3=quic .3 4=tls .3");
}

#[test]
fn what_breaks_while_better_is_looked_for_is_looked_for_too() {
    let mut bench = Bench::new(&[1]);
    bench.want();
    assert_eq!(bench.after(300), "2=tls .1");
    bench.connect(Some(2), Lane::Tls, Some(1), 1000);
    bench.choice.closed(bench.now, 1, "broken");
    assert_eq!((bench.after(300).as_str(), bench.state()), ("3=tls .1", State::Trying));
    assert_eq!(bench.fail(3), "");
    assert_eq!(bench.fail(1), "4=relay");
    // The same where it falls silent.
    let mut bench = Bench::new(&[1]);
    bench.want();
    bench.after(300);
    bench.connect(Some(2), Lane::Tls, Some(1), 1000);
    bench.choice.suspect(bench.now, 1);
    assert_eq!(bench.after(300), "3=tls .1");
}

#[test]
fn where_both_dial_at_once_none_is_taken_back() {
    let mut bench = Bench::new(&[1]);
    bench.want();
    bench.after(300);
    assert_eq!(bench.connect(None, Lane::Quic, Some(1), 1000), "-2");
    assert_eq!(bench.state(), State::Up(1));
    assert_eq!(bench.connect(Some(1), Lane::Quic, Some(1), 1000), "");
    assert_eq!(bench.state(), State::Up(2), "the lesser name's");
    assert_eq!(bench.after(10_000), "x1");
}

#[test]
fn only_what_is_allowed_is_dialled() {
    let mut bench = Bench::new(&[1]);
    bench.choice = Choice::new(Timing::default(), &[Lane::Tls], "a", "b");
    assert_eq!(bench.want(), "");
    assert_eq!(bench.state(), State::Down(bench.now + ms(1000)));
    assert_eq!(bench.choice.why(), "no address of it is known");
    bench.choice.set_addresses(bench.now, vec![address(1)]);
    assert_eq!(bench.want(), "1=tls .1");
    assert_eq!(bench.fail(1), "");
}
