//! Init containers, sidecars, ephemeral containers, hooks, grace and deadlines,
//! on the machine of [`super::world`].

use std::time::Duration;

use expect_test::expect;
use proptest::prelude::*;
use wire::pod::{ContainerV1, HandlerV1, PodV1, RestartPolicyV1};
use wire::status::{PhaseV1, StateV1};

use super::tests::{container, pod};
use super::world::World;
use super::*;
use crate::results::Record;

fn sidecar(name: &str) -> ContainerV1 {
    ContainerV1 { restart_policy: Some(RestartPolicyV1::Always), ..container(name) }
}

/// A pod with these init containers and a main one, `main`.
fn with_init(init: Vec<ContainerV1>, policy: RestartPolicyV1) -> PodV1 {
    PodV1 { init_containers: init, restart_policy: policy, ..pod(vec![container("main")]) }
}

impl World {
    fn runs_now(&self) -> Vec<&str> {
        let is_running = |c: &&Container| matches!(c.run, Run::Running { .. });
        self.state.containers.iter().filter(is_running).map(|c| c.name.as_str()).collect()
    }

    fn forget_steps(&mut self) {
        self.steps.clear();
        self.happenings.clear();
    }

    /// As after a power cut: what was on disk, and nothing else.
    fn reboot(&mut self) {
        let mut state = PodState::new(&self.desired.pod, self.now.wall_ms);
        for (new, old) in state.containers.iter_mut().zip(&self.state.containers) {
            new.next_attempt = old.next_attempt;
            new.n_runs = old.next_attempt;
        }
        self.kept.restore(&mut state, self.desired.pod.active_deadline_s);
        self.state = state;
        self.runs.clear();
        self.now.mono = Duration::from_secs(5);
    }
}

#[test]
fn init_containers_run_one_after_another_before_the_others() {
    let init = vec![container("one"), container("two")];
    let mut world = World::new(with_init(init, RestartPolicyV1::Always));
    world.settle().check(expect![[r#"
        sandbox
        volumes
        pull one
        start one 0
        ! Created: Created container: one
        ! Started: Started container one
        Pending terminated=false
        one: running restarts=0
        two: waiting PodInitializing restarts=0
        main: waiting PodInitializing restarts=0
    "#]]);
    world.exit("one", 0);
    world.settle();
    assert_eq!(world.runs_now(), ["two"]);
    world.exit("two", 0);
    world.forget_steps();
    world.settle().check(expect![[r#"
        remove two 0
        pull main
        start main 0
        ! Created: Created container: main
        ! Started: Started container main
        Running terminated=false
        one: terminated 0 Completed restarts=0
        two: terminated 0 Completed restarts=0
        main: running restarts=0
    "#]]);
    // A restart of a main container runs no init container again.
    world.exit("main", 1);
    world.forget_steps();
    world.settle();
    assert_eq!(world.steps, ["remove main 0", "pull main", "start main 1"]);
    // A reboot does.
    world.reboot();
    world.settle();
    assert_eq!(world.runs_now(), ["one"]);
}

#[test]
fn an_init_container_that_fails_is_tried_again_or_fails_the_pod() {
    for policy in [RestartPolicyV1::Always, RestartPolicyV1::OnFailure] {
        let mut world = World::new(with_init(vec![container("one")], policy));
        world.settle();
        world.exit("one", 1);
        world.settle();
        world.exit("one", 1);
        world.settle();
        assert_eq!(world.wake(), Some(Duration::from_secs(10)), "{policy:?}");
        assert_eq!(world.runs_now(), ["one"]);
        assert_eq!(world.state.containers[0].restarts(), 2);
    }
    let mut world = World::new(with_init(vec![container("one")], RestartPolicyV1::Never));
    world.settle();
    world.exit("one", 3);
    world.forget_steps();
    world.settle().check(expect![[r#"
        remove one 0
        record Failed
        tear down
        Failed terminated=true
        one: terminated 3 Error restarts=0
        main: waiting PodInitializing restarts=0
    "#]]);
    // And stays failed after a reboot.
    let record = Record::of(&world.state, &world.desired.pod);
    let mut again = World::new((*world.desired.pod).clone());
    record.restore(&mut again.state);
    again.settle();
    assert!(again.runs.is_empty());
    let report = status(&again.desired, &again.state, again.now);
    let StateV1::Terminated(end) = &report.init_containers[0].state else { panic!("{report:?}") };
    assert_eq!((report.phase, end.exit_code), (PhaseV1::Failed, 3));
}

#[test]
fn an_init_containers_own_policy_wins() {
    let once = ContainerV1 { restart_policy: Some(RestartPolicyV1::Never), ..container("one") };
    let mut world = World::new(with_init(vec![once], RestartPolicyV1::Always));
    world.settle();
    world.exit("one", 1);
    world.settle();
    assert_eq!(world.state.finished, Some(PhaseV1::Failed));
}

#[test]
fn a_sidecar_comes_first_and_goes_last() {
    let init = vec![sidecar("proxy"), container("setup"), sidecar("log")];
    let mut world = World::new(with_init(init, RestartPolicyV1::Never));
    world.settle();
    assert_eq!(world.runs_now(), ["proxy", "setup"], "the next one waits until it is up only");
    world.exit("setup", 0);
    world.settle();
    assert_eq!(world.runs_now(), ["proxy", "log", "main"]);
    // It is always started again, and holds nobody up any more.
    world.exit("proxy", 0);
    world.settle();
    assert_eq!(world.runs_now(), ["proxy", "log", "main"]);
    // The pod is over with its main container; sidecars do not count for the phase.
    world.exit("main", 0);
    world.ignores_term = true;
    world.forget_steps();
    world.settle().check(expect![[r#"
        remove main 0
        Term log 0 PodStops
        ! Killing: Stopping container log
        Running terminated=false
        proxy: running restarts=1 last=0 Completed
        setup: terminated 0 Completed restarts=0
        log: running restarts=0
        main: terminated 0 Completed restarts=0
    "#]]);
    world.exit("log", 1);
    world.settle();
    world.exit("proxy", 1);
    world.settle().check(expect![[r#"
        remove log 0
        Term proxy 1 PodStops
        remove proxy 1
        record Succeeded
        tear down
        ! Killing: Stopping container proxy
        Succeeded terminated=true
        proxy: terminated 1 Error restarts=1 last=0 Completed
        setup: terminated 0 Completed restarts=0
        log: terminated 1 Error restarts=0
        main: terminated 0 Completed restarts=0
    "#]]);
}

#[test]
fn sidecars_have_what_the_others_leave_of_the_grace() {
    let mut world =
        World::new(with_init(vec![sidecar("a"), sidecar("b")], RestartPolicyV1::Always));
    world.ignores_term = true;
    world.settle();
    assert_eq!(world.runs_now(), ["a", "b", "main"]);
    world.forget_steps();
    world.edit(|pod| pod.deletion_grace_s = Some(10));
    world.settle();
    assert_eq!(world.steps, ["Term main 0 PodStops"]);
    world.advance(Duration::from_secs(4));
    world.exit("main", 0);
    world.forget_steps();
    world.settle();
    assert_eq!(world.steps, ["remove main 0", "Term b 0 PodStops"]);
    // `b` does not go: at the end of the grace it is killed, and `a` has 2 s.
    assert_eq!(world.wake(), Some(Duration::from_secs(6)));
    assert!(world.steps.contains(&"Term a 0 PodStops".to_owned()), "{:?}", world.steps);
    assert!(world.steps.contains(&"Kill b 0 PodStops".to_owned()), "{:?}", world.steps);
    assert_eq!(world.wake(), Some(Duration::from_secs(2)));
    assert!(world.state.torn_down);
}

#[test]
fn a_second_delete_shortens_the_grace_of_all() {
    let mut world = World::new(with_init(vec![sidecar("a")], RestartPolicyV1::Always));
    world.ignores_term = true;
    world.settle();
    world.edit(|pod| pod.deletion_grace_s = Some(300));
    world.settle();
    world.edit(|pod| pod.deletion_grace_s = Some(0));
    world.settle();
    assert!(world.state.torn_down);
}

#[test]
fn a_sidecar_holds_the_next_one_until_its_startup_probe_passes() {
    let mut proxy = sidecar("proxy");
    proxy.probes.startup = Some(super::probe_tests::probe());
    let mut world = World::new(with_init(vec![proxy], RestartPolicyV1::Always));
    let key = ("proxy".to_owned(), ProbeKind::Startup);
    world.answers.insert(key.clone(), Answer::Failure("not yet".into()));
    world.settle();
    assert_eq!(world.runs_now(), ["proxy"]);
    let report = status(&world.desired, &world.state, world.now);
    assert!(!report.init_containers[0].started);
    world.answers.remove(&key);
    world.wake();
    assert_eq!(world.runs_now(), ["proxy", "main"]);
}

#[test]
fn an_ephemeral_container_disturbs_nobody_and_runs_once() {
    let mut world = World::new(pod(vec![container("a")]));
    world.settle();
    world.forget_steps();
    world.edit(|pod| pod.ephemeral_containers.push(container("look")));
    world.settle().check(expect![[r#"
        pull look
        start look 0
        ! Created: Created container: look
        ! Started: Started container look
        Running terminated=false
        a: running restarts=0
        look: running restarts=0
    "#]]);
    world.exit("look", 1);
    world.settle();
    world.advance(Duration::from_secs(1000));
    world.forget_steps();
    world.settle().check(expect![[r#"
        Running terminated=false
        a: running restarts=0
        look: terminated 1 Error restarts=0
    "#]]);
    world.desired.present = false;
    world.settle();
    assert!(world.forgotten && world.runs.is_empty());
}

#[test]
fn an_ephemeral_container_does_not_keep_a_pod_from_ending() {
    let mut world =
        World::new(PodV1 { restart_policy: RestartPolicyV1::Never, ..pod(vec![container("a")]) });
    world.settle();
    world.edit(|pod| pod.ephemeral_containers.push(container("look")));
    world.settle();
    world.exit("a", 0);
    world.settle();
    assert_eq!(world.state.finished, Some(PhaseV1::Succeeded));
    assert!(world.runs.is_empty());
}

#[test]
fn hooks_frame_a_run() {
    let mut a = container("a");
    a.lifecycle.post_start = Some(HandlerV1::Sleep(1));
    a.lifecycle.pre_stop = Some(HandlerV1::Sleep(1));
    let mut world = World::new(pod(vec![a]));
    world.slow_hooks = true;
    world.settle().check(expect![[r#"
        sandbox
        volumes
        pull a
        start a 0
        post-start a 0
        ! Created: Created container: a
        ! Started: Started container a
        Pending terminated=false
        a: waiting ContainerCreating restarts=0
    "#]]);
    let done = Outcome::PostStarted { container: "a".into(), attempt: 0, result: Ok(()) };
    world.state.apply(&[7; 16], done, world.now);
    world.settle();
    assert_eq!(phase(&world.desired, &world.state), PhaseV1::Running);
    world.edit(|pod| pod.deletion_grace_s = Some(10));
    world.settle();
    assert_eq!(world.steps, ["pre-stop a 0 PodStops"]);
    // The hook takes all the grace: the container still has a moment.
    world.ignores_term = true;
    assert_eq!(world.wake(), Some(Duration::from_secs(10)));
    assert_eq!(world.steps.last().unwrap(), "Term a 0 PodStops");
    assert_eq!(world.wake(), Some(Duration::from_secs(2)));
    assert!(world.state.torn_down);
}

#[test]
fn a_hook_that_fails_after_the_start_ends_the_run_and_one_before_the_stop_does_not_matter() {
    let mut a = container("a");
    a.lifecycle.post_start = Some(HandlerV1::Sleep(1));
    let mut world = World::new(pod(vec![a]));
    world.hook_error = Some("exit 1".into());
    world.settle();
    world.forget_steps();
    world.wake();
    world.check(expect![[r#"
        pull a
        start a 2
        post-start a 2
        Term a 2 HookFailed
        remove a 2
        ! Created: Created container: a
        ! Started: Started container a
        ! FailedPostStartHook: PostStartHook failed: exit 1
        ! Killing: FailedPostStartHook
        ! BackOff: Back-off restarting failed container a in pod web-0_default(07070707-0707-0707-0707-070707070707)
        Running terminated=false
        a: waiting CrashLoopBackOff back-off 20s restarting failed container=a pod=web-0_default(07070707-0707-0707-0707-070707070707) restarts=2 last=143 Error
    "#]]);
    let mut a = container("a");
    a.lifecycle.pre_stop = Some(HandlerV1::Sleep(1));
    let mut world = World::new(pod(vec![a]));
    world.hook_error = Some("exit 1".into());
    world.settle();
    world.forget_steps();
    world.edit(|pod| pod.deletion_grace_s = Some(10));
    world.settle();
    assert_eq!(
        world.happenings[..2],
        ["Killing: Stopping container a", "FailedPreStopHook: PreStopHook failed: exit 1"]
    );
    assert!(world.state.torn_down);
}

#[test]
fn a_deadline_ends_the_pod_also_over_reboots() {
    let limited = PodV1 { active_deadline_s: Some(100), ..pod(vec![container("a")]) };
    let mut world = World::new(limited.clone());
    world.settle();
    world.advance(Duration::from_secs(99));
    world.settle();
    assert_eq!(world.runs_now(), ["a"]);
    world.forget_steps();
    world.wake();
    let report = status(&world.desired, &world.state, world.now);
    assert_eq!((report.phase, report.reason.as_str()), (PhaseV1::Failed, "DeadlineExceeded"));
    assert_eq!(report.message, "Pod was active on the node longer than the specified deadline");
    assert!(world.happenings[0].starts_with("DeadlineExceeded: "), "{:?}", world.happenings);

    // A board that boots every two seconds comes to the deadline as well.
    let mut world = World::new(limited);
    for n in 0.. {
        assert!(n < 20, "boots extend the deadline: {:?}", world.state.active);
        world.settle();
        world.advance(Duration::from_secs(2));
        world.settle();
        if world.state.finished.is_some() {
            break;
        }
        world.reboot();
    }
}

#[test]
fn what_ended_for_good_does_not_run_again_after_a_reboot() {
    let mut world = World::new(PodV1 {
        restart_policy: RestartPolicyV1::OnFailure,
        init_containers: vec![container("setup")],
        ..pod(vec![container("a"), container("b")])
    });
    world.settle();
    world.exit("setup", 0);
    world.settle();
    world.exit("a", 0);
    world.settle();
    assert_eq!(world.kept.ended.len(), 1);
    world.reboot();
    world.settle();
    assert_eq!(world.runs_now(), ["setup"]);
    world.exit("setup", 0);
    world.settle();
    assert_eq!(world.runs_now(), ["b"]);
    world.exit("b", 0);
    world.settle();
    assert_eq!(world.state.finished, Some(PhaseV1::Succeeded));
}

#[test]
fn an_agent_that_lost_its_notes_runs_no_init_container_again() {
    let init = vec![container("one"), container("two")];
    // What is left to be found: a run of the second, or of the main one.
    for found in ["two", "main"] {
        let mut world = World::new(with_init(init.clone(), RestartPolicyV1::Always));
        world.runs.insert((found.into(), 0), Seen::Running(9));
        world.state.container_mut(found).unwrap().run = Run::Starting {
            attempt: 0,
            image: "registry.local/app:1".into(),
            image_id: String::new(),
            stop_signal: None,
            in_flight: false,
        };
        world.settle();
        assert_eq!(world.runs_now(), [found]);
        assert_eq!(world.runs.len(), 1, "{:?}", world.runs);
    }
}

#[test]
fn a_container_of_a_pod_may_have_a_policy_of_its_own() {
    let once = ContainerV1 { restart_policy: Some(RestartPolicyV1::Never), ..container("once") };
    let mut world = World::new(pod(vec![once, container("a")]));
    world.settle();
    world.exit("once", 1);
    world.settle();
    assert_eq!(world.runs_now(), ["a"]);
    assert_eq!(phase(&world.desired, &world.state), PhaseV1::Running);
}

/// What may happen to a pod with everything in it.
#[derive(Clone, Debug)]
enum Event {
    Exit(usize, i32),
    Vanish(usize),
    Advance(u64),
    RestartAgent,
    Hooks(bool, bool),
    Probe(u8, bool),
    Debug,
    Delete(u32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0..6_usize, prop_oneof![Just(0), Just(1)]).prop_map(|(c, code)| Event::Exit(c, code)),
        1 => (0..6_usize).prop_map(Event::Vanish),
        6 => (0..200_u64).prop_map(Event::Advance),
        2 => Just(Event::RestartAgent),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(slow, fail)| Event::Hooks(slow, fail)),
        2 => (0..3_u8, any::<bool>()).prop_map(|(kind, well)| Event::Probe(kind, well)),
        1 => Just(Event::Debug),
        1 => (0..60_u32).prop_map(Event::Delete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever happens, the order is kept, a plan comes to an end, and in the end
    /// nothing is left. `World` asserts most of it.
    #[test]
    fn a_pod_with_everything_keeps_its_order(
        never in any::<bool>(),
        events in proptest::collection::vec(event(), 0..40),
    ) {
        let mut main = container("main");
        main.lifecycle.post_start = Some(HandlerV1::Sleep(1));
        main.lifecycle.pre_stop = Some(HandlerV1::Sleep(1));
        main.probes.startup = Some(super::probe_tests::probe());
        main.probes.liveness = Some(super::probe_tests::probe());
        main.probes.readiness = Some(super::probe_tests::probe());
        let policy = if never { RestartPolicyV1::Never } else { RestartPolicyV1::OnFailure };
        let mut world = World::new(PodV1 {
            init_containers: vec![sidecar("s1"), container("i1"), sidecar("s2"), container("i2")],
            active_deadline_s: Some(3000),
            ..PodV1 { restart_policy: policy, ..pod(vec![main]) }
        });
        world.settle();
        for event in events {
            match event {
                Event::Exit(c, code) => {
                    let running = world.state.containers.get(c)
                        .filter(|c| matches!(c.run, Run::Running { .. })).map(|c| c.name.clone());
                    if let Some(name) = running {
                        world.exit(&name, code);
                    }
                }
                Event::Vanish(c) => {
                    let found = world.state.containers.get(c)
                        .and_then(|c| Some((c.name.clone(), c.run.attempt()?)));
                    if let Some(run) = found.filter(|run| world.runs.contains_key(run)) {
                        world.runs.insert(run, Seen::Lost);
                    }
                }
                Event::Advance(seconds) => world.advance(Duration::from_secs(seconds)),
                Event::RestartAgent => {
                    let bytes = postcard::to_stdvec(&world.state).unwrap();
                    world.state = postcard::from_bytes(&bytes).unwrap();
                    world.state.resume();
                    world.probing = Probing::default();
                }
                Event::Hooks(slow, fail) => {
                    world.slow_hooks = slow;
                    world.hook_error = fail.then(|| "no".into());
                }
                Event::Probe(kind, well) => {
                    let kind = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness]
                        [usize::from(kind)];
                    let answer = if well { Answer::Success } else { Answer::Failure("no".into()) };
                    world.answers.insert(("main".into(), kind), answer);
                }
                Event::Debug => {
                    if world.desired.pod.ephemeral_containers.is_empty() {
                        world.edit(|pod| pod.ephemeral_containers.push(container("look")));
                    }
                }
                Event::Delete(grace) => world.edit(|pod| pod.deletion_grace_s = Some(grace)),
            }
            world.settle();
            let running = world.runs_now();
            if !world.desired.is_stopping() && world.state.finished.is_none()
                && world.state.containers[4].n_runs == 0
            {
                prop_assert!(!(running.contains(&"i1") && running.contains(&"i2")));
                prop_assert!(!(running.contains(&"i1") && running.contains(&"s2")));
            }
            if running.contains(&"main") {
                prop_assert!(!running.contains(&"i1") && !running.contains(&"i2"));
            }
            prop_assert!(world.state.container("look").is_none_or(|c| c.n_runs <= 1));
        }
        world.slow_hooks = false;
        world.desired.present = false;
        for _ in 0..100 {
            world.settle();
            if world.forgotten {
                break;
            }
            world.advance(Duration::from_secs(60));
        }
        prop_assert!(world.forgotten);
        prop_assert!(world.runs.is_empty());
    }
}

#[test]
fn a_restart_ends_what_runs_gracefully_and_tries_at_once_what_waits() {
    let policy = RestartPolicyV1::Never;
    let mut world = World::new(with_init(vec![container("first"), sidecar("side")], policy));
    world.settle();
    world.exit("first", 0);
    world.settle();
    assert_eq!(world.runs_now(), ["side", "main"]);
    world.forget_steps();
    world.state.restart(world.now.mono);
    world.settle();
    // What is done is not done again; the others begin anew, whatever the policy.
    assert_eq!(world.runs_now(), ["side", "main"]);
    let counts: Vec<u32> = world.state.containers.iter().map(Container::restarts).collect();
    assert_eq!(counts, [0, 1, 1]);
    let said = "Killing: Container main was told to restart".to_owned();
    assert!(world.happenings.contains(&said), "{:?}", world.happenings);
    assert_eq!(world.state.finished, None);

    // One that waits for its back-off starts at once.
    let mut world = World::new(pod(vec![container("a")]));
    world.settle();
    for _ in 0..4 {
        world.exit("a", 1);
        world.settle();
    }
    assert!(world.runs_now().is_empty(), "it waits");
    world.state.restart(world.now.mono);
    world.settle();
    assert_eq!(world.runs_now(), ["a"]);
}
