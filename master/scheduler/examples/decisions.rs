//! How many decisions a second one thread makes. Prints, asserts nothing.
//!
//! `cargo run --release -p pinnace-scheduler --example decisions [nodes] [pods]`

use std::sync::Arc;

use pinnace_scheduler::{
    Decision, Demand, Effect, Node, Resources, Snapshot, Taint, Toleration, TolerationOperator,
};

fn main() {
    let mut numbers = std::env::args().skip(1).map(|n| n.parse::<usize>().expect("a number"));
    let n_nodes = numbers.next().unwrap_or(1000);
    let n_pods = numbers.next().unwrap_or(50_000);
    let mut rates: Vec<f64> = (0..5).map(|_| round(n_nodes, n_pods)).collect();
    rates.sort_by(f64::total_cmp);
    #[allow(clippy::print_stdout)]
    {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        println!(
            "nodes={n_nodes} pods={n_pods} decisions/s median={:.0} min={:.0} max={:.0} loadavg={}",
            rates[2],
            rates[0],
            rates[4],
            load.trim()
        );
    }
}

fn round(n_nodes: usize, n_pods: usize) -> f64 {
    let mut snapshot = Snapshot::new();
    for n in 0..n_nodes {
        let taints = if n % 10 == 0 {
            vec![Taint { key: "camera".into(), value: "".into(), effect: Effect::NoSchedule }]
        } else {
            Vec::new()
        };
        snapshot.set_node(Node {
            name: format!("board-{n:05}").into(),
            labels: vec![(
                "kubernetes.io/arch".into(),
                if n % 3 == 0 { "arm" } else { "arm64" }.into(),
            )],
            taints,
            ready: true,
            allocatable: Resources {
                cpu_millis: 4000 + 1000 * (n as u64 % 5),
                memory_bytes: (4 + n as u64 % 5) << 30,
                ..Resources::default()
            },
            pods_max: 110,
            oci: true,
            architecture: if n % 3 == 0 { "arm" } else { "arm64" }.into(),
            ..Node::default()
        });
    }
    // 100 owners with demands of their own, as 100 Deployments make them.
    let demands: Vec<(Arc<str>, Arc<Demand>)> = (0..100_u64)
        .map(|n| {
            let demand = Demand {
                requests: Resources {
                    cpu_millis: 10 + n,
                    memory_bytes: (16 + n) << 20,
                    ..Resources::default()
                },
                node_selector: if n % 2 == 0 {
                    vec![("kubernetes.io/arch".into(), "arm64".into())]
                } else {
                    Vec::new()
                },
                tolerations: vec![Toleration {
                    key: "camera".into(),
                    operator: TolerationOperator::Exists,
                    value: "".into(),
                    effect: if n % 4 == 0 { None } else { Some(Effect::NoExecute) },
                    seconds: None,
                }],
                platforms: vec![vec![
                    "linux/arm/v7".parse().expect("a platform"),
                    "linux/arm64".parse().expect("a platform"),
                ]],
                oci: true,
                ..Demand::default()
            };
            (format!("owner-{n}").into(), Arc::new(demand))
        })
        .collect();
    let uids: Vec<Arc<str>> = (0..n_pods).map(|n| format!("uid-{n}").into()).collect();
    #[allow(clippy::disallowed_types)] // an example without a runtime
    let start = std::time::Instant::now();
    let mut n_bound = 0;
    for (n, uid) in uids.iter().enumerate() {
        let (owner, demand) = &demands[n % demands.len()];
        if let Decision::Bind(node) = snapshot.schedule(demand, Some(owner)) {
            snapshot.place(uid, &node, demand, Some(owner));
            n_bound += 1;
        }
    }
    assert!(n_bound > 0, "no pod fits");
    n_pods as f64 / start.elapsed().as_secs_f64()
}
