//! `pinnace image prepull`: a ConfigMap that names images, and the wait for the
//! nodes to tell that they have them.

use anyhow::{Context, bail};
use http::Method;
use image::Reference;
use serde_json::{Value, json};

use crate::arguments::image::Prepull;
use crate::cluster::{Cluster, Content};
use crate::console;
use crate::urls::with_query;

/// How often the nodes are asked.
const ASK_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

pub(super) async fn run(cluster: &Cluster, prepull: &Prepull) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{}/configmaps/{}", cluster.namespace, prepull.name);
    if prepull.remove {
        cluster.delete_quietly(&path).await.with_context(|| prepull.name.clone())?;
        console::note(format_args!("configmap/{} removed", prepull.name));
        return Ok(());
    }
    let mut names = Vec::new();
    for image in &prepull.images {
        names.push(image.parse::<Reference>()?.to_string());
    }
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": prepull.name,
            "namespace": cluster.namespace,
            "labels": {"pinnace.io/prepull": "true"},
        },
        "data": {
            "images": prepull.images.join("\n"),
            "nodeSelector": prepull.selector,
            "imagePullSecrets": prepull.pull_secret.join(","),
        },
    });
    let apply = format!("{path}?fieldManager=pinnace&force=true");
    cluster.write(Method::PATCH, &apply, Content::ApplyPatch, &map).await?;
    console::note(format_args!("configmap/{} applied", prepull.name));
    if prepull.wait { wait(cluster, prepull, &names).await } else { Ok(()) }
}

async fn wait(cluster: &Cluster, prepull: &Prepull, names: &[String]) -> anyhow::Result<()> {
    let path = with_query("/api/v1/nodes", &[("labelSelector", &prepull.selector)]);
    let deadline = tokio::time::Instant::now() + prepull.timeout;
    loop {
        let list = cluster.get(&path).await?;
        let nodes: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
        if nodes.is_empty() {
            bail!("no node has the labels {:?}", prepull.selector);
        }
        let missing = missing(&nodes, names);
        if missing.is_empty() {
            console::note(format_args!("{} nodes have the images", nodes.len()));
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("not all nodes have the images:\n  {}", missing.join("\n  "));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Which node lacks which image, and why where it says so.
fn missing(nodes: &[&Value], names: &[String]) -> Vec<String> {
    let mut missing = Vec::new();
    for node in nodes {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let images = node["status"]["images"].as_array().into_iter().flatten();
        let has: Vec<&str> = images
            .flat_map(|image| image["names"].as_array().into_iter().flatten())
            .filter_map(Value::as_str)
            .collect();
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        let why = conditions
            .filter(|condition| {
                condition["type"] == "ImagePrepull" && condition["status"] == "True"
            })
            .find_map(|condition| condition["message"].as_str());
        for image in names.iter().filter(|image| !has.contains(&image.as_str())) {
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            missing.push(format!("{name} lacks {image}{why}"));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_lack_an_image_are_named() {
        let has =
            json!({"metadata": {"name": "a"}, "status": {"images": [{"names": ["x:1", "y:1"]}]}});
        let lacks = json!({"metadata": {"name": "b"}, "status": {"conditions": [
            {"type": "ImagePrepull", "status": "True", "message": "no route"},
        ]}});
        let names = ["x:1".to_owned()];
        assert_eq!(missing(&[&has, &lacks], &names), ["b lacks x:1: no route"]);
        assert!(missing(&[&has], &names).is_empty());
    }
}
