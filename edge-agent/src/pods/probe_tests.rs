//! Probes, on the machine of [`super::world`].

use std::time::Duration;

use expect_test::expect;
use wire::pod::{ContainerV1, HandlerV1, PodV1, ProbeV1, RestartPolicyV1};
use wire::status::PhaseV1;

use super::tests::{container, pod};
use super::world::World;
use super::*;

/// Every 10 s, three failures.
pub(super) fn probe() -> ProbeV1 {
    ProbeV1 {
        handler: HandlerV1::Tcp { host: String::new(), port: 80 },
        initial_delay_s: 0,
        timeout_s: 1,
        period_s: 10,
        success_threshold: 1,
        failure_threshold: 3,
        termination_grace_s: None,
    }
}

fn probed(kind: ProbeKind, probe: ProbeV1) -> ContainerV1 {
    let mut a = container("a");
    match kind {
        ProbeKind::Startup => a.probes.startup = Some(probe),
        ProbeKind::Liveness => a.probes.liveness = Some(probe),
        ProbeKind::Readiness => a.probes.readiness = Some(probe),
    }
    a
}

impl World {
    fn say(&mut self, kind: ProbeKind, answer: Answer) {
        self.answers.insert(("a".to_owned(), kind), answer);
    }

    /// Whether `a` is started and ready.
    fn health(&self) -> (bool, bool) {
        let report = status(&self.desired, &self.state, self.now);
        (report.containers[0].started, report.containers[0].ready)
    }
}

fn failure() -> Answer {
    Answer::Failure("no".into())
}

#[test]
fn readiness_is_false_until_the_first_success_and_flips_at_its_thresholds() {
    let p = ProbeV1 { initial_delay_s: 3, success_threshold: 2, ..probe() };
    let mut world = World::new(pod(vec![probed(ProbeKind::Readiness, p)]));
    world.settle();
    assert_eq!(world.health(), (true, false));
    let mut seen = vec![];
    for answer in [true, false, true, true, false, false, true, false, false, false, true, true] {
        world.say(ProbeKind::Readiness, if answer { Answer::Success } else { failure() });
        let waited = world.wake().unwrap().as_secs();
        seen.push((waited, world.health().1));
    }
    let waits: Vec<u64> = seen.iter().map(|(waited, _)| *waited).collect();
    assert_eq!(waits, [3, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10]);
    let ready: Vec<bool> = seen.iter().map(|(_, ready)| *ready).collect();
    let (t, f) = (true, false);
    assert_eq!(ready, [f, f, f, t, t, t, t, t, t, f, f, t]);
    assert_eq!(world.state.containers[0].restarts(), 0);
}

#[test]
fn liveness_ends_the_run_with_its_own_grace() {
    let p = ProbeV1 { termination_grace_s: Some(4), ..probe() };
    let mut world = World::new(pod(vec![probed(ProbeKind::Liveness, p)]));
    world.ignores_term = true;
    world.settle();
    world.steps.clear();
    world.happenings.clear();
    world.say(ProbeKind::Liveness, failure());
    world.wake();
    world.wake();
    assert_eq!(world.steps, Vec::<String>::new());
    world.wake();
    assert_eq!(world.wake(), Some(Duration::from_secs(4)));
    world.check(expect![[r#"
        Term a 0 Unhealthy(Liveness)
        Kill a 0 Unhealthy(Liveness)
        remove a 0
        pull a
        start a 1
        ! Unhealthy: Liveness probe failed: no
        ! Unhealthy: Liveness probe failed: no
        ! Unhealthy: Liveness probe failed: no
        ! Killing: Container a failed liveness probe, will be restarted
        ! Created: Created container: a
        ! Started: Started container a
        ! Unhealthy: Liveness probe failed: no
        Running terminated=false
        a: running restarts=1 last=137 Error
    "#]]);
}

#[test]
fn a_run_that_liveness_ended_is_not_followed_where_none_may() {
    let a = probed(ProbeKind::Liveness, ProbeV1 { failure_threshold: 1, ..probe() });
    let mut world = World::new(PodV1 { restart_policy: RestartPolicyV1::Never, ..pod(vec![a]) });
    world.say(ProbeKind::Liveness, failure());
    world.settle();
    assert_eq!(world.state.finished, Some(PhaseV1::Failed));
    assert!(world.happenings.contains(&"Killing: Container a failed liveness probe".to_owned()));
}

#[test]
fn startup_holds_the_others_back_and_its_failure_ends_the_run() {
    let mut a = probed(ProbeKind::Startup, ProbeV1 { period_s: 1, ..probe() });
    a.probes.liveness = Some(ProbeV1 { failure_threshold: 1, ..probe() });
    a.probes.readiness = Some(probe());
    let mut world = World::new(pod(vec![a]));
    world.say(ProbeKind::Startup, failure());
    world.say(ProbeKind::Liveness, failure());
    world.settle();
    assert_eq!(world.wake(), Some(Duration::from_secs(1)));
    assert_eq!((world.health(), world.state.containers[0].restarts()), ((false, false), 0));
    world.wake();
    assert_eq!(world.state.containers[0].restarts(), 1, "the third failure");
    world.say(ProbeKind::Startup, Answer::Success);
    world.say(ProbeKind::Liveness, Answer::Success);
    world.wake();
    assert_eq!(world.health(), (true, true), "asked as soon as it is up");
    // A startup probe that has passed is not asked again.
    world.say(ProbeKind::Startup, failure());
    for _ in 0..5 {
        world.wake();
    }
    assert_eq!(world.health(), (true, true));
}

#[test]
fn what_cannot_be_asked_counts_for_nothing_and_is_said_ever_more_rarely() {
    let p = ProbeV1 { failure_threshold: 1, ..probe() };
    let mut world = World::new(pod(vec![probed(ProbeKind::Liveness, p)]));
    world.settle();
    world.happenings.clear();
    world.say(ProbeKind::Liveness, Answer::Unknown("no commands".into()));
    for _ in 0..20 {
        world.wake();
    }
    assert_eq!(world.state.containers[0].restarts(), 0);
    let text = "Unhealthy: Liveness probe errored and resulted in unknown state: no commands";
    assert_eq!(world.happenings, vec![text; 5], "the 1st, 2nd, 4th, 8th and 16th");
}

#[test]
fn a_pod_that_stops_is_asked_for_readiness_only() {
    let mut a = probed(ProbeKind::Liveness, ProbeV1 { failure_threshold: 1, ..probe() });
    a.probes.readiness = Some(ProbeV1 { failure_threshold: 1, ..probe() });
    let mut world = World::new(pod(vec![a]));
    world.ignores_term = true;
    world.settle();
    assert_eq!(world.health(), (true, true));
    world.edit(|pod| pod.deletion_grace_s = Some(60));
    world.settle();
    world.say(ProbeKind::Liveness, failure());
    world.say(ProbeKind::Readiness, failure());
    world.wake();
    assert_eq!(world.health(), (true, false));
    let unhealthy: Vec<&String> =
        world.happenings.iter().filter(|h| h.starts_with("Unhealthy")).collect();
    assert_eq!(unhealthy, ["Unhealthy: Readiness probe failed: no"]);
}

#[test]
fn a_new_agent_keeps_what_was_found_and_counts_anew() {
    let mut a = probed(ProbeKind::Readiness, probe());
    a.probes.liveness = Some(probe());
    let mut world = World::new(pod(vec![a]));
    world.settle();
    world.say(ProbeKind::Liveness, failure());
    world.wake();
    world.wake();
    world.probing = Probing::default();
    world.state.resume();
    world.settle();
    assert_eq!(world.health(), (true, true), "ready without being asked");
    assert_eq!(world.state.containers[0].restarts(), 0, "the first failure of this agent");
}
