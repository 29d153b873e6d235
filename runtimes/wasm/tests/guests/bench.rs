//! What a start costs, stage by stage: `cargo test --release -p pinnace-wasm
//! --features compile --test guests -- bench 40`. One start at a time.
//!
//! | line | what it holds |
//! | --- | --- |
//! | exec | a process of this program that does nothing: kernel and dynamic linker |
//! | shim | the same as a shim with a container's folder, and a command that ends at once |
//! | … | a WASM container, until its guest's process has said that it runs |

use std::process::Command;
use std::time::Duration;

use runtime::Runtime;
use tokio::time::Instant;

use crate::node::Node;

pub(crate) async fn measure(node: &Node<'_>, n_rounds: usize) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    println!("{n_rounds} rounds; load {}", load.trim());
    let mut rows: Vec<(&str, Vec<Duration>)> = Vec::new();
    let mut add = |name: &'static str, took: Duration| match rows
        .iter_mut()
        .find(|(known, _)| *known == name)
    {
        Some((_, all)) => all.push(took),
        None => rows.push((name, vec![took])),
    };
    let tiny = wat::parse_str(r#"(module (memory 1) (func (export "_start") (loop (br 0))))"#);
    let tiny = tiny.unwrap();
    let specs = [
        ("shim", "shim-plain", node.spec(&tiny, &[])),
        ("smallest module", "shim", node.spec(&tiny, &[])),
        ("module of 200 KB", "shim", node.spec(&node.guests.module, &["sleep"])),
        ("component of 200 KB", "shim", node.spec(&node.guests.component, &["sleep"])),
        ("HTTP server", "shim", node.spec(&node.guests.web, &[])),
    ];
    for round in 0..=n_rounds {
        // The first one of each warms the caches.
        let mut keep = |name, took| {
            if round > 0 {
                add(name, took)
            }
        };
        let began = Instant::now();
        let status = Command::new("/proc/self/exe").arg("nothing").status().unwrap();
        assert!(status.success());
        keep("exec", began.elapsed());
        for (name, shim, spec) in &specs {
            let runtime = node.runtime_with(&[shim]);
            let mut spec = spec.clone();
            // Each kind has its code in a file of its own.
            if let runtime::Workload::Wasm { artifact, signature, .. } = &mut spec.workload {
                let kept = node.path(&format!("{}.cwasm", signature.size));
                if !kept.exists() {
                    std::fs::write(&kept, node.code_of(signature.size)).unwrap();
                }
                *artifact = kept;
            }
            let id = spec.id.clone();
            let began = Instant::now();
            runtime.start(spec).await.unwrap();
            keep(name, began.elapsed());
            runtime.kill(&id, libc::SIGKILL).unwrap();
            node.until_exit(&runtime, &id).await;
            runtime.remove(&id).await.unwrap();
        }
    }
    for (name, mut all) in rows {
        all.sort();
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        println!(
            "{name:22} p50 {:6.2} ms  min {:6.2}  p90 {:6.2}  max {:6.2}",
            ms(all[all.len() / 2]),
            ms(all[0]),
            ms(all[all.len() * 9 / 10]),
            ms(all[all.len() - 1]),
        );
    }
}
