//! `pinnace version`.

use serde_json::json;

use crate::arguments::{Global, Version};
use crate::cluster::Cluster;
use crate::{console, yaml};

pub(super) async fn run(global: &Global, arguments: &Version) -> anyhow::Result<()> {
    let client = env!("CARGO_PKG_VERSION");
    let server = if arguments.client {
        None
    } else {
        let asked = async { Ok(Cluster::connect(global).await?.get("/version").await?) };
        Some(asked.await)
    };
    let mut all = json!({"clientVersion": {"gitVersion": format!("v{client}")}});
    let failure: Option<anyhow::Error> = match server {
        Some(Ok(version)) => {
            all["serverVersion"] = version;
            None
        }
        Some(Err(error)) => Some(error),
        None => None,
    };
    match arguments.output.as_deref() {
        Some("json") => console::line(format_args!("{all:#}"))?,
        Some(_) => console::write(yaml::emit(&all))?,
        None => {
            console::line(format_args!("Client Version: v{client}"))?;
            if let Some(version) = all["serverVersion"]["gitVersion"].as_str() {
                console::line(format_args!("Server Version: {version}"))?;
            }
        }
    }
    failure.map_or(Ok(()), Err)
}
