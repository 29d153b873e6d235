//! `pinnace scale`.

use serde_json::json;

use crate::arguments::Scale;
use crate::cluster::{Cluster, Content};
use crate::kinds::Kinds;
use crate::progress::{self, Workload};
use crate::{console, selection};

pub(super) async fn run(cluster: &Cluster, arguments: &Scale) -> anyhow::Result<()> {
    let kinds = Kinds::discover(cluster).await?;
    let mut workloads = Vec::new();
    for selection in selection::parse(&kinds, &arguments.words)? {
        let kind = selection.kind;
        if selection.names.is_empty() {
            anyhow::bail!("name what to scale: {}", kind.named("NAME"));
        }
        if !kind.subresources.iter().any(|subresource| subresource == "scale") {
            anyhow::bail!("{} cannot be scaled", kind.plural);
        }
        for name in selection.names {
            let path = kind.object(&cluster.namespace, &name);
            let scale = json!({"spec": {"replicas": arguments.replicas}});
            super::apply::patch(cluster, &format!("{path}/scale"), Content::MergePatch, &scale)
                .await?;
            console::line(format_args!("{} scaled", kind.named(&name)))?;
            workloads.push(Workload { name: kind.named(&name), path });
        }
    }
    if arguments.wait {
        progress::wait(cluster, workloads, arguments.timeout).await
    } else {
        Ok(())
    }
}
