//! Pods in a world that answers each step, with and without failures.

use std::sync::Arc;
use std::time::Duration;

use expect_test::expect;
use proptest::prelude::*;
use wire::pod::{
    ContainerV1, EnvFromV1, KeyPathV1, KeysV1, PodV1, ProjectionV1, RestartPolicyV1, SourceV1,
    VolumeSourceV1, VolumeV1,
};
use wire::status::{PhaseV1, StateV1};

use super::world::World;
use super::*;
use crate::tokens::Held;

pub(crate) fn container(name: &str) -> ContainerV1 {
    ContainerV1::new(name, "registry.local/app:1")
}

pub(crate) fn pod(containers: Vec<ContainerV1>) -> PodV1 {
    PodV1 {
        labels: vec![("app".into(), "web".into())],
        containers,
        ..PodV1::new([7; 16], "default", "web-0")
    }
}

pub(crate) fn keys(source: SourceV1, data: &[(&str, &str)]) -> KeySet {
    let data = data.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
    let keys = KeysV1 { namespace: "default".into(), source: source.clone(), data, ext: vec![] };
    KeySet::from([(source, Keys { uid: [9; 16], generation: 1, data: Arc::new(keys) })])
}

#[test]
fn a_new_pod_comes_up_and_stays() {
    let mut world = World::new(pod(vec![container("a"), container("b")]));
    world.settle().check(expect![[r#"
        sandbox
        volumes
        pull a
        pull b
        start a 0
        start b 0
        ! Created: Created container: a
        ! Started: Started container a
        ! Created: Created container: b
        ! Started: Started container b
        Running terminated=false
        a: running restarts=0
        b: running restarts=0
    "#]]);
    assert_eq!(plan(&world.desired, &world.state, world.now.mono), Plan::default());
}

#[test]
fn a_crash_restarts_at_once_then_backs_off() {
    let mut world = World::new(pod(vec![container("a")]));
    world.settle();
    world.exit("a", 3);
    world.settle();
    world.steps.clear();
    world.happenings.clear();
    world.exit("a", 3);
    world.settle().check(expect![[r#"
        remove a 1
        ! BackOff: Back-off restarting failed container a in pod web-0_default(07070707-0707-0707-0707-070707070707)
        Running terminated=false
        a: waiting CrashLoopBackOff back-off 10s restarting failed container=a pod=web-0_default(07070707-0707-0707-0707-070707070707) restarts=1 last=3 Error
    "#]]);
    let mut waits = vec![];
    for _ in 0..7 {
        waits.push(world.wake().unwrap().as_secs());
        world.exit("a", 3);
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(world.state.containers[0].restarts(), 8);
}

#[test]
fn a_long_run_resets_the_back_off() {
    let mut world = World::new(pod(vec![container("a")]));
    for _ in 0..4 {
        world.settle();
        world.exit("a", 1);
        world.wake();
    }
    world.advance(backoff::RESET_AFTER);
    world.exit("a", 1);
    world.settle();
    assert!(matches!(world.container_state(), StateV1::Running { .. }), "restarts at once");
}

#[test]
fn every_policy_meets_every_exit() {
    use RestartPolicyV1::{Always, Never, OnFailure};
    for (policy, code, expected) in [
        (Always, 0, None),
        (Always, 1, None),
        (OnFailure, 0, Some(PhaseV1::Succeeded)),
        (OnFailure, 1, None),
        (Never, 0, Some(PhaseV1::Succeeded)),
        (Never, 1, Some(PhaseV1::Failed)),
        (Never, 137, Some(PhaseV1::Failed)),
    ] {
        let mut world = World::new(PodV1 { restart_policy: policy, ..pod(vec![container("a")]) });
        world.settle();
        world.exit("a", code);
        world.settle();
        assert_eq!(world.state.finished, expected, "{policy:?} {code}");
        assert_eq!(world.state.torn_down, expected.is_some(), "{policy:?} {code}");
        let runs = matches!(world.container_state(), StateV1::Running { .. });
        assert_eq!(runs, expected.is_none(), "{policy:?} {code}");
    }
}

#[test]
fn a_finished_pod_waits_for_all_its_containers() {
    let mut world = World::new(PodV1 {
        restart_policy: RestartPolicyV1::Never,
        ..pod(vec![container("a"), container("b")])
    });
    world.settle();
    world.exit("a", 0);
    world.settle();
    assert_eq!(phase(&world.desired, &world.state), PhaseV1::Running);
    world.exit("b", 2);
    world.steps.clear();
    world.happenings.clear();
    world.settle().check(expect![[r#"
        remove b 0
        record Failed
        tear down
        Failed terminated=true
        a: terminated 0 Completed restarts=0
        b: terminated 2 Error restarts=0
    "#]]);
}

#[test]
fn deletion_asks_waits_kills_and_cleans_up() {
    let mut world = World::new(pod(vec![container("a")]));
    world.ignores_term = true;
    world.settle();
    world.steps.clear();
    world.happenings.clear();
    world.edit(|pod| pod.deletion_grace_s = Some(5));
    assert_eq!(world.wake(), Some(Duration::from_secs(5)));
    world.check(expect![[r#"
        Term a 0 PodStops
        Kill a 0 PodStops
        remove a 0
        record Failed
        tear down
        ! Killing: Stopping container a
        Failed terminated=true
        a: terminated 137 Error restarts=0
    "#]]);
    world.desired.present = false;
    world.settle();
    assert!(world.forgotten);
}

#[test]
fn a_shorter_grace_takes_effect_at_once() {
    let mut world = World::new(pod(vec![container("a")]));
    world.ignores_term = true;
    world.settle();
    world.edit(|pod| pod.deletion_grace_s = Some(300));
    world.settle();
    world.advance(Duration::from_secs(1));
    world.edit(|pod| pod.deletion_grace_s = Some(0));
    world.settle();
    assert!(world.state.torn_down);
}

#[test]
fn a_pod_that_leaves_the_set_is_stopped_and_forgotten() {
    let mut world = World::new(pod(vec![container("a")]));
    world.settle();
    world.desired.present = false;
    world.settle();
    assert!(world.forgotten);
    assert!(world.runs.is_empty());
}

#[test]
fn a_finished_pod_never_runs_again() {
    let mut world = World::new(PodV1 {
        restart_policy: RestartPolicyV1::OnFailure,
        ..pod(vec![container("a")])
    });
    world.settle();
    world.exit("a", 0);
    world.settle();
    // As after a reboot: only what is on disk is known.
    let kept = crate::results::Record::of(&world.state, &world.desired.pod);
    let mut again = World::new((*world.desired.pod).clone());
    kept.restore(&mut again.state);
    again.settle();
    assert!(again.runs.is_empty());
    assert_eq!(phase(&again.desired, &again.state), PhaseV1::Succeeded);
    let StateV1::Terminated(end) = again.container_state() else { panic!("not terminated") };
    assert_eq!(end.exit_code, 0);
}

#[test]
fn a_changed_image_restarts_only_that_container() {
    let mut world = World::new(PodV1 {
        restart_policy: RestartPolicyV1::Never,
        ..pod(vec![container("a"), container("b")])
    });
    world.settle();
    world.steps.clear();
    world.happenings.clear();
    world.edit(|pod| pod.containers[0].image = "registry.local/app:2".into());
    world.settle().check(expect![[r#"
        pull a
        Term a 0 Replaced
        remove a 0
        pull a
        start a 1
        ! Killing: Container a definition changed, will be restarted
        ! Created: Created container: a
        ! Started: Started container a
        Running terminated=false
        a: running restarts=1 last=143 Error
        b: running restarts=0
    "#]]);
}

#[test]
fn labels_annotations_and_a_resolved_digest_restart_nothing() {
    let mut world = World::new(pod(vec![container("a")]));
    world.settle();
    world.steps.clear();
    world.edit(|pod| {
        pod.labels.push(("x".into(), "y".into()));
        pod.annotations.push(("x".into(), "y".into()));
        pod.containers[0].digest = "sha256:bb".into();
    });
    world.settle();
    assert_eq!(world.steps, Vec::<String>::new());
}

#[test]
fn a_new_image_that_cannot_be_had_leaves_the_old_one_running() {
    let mut world = World::new(pod(vec![container("a")]));
    world.settle();
    world.pull_error = Some(("ErrImagePull".into(), "no such tag".into()));
    world.edit(|pod| pod.containers[0].image = "registry.local/app:2".into());
    world.settle();
    assert!(matches!(world.container_state(), StateV1::Running { .. }));
}

#[test]
fn a_failed_pull_backs_off_and_recovers() {
    let mut world = World::new(pod(vec![container("a")]));
    world.pull_error = Some(("ErrImagePull".into(), "no such tag".into()));
    world.settle().check(expect![[r#"
        sandbox
        volumes
        pull a
        ! Failed: Failed to pull image "registry.local/app:1": no such tag
        ! Failed: Error: ErrImagePull
        Pending terminated=false
        a: waiting ErrImagePull no such tag restarts=0
    "#]]);
    world.wake();
    world.check(expect![[r#"
        ! BackOff: Back-off pulling image "registry.local/app:1"
        Pending terminated=false
        a: waiting ImagePullBackOff Back-off pulling image "registry.local/app:1": ErrImagePull: no such tag restarts=0
    "#]]);
    let mut waits = vec![];
    for _ in 0..6 {
        let start = world.now.mono;
        let n_steps = world.steps.len();
        while world.steps.len() == n_steps {
            world.wake();
        }
        waits.push((world.now.mono - start).as_secs());
        world.settle();
    }
    assert_eq!(waits, [7, 20, 40, 80, 160, 300]);
    world.pull_error = None;
    while !matches!(world.container_state(), StateV1::Running { .. }) {
        world.wake().unwrap();
    }
}

#[test]
fn a_missing_config_map_is_named_and_healed_by_its_arrival() {
    let c = ContainerV1 {
        env_from: vec![EnvFromV1 {
            prefix: String::new(),
            source: SourceV1::ConfigMap("cfg".into()),
            optional: false,
        }],
        ..container("a")
    };
    let mut world = World::new(pod(vec![c]));
    world.settle().check(expect![[r#"
        sandbox
        volumes
        pull a
        ! Failed: Error: configmap "cfg" not found
        Pending terminated=false
        a: waiting CreateContainerConfigError configmap "cfg" not found restarts=0
    "#]]);
    world.desired.keys = keys(SourceV1::ConfigMap("cfg".into()), &[("A", "1")]);
    world.settle();
    assert!(matches!(world.container_state(), StateV1::Running { .. }));
}

#[test]
fn a_missing_volume_source_holds_the_pod_and_a_changed_one_is_updated_in_place() {
    let source = SourceV1::Secret("s".into());
    let volume = VolumeV1 {
        name: "v".into(),
        source: VolumeSourceV1::Keys {
            source: source.clone(),
            items: vec![KeyPathV1 { key: "k".into(), path: "p".into(), mode: None }],
            default_mode: 0o644,
            optional: false,
        },
    };
    let mut world = World::new(PodV1 { volumes: vec![volume], ..pod(vec![container("a")]) });
    world.settle().check(expect![[r#"
        sandbox
        pull a
        ! FailedMount: MountVolume.SetUp failed for volume "v" : secret "s" not found
        Pending terminated=false
        a: waiting ContainerCreating MountVolume.SetUp failed for volume "v" : secret "s" not found restarts=0
    "#]]);
    world.desired.keys = keys(source.clone(), &[("other", "1")]);
    world.settle().check(expect![[r#"
        ! FailedMount: MountVolume.SetUp failed for volume "v" : secret references non-existent key: k
        Pending terminated=false
        a: waiting ContainerCreating MountVolume.SetUp failed for volume "v" : secret references non-existent key: k restarts=0
    "#]]);
    world.desired.keys = keys(source.clone(), &[("k", "1")]);
    world.settle();
    assert_eq!(world.steps, ["volumes", "start a 0"]);
    world.steps.clear();
    world.desired.keys.get_mut(&source).unwrap().generation = 2;
    world.settle();
    assert_eq!(world.steps, ["volumes"]);
    world.desired.keys.clear();
    world.steps.clear();
    world.settle();
    assert_eq!(world.steps, Vec::<String>::new());
}

#[test]
fn a_pod_waits_for_its_token_and_a_new_one_is_shown_in_place() {
    let token =
        ProjectionV1::Token { audience: String::new(), expiration_s: 3607, path: "token".into() };
    let volume = VolumeV1 {
        name: "kube-api-access-abcde".into(),
        source: VolumeSourceV1::Projected { sources: vec![token], default_mode: 0o644 },
    };
    let held = |tokens: &[(&str, u32, &str)], problem: &str| {
        let tokens = tokens.iter();
        let tokens = tokens.map(|(to, s, token)| (((*to).to_owned(), *s), (*token).to_owned()));
        let tokens = Arc::new(tokens.collect());
        Held { tokens, lifetime_s: 3607, problem: problem.into() }
    };
    let mut world = World::new(PodV1 { volumes: vec![volume], ..pod(vec![container("a")]) });
    // The answer is on its way: nothing is wrong.
    world.settle().check(expect![[r#"
        sandbox
        pull a
        Pending terminated=false
        a: waiting ContainerCreating restarts=0
    "#]]);
    world.desired.tokens = held(&[], "serviceaccounts \"ghost\" not found");
    world.settle().check(expect![[r#"
        ! FailedMount: MountVolume.SetUp failed for volume "kube-api-access-abcde" : failed to fetch token: serviceaccounts "ghost" not found
        Pending terminated=false
        a: waiting ContainerCreating MountVolume.SetUp failed for volume "kube-api-access-abcde" : failed to fetch token: serviceaccounts "ghost" not found restarts=0
    "#]]);
    world.desired.tokens = held(&[("vault", 3607, "t")], "");
    world.settle();
    assert_eq!(world.steps, Vec::<String>::new(), "that is another token");
    world.desired.tokens = held(&[("", 3607, "first")], "");
    world.settle();
    assert_eq!(world.steps, ["volumes", "start a 0"]);
    for (tokens, steps) in [
        (held(&[("", 3607, "first")], ""), &[][..]),
        (held(&[("", 3607, "second")], ""), &["volumes"]),
        // The account is gone, or an agent that found nothing kept starts: the old one stays.
        (held(&[("", 3607, "second")], "serviceaccounts \"a\" not found"), &[]),
        (held(&[], ""), &[]),
        (held(&[("", 3607, "third")], ""), &["volumes"]),
    ] {
        world.steps.clear();
        world.desired.tokens = tokens;
        world.settle();
        assert_eq!(world.steps, steps);
    }
}

#[test]
fn a_command_that_cannot_start_says_so_and_is_tried_again() {
    let mut world = World::new(pod(vec![container("a")]));
    world.start_error = Some(("StartError".into(), "exec \"/nope\": no such file".into()));
    world.settle().check(expect![[r#"
        sandbox
        volumes
        pull a
        start a 0
        remove a 0
        ! Failed: Error: exec "/nope": no such file
        Running terminated=false
        a: waiting RunContainerError exec "/nope": no such file restarts=0 last=128 StartError
    "#]]);
    world.start_error = Some(("CreateContainerError".into(), "no overlayfs".into()));
    assert_eq!(world.wake(), Some(Duration::from_secs(10)));
    world.check(expect![[r#"
        pull a
        start a 1
        remove a 1
        ! Failed: Error: no overlayfs
        Running terminated=false
        a: waiting CreateContainerError no overlayfs restarts=0 last=128 StartError
    "#]]);
    world.start_error = None;
    assert_eq!(world.wake(), Some(Duration::from_secs(10)));
    assert_eq!(world.state.containers[0].restarts(), 1);
}

#[test]
fn a_sandbox_that_fails_is_tried_again() {
    let mut world = World::new(pod(vec![container("a")]));
    world.sandbox_error = Some("no addresses left".into());
    world.settle();
    assert_eq!(world.wake(), Some(Duration::from_secs(1)));
    assert_eq!(world.wake(), Some(Duration::from_secs(2)));
    let StateV1::Waiting { message, .. } = world.container_state() else { panic!("not waiting") };
    assert_eq!(message, "Failed to create pod sandbox: no addresses left");
    world.sandbox_error = None;
    world.wake();
    assert!(matches!(world.container_state(), StateV1::Running { .. }));
}

#[test]
fn a_full_disk_does_not_keep_a_finished_pod() {
    let mut world =
        World::new(PodV1 { restart_policy: RestartPolicyV1::Never, ..pod(vec![container("a")]) });
    world.record_error = Some("no space left on device".into());
    world.settle();
    world.exit("a", 0);
    world.settle();
    assert!(world.state.torn_down);
    assert_eq!(world.state.finished, None);
    world.record_error = None;
    world.wake();
    assert_eq!(world.state.finished, Some(PhaseV1::Succeeded));
}

#[test]
fn a_container_that_vanished_counts_as_ended() {
    let mut world =
        World::new(PodV1 { restart_policy: RestartPolicyV1::Never, ..pod(vec![container("a")]) });
    world.settle();
    world.runs.insert(("a".into(), 0), Seen::Lost);
    world.settle();
    assert_eq!(world.state.finished, Some(PhaseV1::Failed));
    let StateV1::Terminated(end) = world.container_state() else { panic!("not terminated") };
    assert_eq!((end.exit_code, end.reason.as_str()), (137, "ContainerStatusUnknown"));
}

#[test]
fn a_restarted_agent_finds_a_start_it_had_begun() {
    for (seen, expected) in [
        (Seen::Running(9), "running"),
        (Seen::Starting, "starting"),
        (Seen::Absent, "running"),
        (Seen::Lost, "running"),
    ] {
        let mut world = World::new(pod(vec![container("a")]));
        world.settle();
        // Back to the moment in which the start was in flight, seen by a new agent.
        world.state.containers[0].run = Run::Starting {
            attempt: 0,
            image: "registry.local/app:1".into(),
            image_id: "sha256:aa".into(),
            stop_signal: None,
            in_flight: true,
        };
        world.runs.clear();
        if seen != Seen::Absent {
            world.runs.insert(("a".into(), 0), seen.clone());
        }
        world.state.resume();
        world.settle();
        let is_running = matches!(world.container_state(), StateV1::Running { .. });
        assert_eq!(is_running, expected == "running", "{seen:?}");
    }
}

/// What may happen to a pod.
#[derive(Clone, Debug)]
enum Event {
    Exit(usize, i32),
    Vanish(usize),
    Advance(u64),
    NewImage(usize),
    Relabel,
    Same,
    RestartAgent,
    PullFails(bool),
    StartFails(u8),
    SandboxFails(bool),
    RecordFails(bool),
    Delete(u32),
    Remove,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..2_usize, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(c, code)| Event::Exit(c, code)),
        1 => (0..2_usize).prop_map(Event::Vanish),
        6 => (0..400_u64).prop_map(Event::Advance),
        1 => (0..2_usize).prop_map(Event::NewImage),
        1 => Just(Event::Relabel),
        1 => Just(Event::Same),
        2 => Just(Event::RestartAgent),
        1 => any::<bool>().prop_map(Event::PullFails),
        1 => (0..3_u8).prop_map(Event::StartFails),
        1 => any::<bool>().prop_map(Event::SandboxFails),
        1 => any::<bool>().prop_map(Event::RecordFails),
        1 => (0..60_u32).prop_map(Event::Delete),
        1 => Just(Event::Remove),
    ]
}

fn policy() -> impl Strategy<Value = RestartPolicyV1> {
    prop_oneof![
        Just(RestartPolicyV1::Always),
        Just(RestartPolicyV1::OnFailure),
        Just(RestartPolicyV1::Never)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever happens, the steps come to an end, nothing is planned twice, and
    /// what is finished stays finished. `settle` and `perform` assert most of it.
    #[test]
    fn steps_converge_whatever_happens(
        policy in policy(),
        ignores_term in any::<bool>(),
        events in proptest::collection::vec(event(), 0..40),
    ) {
        let names = ["a", "b"];
        let mut world = World::new(PodV1 {
            restart_policy: policy,
            ..pod(names.iter().map(|name| container(name)).collect())
        });
        world.ignores_term = ignores_term;
        world.settle();
        let mut n_images = 1;
        let mut was_finished = None;
        for event in events {
            match event {
                Event::Exit(c, code) => {
                    if matches!(world.state.containers[c].run, Run::Running { .. }) {
                        world.exit(names[c], code);
                    }
                }
                Event::Vanish(c) => {
                    if let Run::Running { attempt, .. } = world.state.containers[c].run {
                        world.runs.insert((names[c].into(), attempt), Seen::Lost);
                    }
                }
                Event::Advance(seconds) => world.advance(Duration::from_secs(seconds)),
                Event::NewImage(c) => {
                    n_images += 1;
                    let image = format!("registry.local/app:{n_images}");
                    world.edit(|pod| pod.containers[c].image = image);
                }
                Event::Relabel => {
                    let before = world.steps.len();
                    world.settle();
                    let settled = world.steps.len();
                    world.edit(|pod| pod.labels.push(("l".into(), "v".into())));
                    world.settle();
                    prop_assert_eq!(world.steps.len(), settled, "from {}", before);
                }
                Event::Same => {
                    world.settle();
                    let settled = world.steps.len();
                    world.desired.generation += 1;
                    world.settle();
                    prop_assert_eq!(world.steps.len(), settled);
                }
                Event::RestartAgent => {
                    world.settle();
                    let settled = world.steps.len();
                    let bytes = postcard::to_stdvec(&world.state).unwrap();
                    world.state = postcard::from_bytes(&bytes).unwrap();
                    world.state.resume();
                    world.settle();
                    let only_looks = world.steps[settled..].iter().all(|s| s.starts_with("pull"));
                    prop_assert!(only_looks, "{:?}", &world.steps[settled..]);
                }
                Event::PullFails(fails) => {
                    world.pull_error = fails.then(|| ("ErrImagePull".into(), "no".into()));
                }
                Event::StartFails(how) => {
                    world.start_error = match how {
                        0 => None,
                        1 => Some(("StartError".into(), "no".into())),
                        _ => Some(("CreateContainerError".into(), "no".into())),
                    };
                }
                Event::SandboxFails(fails) => {
                    world.sandbox_error = fails.then(|| "no".into());
                }
                Event::RecordFails(fails) => {
                    world.record_error = fails.then(|| "no".into());
                }
                Event::Delete(grace) => world.edit(|pod| pod.deletion_grace_s = Some(grace)),
                Event::Remove => world.desired.present = false,
            }
            world.settle();
            if was_finished.is_some() {
                prop_assert_eq!(world.state.finished, was_finished);
                prop_assert!(world.state.containers.iter().all(|c| !c.run.is_live()));
            }
            was_finished = world.state.finished;
            let report = status(&world.desired, &world.state, world.now);
            prop_assert_eq!(report.containers.len(), 2);
            prop_assert!(!report.terminated || world.runs.is_empty());
        }
        // In a world that works again, a pod that stops goes away entirely.
        world.pull_error = None;
        world.start_error = None;
        world.sandbox_error = None;
        world.record_error = None;
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

    /// In a world that works, a pod that is wanted runs, and then nothing is planned.
    #[test]
    fn a_wanted_pod_runs_in_the_end(
        events in proptest::collection::vec(event(), 0..20),
    ) {
        let mut world = World::new(pod(vec![container("a"), container("b")]));
        world.settle();
        for event in events {
            match event {
                Event::Exit(c, code) => {
                    if matches!(world.state.containers[c].run, Run::Running { .. }) {
                        world.exit(["a", "b"][c], code);
                    }
                }
                Event::Advance(seconds) => world.advance(Duration::from_secs(seconds)),
                Event::PullFails(fails) => {
                    world.pull_error = fails.then(|| ("ErrImagePull".into(), "no".into()));
                }
                Event::StartFails(0) => world.start_error = None,
                Event::StartFails(_) => {
                    world.start_error = Some(("StartError".into(), "no".into()));
                }
                _ => {}
            }
            world.settle();
        }
        world.pull_error = None;
        world.start_error = None;
        for _ in 0..20 {
            world.advance(Duration::from_secs(300));
            world.settle();
        }
        prop_assert_eq!(phase(&world.desired, &world.state), PhaseV1::Running);
        prop_assert!(world.state.containers.iter().all(|c| c.run.is_live()), "not all run");
        prop_assert_eq!(plan(&world.desired, &world.state, world.now.mono), Plan::default());
    }
}
