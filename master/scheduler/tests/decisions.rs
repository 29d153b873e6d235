//! What a decision promises: tables of filters and scores, and properties over
//! random fleets.

// Every function here is part of a test.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use expect_test::{Expect, expect};
use pinnace_scheduler::{
    Decision, Demand, Effect, Node, Platform, Resources, Snapshot, Taint, Toleration,
    TolerationOperator, summary,
};
use proptest::prelude::*;

fn node(name: &str) -> Node {
    Node {
        name: name.into(),
        ready: true,
        allocatable: resources(4000, 4096),
        pods_max: 110,
        oci: true,
        ..Node::default()
    }
}

fn resources(cpu_millis: u64, memory_mib: u64) -> Resources {
    Resources { cpu_millis, memory_bytes: memory_mib << 20, ..Resources::default() }
}

fn pairs(text: &str) -> Vec<(Arc<str>, Arc<str>)> {
    let mut pairs: Vec<(Arc<str>, Arc<str>)> = text
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    pairs.sort();
    pairs
}

/// A node a line: `name word…`, where the words change a ready node with 4
/// cores, 4 GiB and the OCI runtime.
fn parse_node(line: &str) -> Node {
    let mut words = line.split_whitespace();
    let mut node = node(words.next().unwrap());
    for word in words {
        let (key, value) = word.split_once(':').unwrap_or((word, ""));
        match key {
            "gone" => node.ready = false,
            "cordoned" => node.unschedulable = true,
            "wasm" => node.wasm = true,
            "no-oci" => node.oci = false,
            "arch" => {
                let (architecture, variant) = value.split_once('/').unwrap_or((value, ""));
                (node.architecture, node.variant) = (architecture.into(), variant.into());
            }
            "labels" => node.labels = pairs(value),
            "cpu" => node.allocatable.cpu_millis = value.parse().unwrap(),
            "memory" => node.allocatable.memory_bytes = value.parse::<u64>().unwrap() << 20,
            "pods" => node.pods_max = value.parse().unwrap(),
            "images" => node.images = value.split(',').map(Arc::from).collect(),
            "gpio" => node.allocatable.extended = vec![("gpio".into(), value.parse().unwrap())],
            "taint" => {
                let (key, effect) = value.split_once('/').unwrap();
                let effect = Effect::parse(effect).unwrap();
                node.taints.push(Taint { key: key.into(), value: "".into(), effect });
            }
            _ => panic!("no such word: {word}"),
        }
    }
    node
}

#[track_caller]
fn check(demand: Demand, nodes: &str, expected: Expect) {
    let mut snapshot = Snapshot::new();
    for line in nodes.lines() {
        snapshot.set_node(parse_node(line.trim()));
    }
    let actual = match snapshot.schedule(&Arc::new(demand), None) {
        Decision::Bind(node) => format!("bind {node}"),
        Decision::Unschedulable(rejections) => summary(&rejections),
    };
    expected.assert_eq(&actual);
}

fn oci(cpu_millis: u64, memory_mib: u64) -> Demand {
    Demand { requests: resources(cpu_millis, memory_mib), oci: true, ..Demand::default() }
}

#[test]
fn the_freest_node_wins_and_ties_go_to_the_first_name() {
    check(oci(100, 64), "a cpu:1000 memory:1024\nb", expect!["bind b"]);
    check(oci(100, 64), "b\na", expect!["bind a"]);
}

#[test]
fn every_node_says_why_not() {
    check(
        oci(5000, 5000),
        "a\nb gone\nc cordoned\nd taint:gpu/NoSchedule\ne pods:0 cpu:9000",
        expect![
            "0/5 nodes are available: 1 Insufficient cpu, 1 Too many pods, 1 node(s) had untolerated taint {gpu: }, 1 node(s) were not ready, 1 node(s) were unschedulable, 2 Insufficient memory. a: Insufficient cpu (5000m requested, 4000m free), Insufficient memory (5242880000 bytes requested, 4294967296 bytes free). b: not ready. c: unschedulable. d: untolerated taint {gpu: }. e: too many pods, Insufficient memory (5242880000 bytes requested, 4294967296 bytes free)."
        ],
    );
    check(oci(1, 1), "", expect!["no nodes available to schedule pods"]);
}

#[test]
fn a_long_list_of_nodes_is_cut() {
    let nodes: Vec<String> = (0..500).map(|n| format!("board-{n:03} gone")).collect();
    let mut snapshot = Snapshot::new();
    nodes.iter().for_each(|line| assert!(snapshot.set_node(parse_node(line))));
    let Decision::Unschedulable(rejections) = snapshot.schedule(&Arc::new(oci(1, 1)), None) else {
        panic!("no node is ready");
    };
    let text = summary(&rejections);
    assert!(text.len() <= 1024, "{}", text.len());
    assert!(text.ends_with("(490 more nodes)"), "{text}");
}

#[test]
fn selectors_and_affinity_choose_by_label() {
    let mut demand = oci(1, 1);
    demand.node_selector = pairs("zone=b");
    check(demand.clone(), "a labels:zone=a\nb labels:zone=b", expect!["bind b"]);
    check(
        demand,
        "a labels:zone=a",
        expect![
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. a: labels don't match the pod's node affinity/selector."
        ],
    );
    let requirement = |text| api::selector::LabelSelector::parse(text).unwrap().requirements;
    let mut demand = oci(1, 1);
    demand.affinity = vec![requirement("zone in (x)"), requirement("disk, zone notin (a)")];
    check(
        demand,
        "a labels:disk=1,zone=a\nb labels:disk=1,zone=b\nc labels:zone=c",
        expect!["bind b"],
    );
    let mut demand = oci(1, 1);
    demand.affinity = vec![requirement("metadata.name=b")];
    check(demand, "a\nb\nc", expect!["bind b"]);
}

#[test]
fn images_decide_architecture_and_runtime() {
    let mut demand = oci(1, 1);
    let platforms = ["linux/arm/v7", "linux/arm64"];
    demand.platforms = vec![platforms.iter().map(|p| p.parse::<Platform>().unwrap()).collect()];
    check(demand.clone(), "a arch:amd64\nb arch:arm/v7", expect!["bind b"]);
    check(
        demand,
        "a arch:amd64\nb arch:arm/v6",
        expect![
            "0/2 nodes are available: 1 node(s) with platform linux/amd64 can't run an image built for linux/arm/v7, linux/arm64, 1 node(s) with platform linux/arm/v6 can't run an image built for linux/arm/v7, linux/arm64. a: platform linux/amd64 can't run an image built for linux/arm/v7, linux/arm64. b: platform linux/arm/v6 can't run an image built for linux/arm/v7, linux/arm64."
        ],
    );
    let wasm = Demand { wasm: true, ..Demand::default() };
    check(wasm.clone(), "a\nb wasm no-oci", expect!["bind b"]);
    check(
        Demand { oci: true, ..wasm },
        "a\nb wasm no-oci",
        expect![
            "0/2 nodes are available: 1 node(s) can't run OCI containers, 1 node(s) can't run WebAssembly. a: can't run WebAssembly. b: can't run OCI containers."
        ],
    );
}

#[test]
fn taints_keep_away_unless_tolerated() {
    let mut demand = oci(1, 1);
    check(demand.clone(), "a taint:x/PreferNoSchedule\nb cpu:500", expect!["bind b"]);
    check(demand.clone(), "a taint:x/PreferNoSchedule", expect!["bind a"]);
    demand.tolerations = vec![Toleration {
        key: "x".into(),
        operator: TolerationOperator::Exists,
        value: "".into(),
        effect: None,
        seconds: None,
    }];
    check(demand, "a taint:x/NoExecute\nb cpu:500", expect!["bind a"]);
}

#[test]
fn extended_resources_and_images_count() {
    let mut demand = oci(1, 1);
    demand.requests.extended = vec![("gpio".into(), 2)];
    check(demand.clone(), "a gpio:1\nb gpio:2", expect!["bind b"]);
    check(
        demand,
        "a gpio:1",
        expect![
            "0/1 nodes are available: 1 Insufficient gpio. a: Insufficient gpio (2 requested, 1 free)."
        ],
    );
    let demand = Demand { images: vec!["web:1".into()], ..oci(1, 1) };
    check(demand, "a\nb images:web:1", expect!["bind b"]);
}

#[test]
fn a_node_that_changes_is_filtered_anew() {
    let mut snapshot = Snapshot::new();
    let demand = Arc::new(oci(100, 100));
    snapshot.set_node(node("a"));
    assert_eq!(snapshot.schedule(&demand, None), Decision::Bind("a".into()));
    assert!(!snapshot.set_node(node("a")));
    assert!(snapshot.set_node(Node { ready: false, ..node("a") }));
    assert!(matches!(snapshot.schedule(&demand, None), Decision::Unschedulable(_)));
    snapshot.set_node(node("a"));
    assert_eq!(snapshot.schedule(&demand, None), Decision::Bind("a".into()));
    snapshot.remove_node("a");
    assert_eq!(snapshot.schedule(&demand, None), Decision::Unschedulable(vec![]));
    // Another node in the same slot is not taken for the old one.
    snapshot.set_node(Node { unschedulable: true, ..node("b") });
    assert!(matches!(snapshot.schedule(&demand, None), Decision::Unschedulable(_)));
}

#[test]
fn pods_of_a_node_not_seen_yet_count_once_it_is() {
    let mut snapshot = Snapshot::new();
    let big = Arc::new(oci(3000, 64));
    snapshot.place(&"u1".into(), &"a".into(), &big, None);
    snapshot.set_node(node("a"));
    assert!(matches!(snapshot.schedule(&big, None), Decision::Unschedulable(_)));
    assert!(snapshot.remove_pod("u1"));
    assert!(!snapshot.remove_pod("u1"));
    assert_eq!(snapshot.schedule(&big, None), Decision::Bind("a".into()));
}

/// One thing that happens to the fleet.
#[derive(Clone, Debug)]
enum Act {
    Schedule { class: usize, owner: usize },
    Remove(usize),
    Change { node: usize, ready: bool, cordoned: bool, cores: u64, pods: u64 },
    Drop(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0_usize..4, 0_usize..3).prop_map(|(class, owner)| Act::Schedule { class, owner }),
        2 => any::<usize>().prop_map(Act::Remove),
        2 => (0_usize..6, any::<bool>(), any::<bool>(), 0_u64..5, 0_u64..8).prop_map(
            |(node, ready, cordoned, cores, pods)| Act::Change { node, ready, cordoned, cores, pods }
        ),
        1 => (0_usize..6).prop_map(Act::Drop),
    ]
}

fn classes() -> Vec<Arc<Demand>> {
    [(0, 0), (250, 100), (100, 1500), (4000, 2048)]
        .map(|(cpu, memory)| Arc::new(oci(cpu, memory)))
        .to_vec()
}

proptest! {
    #[test]
    fn no_node_is_over_committed_and_no_filtered_node_is_bound(
        acts in prop::collection::vec(act(), 1..120),
    ) {
        let classes = classes();
        let mut nodes: Vec<Option<Node>> = (0..4).map(|n| Some(node(&format!("n{n}")))).collect();
        nodes.resize(6, None);
        let mut snapshot = Snapshot::new();
        nodes.iter().flatten().for_each(|node| { snapshot.set_node(node.clone()); });
        // The model: every placed pod with its node, counted afresh each time.
        let mut placed: Vec<(Arc<str>, Arc<str>, usize)> = Vec::new();
        let taken = |placed: &[(Arc<str>, Arc<str>, usize)], name: &str| {
            let here = placed.iter().filter(|pod| *pod.1 == *name);
            here.fold((0, 0, 0), |sum, pod| {
                let asked = &classes[pod.2].requests;
                (sum.0 + asked.cpu_millis, sum.1 + asked.memory_bytes, sum.2 + 1)
            })
        };
        for (n, act) in acts.into_iter().enumerate() {
            match act {
                Act::Schedule { class, owner } => {
                    let owner: Arc<str> = format!("o{owner}").into();
                    let demand = &classes[class];
                    let room = |node: &Node| {
                        let (cpu, memory, pods) = taken(&placed, &node.name);
                        let asked = &demand.requests;
                        node.ready && !node.unschedulable && pods < node.pods_max
                            && (asked.cpu_millis == 0
                                || cpu + asked.cpu_millis <= node.allocatable.cpu_millis)
                            && (asked.memory_bytes == 0
                                || memory + asked.memory_bytes <= node.allocatable.memory_bytes)
                    };
                    let decision = snapshot.schedule(demand, Some(&owner));
                    prop_assert_eq!(&decision, &snapshot.schedule(demand, Some(&owner)));
                    match decision {
                        Decision::Bind(name) => {
                            let chosen = nodes.iter().flatten().find(|node| node.name == name);
                            prop_assert!(chosen.is_some_and(room), "{} has no room", name);
                            let uid: Arc<str> = format!("u{n}").into();
                            snapshot.place(&uid, &name, demand, Some(&owner));
                            placed.push((uid, name, class));
                        }
                        Decision::Unschedulable(reasons) => {
                            prop_assert!(!nodes.iter().flatten().any(room), "a node has room");
                            prop_assert_eq!(reasons.len(), nodes.iter().flatten().count());
                            prop_assert!(reasons.iter().all(|(_, reasons)| !reasons.is_empty()));
                        }
                    }
                }
                Act::Remove(which) if !placed.is_empty() => {
                    let (uid, ..) = placed.remove(which % placed.len());
                    prop_assert!(snapshot.remove_pod(&uid));
                }
                Act::Remove(_) => {}
                Act::Change { node: at, ready, cordoned, cores, pods } => {
                    let changed = Node {
                        ready,
                        unschedulable: cordoned,
                        allocatable: resources(cores * 1000, cores * 1024),
                        pods_max: pods,
                        ..node(&format!("n{at}"))
                    };
                    snapshot.set_node(changed.clone());
                    nodes[at] = Some(changed);
                }
                Act::Drop(at) => {
                    snapshot.remove_node(&format!("n{at}"));
                    nodes[at] = None;
                }
            }
        }
        for node in nodes.iter().flatten() {
            let (used, n_pods) = snapshot.used(&node.name);
            let model = taken(&placed, &node.name);
            prop_assert_eq!((used.cpu_millis, used.memory_bytes, n_pods), model);
        }
    }

    #[test]
    fn replicas_of_one_owner_are_spread_over_equal_nodes(
        n_nodes in 1_usize..8, n_pods in 1_usize..30, cpu in 0_u64..120,
    ) {
        let mut snapshot = Snapshot::new();
        (0..n_nodes).for_each(|n| { snapshot.set_node(node(&format!("n{n}"))); });
        let demand = Arc::new(oci(cpu, cpu));
        let mut counts = std::collections::BTreeMap::new();
        for n in 0..n_pods {
            let Decision::Bind(name) = snapshot.schedule(&demand, Some("rs")) else {
                panic!("30 pods of 120 millicores fit everywhere");
            };
            snapshot.place(&format!("u{n}").into(), &name, &demand, Some(&"rs".into()));
            *counts.entry(name).or_insert(0) += 1;
        }
        let most = counts.values().max().copied().unwrap_or(0);
        let least = if counts.len() < n_nodes { 0 } else { *counts.values().min().unwrap() };
        prop_assert!(most - least <= 1, "{counts:?}");
    }

    #[test]
    fn the_order_in_which_things_were_seen_does_not_matter(
        order in Just((0..6_usize).collect::<Vec<_>>()).prop_shuffle(), pods in 1_usize..12,
    ) {
        let demand = Arc::new(oci(300, 200));
        let run = |order: &[usize]| {
            let mut snapshot = Snapshot::new();
            for n in order {
                let mut node = node(&format!("n{n}"));
                node.allocatable = resources(1000 + 500 * (*n as u64 % 3), 2048);
                snapshot.set_node(node);
            }
            let mut bound = Vec::new();
            for n in 0..pods {
                let decision = snapshot.schedule(&demand, Some("o"));
                if let Decision::Bind(name) = &decision {
                    snapshot.place(&format!("u{n}").into(), name, &demand, Some(&"o".into()));
                }
                bound.push(decision);
            }
            bound
        };
        prop_assert_eq!(run(&order), run(&[0, 1, 2, 3, 4, 5]));
    }
}
