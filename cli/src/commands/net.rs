//! `pinnace net`: how nodes reach each other.

use serde_json::{Value, json};

use crate::arguments::{Net, NetFormat};
use crate::cluster::Cluster;
use crate::kinds::Kind;
use crate::table::{Table, Widths};
use crate::text::{age, bytes, printable};
use crate::{console, yaml};

pub(super) async fn run(cluster: &Cluster, arguments: &Net) -> anyhow::Result<()> {
    let kind =
        Kind { group: "net.pinnace.io".to_owned(), ..Kind::core("nodepaths", "NodePaths", false) };
    let selector = arguments.selector.as_deref().unwrap_or_default();
    let nodes = match &arguments.name {
        Some(name) => vec![cluster.get(&kind.object("", name)).await?],
        None => super::get::list(cluster, &kind, None, selector, "").await?,
    };
    match arguments.output {
        Some(NetFormat::Json) => {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": nodes});
            console::write(format!("{}\n", serde_json::to_string_pretty(&list)?))
        }
        Some(NetFormat::Yaml) => {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": nodes});
            console::write(yaml::emit(&list))
        }
        wide => {
            for node in &nodes {
                let degraded = text(node, "degraded");
                if !degraded.is_empty() {
                    console::warning(&format!("node {}: {degraded}", name(node)));
                }
            }
            let rows = rows(&nodes, wide.is_some());
            if rows.rows.is_empty() {
                console::note("No pair of nodes has spoken, or none answers.");
                return Ok(());
            }
            console::write(rows.render(true, &mut Widths::default()))
        }
    }
}

fn rows(nodes: &[Value], wide: bool) -> Table {
    let mut header = vec!["NODE", "PEER", "PATH", "RTT", "LOSS", "AGE"];
    if wide {
        header.extend(["REMOTE", "SENT", "RECEIVED", "WHY"]);
    }
    let mut rows = Vec::new();
    for node in nodes {
        for path in node["paths"].as_array().into_iter().flatten() {
            let number = |key: &str| path[key].as_u64().unwrap_or(0);
            let seconds = i64::try_from(number("ageSeconds")).unwrap_or(i64::MAX);
            let mut row = vec![
                printable(name(node)),
                printable(text(path, "peer")),
                printable(text(path, "lane")),
                round_trip(number("rttMicroseconds")),
                percent(number("lossPerTenThousand")),
                age(seconds),
            ];
            if wide {
                row.push(or_none(text(path, "remote")));
                row.extend(["sentBytes", "receivedBytes"].map(|key| bytes(number(key))));
                row.push(or_none(text(path, "reason")));
            }
            rows.push(row);
        }
    }
    Table { header: header.into_iter().map(str::to_owned).collect(), rows }
}

/// `1.2ms`; of what was not measured nothing is claimed.
fn round_trip(us: u64) -> String {
    match us {
        0 => "<unknown>".to_owned(),
        1..100_000 => format!("{}.{}ms", us / 1000, us % 1000 / 100),
        us => format!("{}ms", us / 1000),
    }
}

fn percent(per_10000: u64) -> String {
    format!("{}.{:02}%", per_10000 / 100, per_10000 % 100)
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "<none>".to_owned() } else { printable(text) }
}

fn name(node: &Value) -> &str {
    node["metadata"]["name"].as_str().unwrap_or_default()
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn each_pair_has_a_row() {
        let path = |peer: &str, lane: &str, rtt: u64, remote: &str, why: &str| {
            json!({
                "peer": peer, "lane": lane, "remote": remote, "reason": why,
                "rttMicroseconds": rtt, "lossPerTenThousand": 125,
                "sentBytes": 2048, "receivedBytes": 10, "ageSeconds": 65,
            })
        };
        let nodes = [json!({
            "metadata": {"name": "pi-1"},
            "paths": [
                path("pi-2", "quic", 1234, "192.0.2.2:7443", ""),
                path("pi-3", "relay", 0, "", "neither answers"),
            ],
        })];
        let table = rows(&nodes, true).render(true, &mut Widths::default());
        expect![[r#"
            NODE   PEER   PATH    RTT         LOSS    AGE   REMOTE           SENT     RECEIVED   WHY
            pi-1   pi-2   quic    1.2ms       1.25%   65s   192.0.2.2:7443   2.0 kB   10 B       <none>
            pi-1   pi-3   relay   <unknown>   1.25%   65s   <none>           2.0 kB   10 B       neither answers
        "#]].assert_eq(&String::from_utf8_lossy(table.as_bytes()));
        assert_eq!(rows(&nodes, false).header.len(), 6);
    }
}
