//! `pinnace top`: what nodes and pods use now, in `kubectl top`'s columns.

use std::collections::HashMap;

use anyhow::bail;
use api::quantity::Quantity;
use serde_json::Value;

use crate::arguments::{Top, TopNodes, TopOrder, TopPods};
use crate::cluster::Cluster;
use crate::kinds::Kind;
use crate::table::{Table, Widths};
use crate::text::printable;
use crate::{console, failure};

/// Shown of a node that did not answer.
const UNKNOWN: &str = "<unknown>";

pub(super) async fn run(cluster: &Cluster, command: &Top) -> anyhow::Result<()> {
    match command {
        Top::Nodes(arguments) => nodes(cluster, arguments).await,
        Top::Pods(arguments) => pods(cluster, arguments).await,
    }
}

async fn nodes(cluster: &Cluster, arguments: &TopNodes) -> anyhow::Result<()> {
    let selector = arguments.selector.as_deref().unwrap_or_default();
    let metrics = Kind { group: "metrics.k8s.io".to_owned(), ..kind("nodes", "NodeMetrics") };
    let (objects, measured) = match &arguments.name {
        Some(name) => {
            let object = cluster.get(&Kind::nodes().object("", name)).await?;
            let measured = cluster.find(&metrics.object("", name)).await?;
            (vec![object], measured.into_iter().collect())
        }
        None => (
            super::get::list(cluster, &Kind::nodes(), None, selector, "").await?,
            super::get::list(cluster, &metrics, None, selector, "").await?,
        ),
    };
    if objects.is_empty() {
        console::note(format_args!("No nodes found."));
        return Ok(());
    }
    console::write(node_table(&objects, &measured, arguments.sort_by)?)
}

async fn pods(cluster: &Cluster, arguments: &TopPods) -> anyhow::Result<()> {
    let metrics = Kind { group: "metrics.k8s.io".to_owned(), ..kind("pods", "PodMetrics") };
    let namespace = &cluster.namespace;
    let selector = arguments.selector.as_deref().unwrap_or_default();
    let measured = match &arguments.name {
        Some(name) => match cluster.get(&metrics.object(namespace, name)).await {
            Ok(pod) => vec![pod],
            Err(error) => {
                let error = anyhow::Error::from(error);
                if failure::is_not_found(&error) {
                    // Which of the two it is.
                    cluster.get(&Kind::pods().object(namespace, name)).await?;
                    bail!(
                        "pod \"{name}\" has no metrics: none of its containers runs, or its \
                         node does not answer"
                    );
                }
                return Err(error);
            }
        },
        None => {
            let namespace = (!arguments.all_namespaces).then_some(namespace.as_str());
            super::get::list(cluster, &metrics, namespace, selector, "").await?
        }
    };
    if measured.is_empty() {
        console::note(format_args!(
            "No pod has metrics here: none runs, or their nodes do not answer."
        ));
        return Ok(());
    }
    console::write(pod_table(&measured, arguments)?)
}

fn kind(plural: &str, name: &str) -> Kind {
    let namespaced = plural == "pods";
    Kind { version: "v1beta1".to_owned(), ..Kind::core(plural, name, namespaced) }
}

/// Thousandths of a processor, and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amounts {
    cpu_millis: i64,
    memory_bytes: i64,
}

impl Amounts {
    /// What `of` says, a `usage` or the `allocatable` of a node.
    fn read(of: &Value) -> anyhow::Result<Self> {
        let read = |name: &str| match &of[name] {
            Value::Null => Ok(Quantity::ZERO),
            value => Quantity::from_json(value)
                .map_err(|error| anyhow::anyhow!("the server says {name}: {value}: {error}")),
        };
        Ok(Self { cpu_millis: read("cpu")?.millis(), memory_bytes: read("memory")?.units() })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    fn key(&self, order: Option<TopOrder>) -> i64 {
        match order {
            Some(TopOrder::Cpu) => -self.cpu_millis,
            Some(TopOrder::Memory) => -self.memory_bytes,
            None => 0,
        }
    }

    fn cpu(&self) -> String {
        format!("{}m", self.cpu_millis)
    }

    fn memory(&self) -> String {
        format!("{}Mi", self.memory_bytes >> 20)
    }
}

fn node_table(
    objects: &[Value],
    measured: &[Value],
    order: Option<TopOrder>,
) -> anyhow::Result<String> {
    let usage: HashMap<&str, &Value> =
        measured.iter().map(|node| (text(node, "name"), &node["usage"])).collect();
    let mut rows = Vec::new();
    for node in objects {
        let name = text(node, "name");
        let Some(usage) = usage.get(name) else {
            let row = [name, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN].map(printable).to_vec();
            rows.push(((1, 0), row));
            continue;
        };
        let used = Amounts::read(usage)?;
        let has = Amounts::read(&node["status"]["allocatable"])?;
        let share = |part: i64, whole: i64| {
            let percent = i128::from(part) * 100 / i128::from(whole.max(1));
            if whole > 0 { format!("{percent}%") } else { UNKNOWN.to_owned() }
        };
        let row = vec![
            printable(name),
            used.cpu(),
            share(used.cpu_millis, has.cpu_millis),
            used.memory(),
            share(used.memory_bytes, has.memory_bytes),
        ];
        rows.push(((0, used.key(order)), row));
    }
    Ok(render(&["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"], rows))
}

fn pod_table(measured: &[Value], arguments: &TopPods) -> anyhow::Result<String> {
    let mut header = Vec::new();
    header.extend(arguments.all_namespaces.then_some("NAMESPACE"));
    header.extend(arguments.containers.then_some("POD"));
    header.extend(["NAME", "CPU(cores)", "MEMORY(bytes)"]);
    let mut rows = Vec::new();
    for pod in measured {
        let mut total = Amounts::default();
        let mut of_pod = Vec::new();
        for container in pod["containers"].as_array().into_iter().flatten() {
            let used = Amounts::read(&container["usage"])?;
            total = total.plus(used);
            of_pod.push((container["name"].as_str().unwrap_or_default(), used));
        }
        if !arguments.containers {
            of_pod = vec![(text(pod, "name"), total)];
        }
        for (name, used) in of_pod {
            let mut row = Vec::new();
            row.extend(arguments.all_namespaces.then(|| printable(text(pod, "namespace"))));
            row.extend(arguments.containers.then(|| printable(text(pod, "name"))));
            row.extend([printable(name), used.cpu(), used.memory()]);
            rows.push(((0, used.key(arguments.sort_by)), row));
        }
    }
    Ok(render(&header, rows))
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"][key].as_str().unwrap_or_default()
}

/// Rows by their keys, else by their first words.
fn render(header: &[&str], mut rows: Vec<((i64, i64), Vec<String>)>) -> String {
    rows.sort();
    let header = header.iter().map(|text| (*text).to_owned()).collect();
    let rows = rows.into_iter().map(|(_, row)| row).collect();
    Table { header, rows }.render(true, &mut Widths::default())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_shown_as_kubectl_shows_them() {
        let node = |name: &str, cpu: &str| {
            json!({"metadata": {"name": name},
                   "status": {"allocatable": {"cpu": cpu, "memory": "1Gi"}}})
        };
        let objects = [node("away", "4"), node("a", "4"), node("b", "500m")];
        let measured = [
            json!({"metadata": {"name": "a"}, "usage": {"cpu": "150000001n", "memory": "262144Ki"}}),
            json!({"metadata": {"name": "b"}, "usage": {"cpu": "400m", "memory": "1Mi"}}),
        ];
        expect![[r"
            NAME   CPU(cores)   CPU(%)      MEMORY(bytes)   MEMORY(%)
            b      400m         80%         1Mi             0%
            a      151m         3%          256Mi           25%
            away   <unknown>    <unknown>   <unknown>       <unknown>
        "]]
        .assert_eq(&node_table(&objects, &measured, Some(TopOrder::Cpu)).unwrap());
        let bad = [json!({"metadata": {"name": "a"}, "usage": {"cpu": "lots"}})];
        assert!(node_table(&objects, &bad, None).unwrap_err().to_string().contains("lots"));
    }

    #[test]
    fn pods_are_shown_whole_or_by_container() {
        let container = |name: &str, cpu: &str, memory: &str| json!({"name": name, "usage": {"cpu": cpu, "memory": memory}});
        let measured = [
            json!({"metadata": {"name": "web", "namespace": "shop"},
                   "containers": [container("a", "1m", "2Mi"), container("b", "2500u", "6Mi")]}),
            json!({"metadata": {"name": "db", "namespace": "shop"},
                   "containers": [container("main", "0", "9Mi")]}),
        ];
        let mut arguments = TopPods {
            name: None,
            selector: None,
            all_namespaces: false,
            containers: false,
            sort_by: None,
        };
        expect![[r"
            NAME   CPU(cores)   MEMORY(bytes)
            db     0m           9Mi
            web    4m           8Mi
        "]]
        .assert_eq(&pod_table(&measured, &arguments).unwrap());
        arguments.all_namespaces = true;
        arguments.containers = true;
        arguments.sort_by = Some(TopOrder::Memory);
        expect![[r"
            NAMESPACE   POD   NAME   CPU(cores)   MEMORY(bytes)
            shop        db    main   0m           9Mi
            shop        web   b      3m           6Mi
            shop        web   a      1m           2Mi
        "]]
        .assert_eq(&pod_table(&measured, &arguments).unwrap());
    }
}
