//! Events for people: what controllers did and what stands in the way.
//!
//! As in client-go: the same event again raises `count` and `lastTimestamp` of
//! the one there is; an object that keeps talking is slowed down; many alike
//! become one. Events are best effort: a full queue drops them, and nothing
//! waits for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::{ObjectKey, Value, meta};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::clock::Clock;
use crate::cluster::{Cluster, ClusterError, Kind, kinds};
use crate::projection::Meta;

/// Events that wait to be written.
const QUEUE_MAX: usize = 1024;
/// Most series that are remembered.
const SERIES_MAX: usize = 4096;
/// Events an object may cause in a row from one component.
const BURST: f64 = 25.0;
/// Time until it may cause one more.
const REFILL: Duration = Duration::from_mins(5);
/// Alike events within this time are counted towards [`ALIKE_MAX`].
const ALIKE_WITHIN: Duration = Duration::from_mins(10);
/// Different messages with one reason before they become one event.
const ALIKE_MAX: usize = 10;
/// Longest message; Kubernetes' limit.
const MESSAGE_BYTES_MAX: usize = 1024;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Involved {
    /// The resource of the object.
    pub kind: &'static str,
    /// Its `apiVersion`.
    pub api_version: String,
    /// Its key.
    pub key: ObjectKey,
    /// Its uid.
    pub uid: Arc<str>,
}

impl Involved {
    /// The object with this metadata.
    #[must_use]
    pub fn of(resource: Kind, object: &Meta) -> Self {
        Self {
            kind: resource.kind,
            api_version: resource.api_version(),
            key: object.key.clone(),
            uid: Arc::clone(&object.uid),
        }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// What it is about.
    pub involved: Involved,
    /// One word for programs: `Scheduled`, `FailedCreate`.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// Whether something is wrong (`type: Warning`).
    pub warning: bool,
    /// Who says so: `deployment-controller`.
    pub component: &'static str,
}

/// Takes events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder(mpsc::Sender<Record>);

/// Makes a recorder and what [`run`] needs of it.
#[must_use]
pub fn recorder() -> (Recorder, mpsc::Receiver<Record>) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (Recorder(sender), receiver)
}

impl Recorder {
    /// Tells people. Never blocks; a full queue drops the event.
    pub fn record(&self, record: Record) {
        if let Err(error) = self.0.try_send(record) {
            debug!(%error, "dropped an event");
        }
    }
}

/// Writes events until `shutdown`.
pub async fn run<C: Cluster>(
    cluster: Arc<C>,
    clock: Clock,
    mut records: mpsc::Receiver<Record>,
    shutdown: CancellationToken,
) {
    let mut correlator = Correlator::default();
    let mut n_made = 0_u64;
    loop {
        let record = tokio::select! {
            () = shutdown.cancelled() => return,
            record = records.recv() => match record {
                Some(record) => record,
                None => return,
            },
        };
        let Some(verdict) = correlator.observe(&record, Instant::now()) else {
            continue;
        };
        let known = match &verdict.event {
            Some(known) => bump(&*cluster, clock, known, &verdict.message).await,
            None => Ok(false),
        };
        let written = match known {
            Ok(true) => Ok(None),
            Ok(false) => {
                n_made += 1;
                create(&*cluster, clock, &record, &verdict.message, n_made).await.map(Some)
            }
            Err(error) => Err(error),
        };
        match written {
            Ok(Some(key)) => correlator.created(&verdict.series, key),
            Ok(None) => {}
            Err(error) => debug!(%error, reason = record.reason, "cannot write an event"),
        }
    }
}

/// Raises the count of an event. Returns whether it is still there.
async fn bump<C: Cluster>(
    cluster: &C,
    clock: Clock,
    key: &ObjectKey,
    message: &str,
) -> Result<bool, ClusterError> {
    let Some(mut event) = cluster.get(kinds::events(), key).await? else {
        return Ok(false);
    };
    let count = event.get("count").and_then(Value::as_u64).unwrap_or(1);
    event["count"] = count.saturating_add(1).into();
    event["lastTimestamp"] = clock.text().into();
    event["message"] = message.into();
    match cluster.update(kinds::events(), event).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn create<C: Cluster>(
    cluster: &C,
    clock: Clock,
    record: &Record,
    message: &str,
    n_made: u64,
) -> Result<ObjectKey, ClusterError> {
    let involved = &record.involved;
    let namespace = match involved.key.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    };
    let now = clock.now();
    let text = api::time::rfc3339(now);
    // Unique by time and count, as client-go's names are.
    let unique = u64::try_from(now.as_nanosecond()).unwrap_or(0).wrapping_add(n_made);
    let name: String = involved.key.name.chars().take(200).collect();
    let event = json!({
        "metadata": {"name": format!("{name}.{unique:016x}"), "namespace": namespace},
        "involvedObject": {
            "apiVersion": involved.api_version,
            "kind": involved.kind,
            "namespace": involved.key.namespace,
            "name": involved.key.name,
            "uid": &*involved.uid,
        },
        "reason": record.reason,
        "message": message,
        "source": {"component": record.component},
        "reportingComponent": record.component,
        "reportingInstance": "",
        "firstTimestamp": text,
        "lastTimestamp": text,
        "count": 1,
        "type": if record.warning { "Warning" } else { "Normal" },
    });
    let created = cluster.create(kinds::events(), namespace, event).await?;
    Ok(meta::object_key(&created))
}

/// Decides what becomes of each event. Pure but for what it remembers.
#[derive(Debug, Default)]
struct Correlator {
    series: HashMap<Record, Series>,
    alike: HashMap<Record, Alike>,
    tokens: HashMap<(Arc<str>, &'static str), (f64, Instant)>,
}

#[derive(Debug)]
struct Series {
    event: Option<ObjectKey>,
    last: Instant,
}

#[derive(Debug)]
struct Alike {
    messages: Vec<String>,
    since: Instant,
}

/// What becomes of an event.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// The series it belongs to.
    series: Record,
    /// The event to raise the count of; `None` to create one.
    event: Option<ObjectKey>,
    /// The message to write.
    message: String,
}

impl Correlator {
    /// `None` where the object has said enough for now.
    fn observe(&mut self, record: &Record, now: Instant) -> Option<Verdict> {
        self.forget(now);
        if !self.take_token(record, now) {
            return None;
        }
        let group = Record { message: String::new(), ..record.clone() };
        let alike = self
            .alike
            .entry(group.clone())
            .or_insert_with(|| Alike { messages: Vec::new(), since: now });
        if now.duration_since(alike.since) > ALIKE_WITHIN {
            *alike = Alike { messages: Vec::new(), since: now };
        }
        if !alike.messages.contains(&record.message) && alike.messages.len() <= ALIKE_MAX {
            alike.messages.push(record.message.clone());
        }
        let combined = alike.messages.len() > ALIKE_MAX;
        let series = if combined { group } else { record.clone() };
        let message = if combined {
            format!("(combined from similar events): {}", record.message)
        } else {
            record.message.clone()
        };
        let known =
            self.series.entry(series.clone()).or_insert_with(|| Series { event: None, last: now });
        known.last = now;
        Some(Verdict { event: known.event.clone(), series, message: cut(message) })
    }

    /// Remembers which event a series is written to.
    fn created(&mut self, series: &Record, event: ObjectKey) {
        if let Some(known) = self.series.get_mut(series) {
            known.event = Some(event);
        }
    }

    fn take_token(&mut self, record: &Record, now: Instant) -> bool {
        let key = (Arc::clone(&record.involved.uid), record.component);
        let (tokens, since) = self.tokens.entry(key).or_insert((BURST, now));
        let refilled = now.duration_since(*since).as_secs_f64() / REFILL.as_secs_f64();
        *tokens = (*tokens + refilled).min(BURST);
        *since = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    fn forget(&mut self, now: Instant) {
        if self.series.len() < SERIES_MAX && self.tokens.len() < SERIES_MAX {
            return;
        }
        let old = |at: Instant| now.duration_since(at) > ALIKE_WITHIN;
        self.series.retain(|_, series| !old(series.last));
        self.alike.retain(|_, alike| !old(alike.since));
        self.tokens.retain(|_, (_, since)| !old(*since));
        if self.series.len() >= SERIES_MAX || self.tokens.len() >= SERIES_MAX {
            self.series.clear();
            self.alike.clear();
            self.tokens.clear();
        }
    }
}

fn cut(mut message: String) -> String {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.truncate(end);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeCluster;

    fn record(message: &str) -> Record {
        Record {
            involved: Involved {
                kind: "Pod",
                api_version: "v1".to_owned(),
                key: ObjectKey::new("ns", "web"),
                uid: "u1".into(),
            },
            reason: "FailedScheduling",
            message: message.to_owned(),
            warning: true,
            component: "default-scheduler",
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_event_again_raises_the_count() {
        let cluster = Arc::new(FakeCluster::new());
        let (recorder, records) = recorder();
        let shutdown = CancellationToken::new();
        let clock = cluster.clock();
        let run = tokio::spawn(run(Arc::clone(&cluster), clock, records, shutdown.clone()));
        for message in ["no room", "no room", "no nodes", "no room"] {
            recorder.record(record(message));
        }
        cluster
            .until(|cluster| {
                let events = cluster.objects(kinds::events());
                events.iter().filter_map(|event| event["count"].as_u64()).sum::<u64>() == 4
            })
            .await;
        let mut seen: Vec<(String, u64)> = cluster
            .objects(kinds::events())
            .iter()
            .map(|event| {
                (event["message"].as_str().unwrap().to_owned(), event["count"].as_u64().unwrap())
            })
            .collect();
        seen.sort();
        assert_eq!(seen, [("no nodes".to_owned(), 1), ("no room".to_owned(), 3)]);
        shutdown.cancel();
        run.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_object_cannot_flood() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let passed = (0..100).filter(|_| correlator.observe(&record("x"), now).is_some()).count();
        assert_eq!(passed, 25);
        assert!(correlator.observe(&record("x"), now + REFILL).is_some());
        assert!(correlator.observe(&record("x"), now + REFILL).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn many_alike_become_one() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let mut series = Vec::new();
        for n in 0..15 {
            let verdict = correlator.observe(&record(&format!("try {n}")), now).unwrap();
            if !series.contains(&verdict.series) {
                series.push(verdict.series);
            }
        }
        assert_eq!(series.len(), ALIKE_MAX + 1);
        let last = correlator.observe(&record("try 15"), now).unwrap();
        assert_eq!(last.message, "(combined from similar events): try 15");
    }
}
