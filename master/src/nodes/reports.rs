//! Stores what a node reports, as that node: the API's rules keep it to its own
//! pods.
//!
//! A report may arrive again, late or for pods that are long gone; applying one
//! twice writes nothing.

use std::sync::Arc;

use api::{ObjectKey, meta};
use apiserver::{Api, DeleteOptions, Identity, Reason, Status, Target, WriteOptions};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tracing::{debug, warn};
use wire::status::{PodStatusV1, ReportV1};

use super::index::has_uid;
use crate::clock;
use crate::enrol::resource;
use lower::pod_status;

/// Pods written at once: enough for one commit to carry many.
const CONCURRENCY: usize = 16;
/// Tries against other writers of the same pod.
const TRIES: usize = 5;

/// Stores reports.
#[derive(Clone, Debug)]
pub(super) struct Reports {
    api: Api,
    options: Arc<WriteOptions>,
}

impl Reports {
    pub(super) fn new(api: Api) -> Self {
        Self { api, options: Arc::new(WriteOptions::by("pinnace-agent")) }
    }

    /// Stores every status of a report; whether all of them are stored, so that
    /// it may be acknowledged.
    pub(super) async fn store(&self, node: &str, host_ip: &str, report: &ReportV1) -> bool {
        let who = Identity::node(node);
        let mut running = FuturesUnordered::new();
        let mut all_stored = true;
        for status in &report.pods {
            if CONCURRENCY <= running.len() {
                all_stored &= running.next().await.unwrap_or(true);
            }
            running.push(self.store_pod(&who, host_ip, status));
        }
        while let Some(stored) = running.next().await {
            all_stored &= stored;
        }
        all_stored
    }

    async fn store_pod(&self, who: &Identity, host_ip: &str, status: &PodStatusV1) -> bool {
        let key = ObjectKey::new(&status.namespace, &status.name);
        for _ in 0..TRIES {
            match self.try_store(who, host_ip, &key, status).await {
                Ok(()) => return true,
                Err(error) => match error.reason {
                    Reason::Conflict => (),
                    // The pod is gone, or another one, or elsewhere: nothing to store.
                    Reason::NotFound => return true,
                    Reason::Forbidden | Reason::Invalid | Reason::BadRequest => {
                        warn!(user = who.user, pod = %key, error = error.message, "report refused");
                        return true;
                    }
                    _ => {
                        warn!(user = who.user, pod = %key, error = error.message, "report not stored");
                        return false;
                    }
                },
            }
        }
        false
    }

    async fn try_store(
        &self,
        who: &Identity,
        host_ip: &str,
        key: &ObjectKey,
        report: &PodStatusV1,
    ) -> Result<(), Status> {
        let target = Target::object(resource("Pod"), &key.namespace, &key.name);
        let mut pod = self.api.get_value(who, &target)?;
        if !has_uid(&pod, &report.uid) {
            debug!(pod = %key, "report about an earlier pod of that name");
            return Ok(());
        }
        let status = pod_status(&pod, report, host_ip, clock::timestamp());
        if pod["status"] != status {
            pod["status"] = status;
            self.api
                .update_status(who, &target.subresource("status"), pod.clone(), &self.options)
                .await?;
        }
        if report.terminated && meta::is_terminating(&pod) {
            let options = DeleteOptions {
                grace_period_seconds: Some(0),
                uid: Some(meta::uid(&pod).to_owned()),
                ..DeleteOptions::default()
            };
            self.api.delete(who, &target, &options).await?;
        }
        Ok(())
    }
}
