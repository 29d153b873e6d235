//! A watch of the pods: what is there now and what a client holds are compared
//! whenever something may have changed, so nothing waits in a queue but lines that
//! are about to be sent, one a pod.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use api::Value;
use bytes::Bytes;
use front::answer::{self, Answer};
use front::negotiate::Form;
use front::shape::{Shape, watch_line};
use front::status::Status;
use front::table;
use futures::stream;
use serde_json::json;
use tokio::time::Instant;
use wire::Uid;

use super::Door;
use super::ledger::Item;
use super::requests::Which;
use crate::pods::owner::{Board, Roster};

/// Between two lines that say how far the watch is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long a watch runs that does not say.
const WATCH_TIME: Duration = Duration::from_secs(1800);

/// How a watch begins and ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    /// Changes after this revision; `None` and 0 begin with what is there now.
    pub(super) revision: u64,
    /// What is there now comes first, then a bookmark that says so.
    pub(super) initial: bool,
    /// Say now and then how far it is.
    pub(super) bookmarks: bool,
    /// End after this long.
    pub(super) timeout: Option<Duration>,
}

struct Watching {
    door: Arc<Door>,
    which: Which,
    shape: Shape,
    with_columns: bool,
    /// What the client holds.
    held: BTreeMap<Uid, Item>,
    lines: VecDeque<Bytes>,
    revision: u64,
    board: Board,
    roster: Roster,
    bookmark_at: Option<Instant>,
    deadline: Instant,
    ended: bool,
}

/// The answer that a watch fills.
///
/// # Errors
/// `Expired`: what changed since the revision is not known any more.
pub(super) fn start(
    door: &Arc<Door>,
    which: Which,
    shape: Shape,
    options: &Options,
) -> Result<Answer, Status> {
    let (mut board, mut roster) = (door.sources.board.clone(), door.sources.roster.clone());
    // What changes from here on wakes it; what is there now it reads after that.
    board.mark_unchanged();
    roster.mark_unchanged();
    let now = Instant::now();
    let mut watching = Watching {
        door: Arc::clone(door),
        which,
        shape,
        with_columns: true,
        held: BTreeMap::new(),
        lines: VecDeque::new(),
        revision: 0,
        board,
        roster,
        bookmark_at: options.bookmarks.then(|| now + BOOKMARK_EVERY),
        deadline: now + options.timeout.unwrap_or(WATCH_TIME),
        ended: false,
    };
    watching.begin(options)?;
    let pieces = stream::unfold(watching, |mut watching| async move {
        let line = watching.next().await?;
        Some((Ok(line), watching))
    });
    Ok(answer::json_pieces(Box::pin(pieces), false))
}

impl Watching {
    fn begin(&mut self, options: &Options) -> Result<(), Status> {
        let (items, revision) = self.door.items();
        self.revision = revision;
        let since = options.revision;
        if since == 0 || options.initial {
            self.compare(items);
            if options.initial {
                self.bookmark(true);
            }
            return Ok(());
        }
        let missed = self.door.missed(since)?;
        for object in missed.gone {
            if self.which.selects(&object) {
                self.say("DELETED", object);
            }
        }
        for item in items {
            let is_selected = self.which.selects(&item.object);
            if item.revision <= since || item.made <= since {
                // The client has seen it, in this version or another.
                if !is_selected && item.revision > since {
                    self.say("DELETED", item.object);
                } else if is_selected {
                    if item.revision > since {
                        self.say("MODIFIED", item.object.clone());
                    }
                    self.held.insert(item.uid, item);
                }
            } else if is_selected {
                self.say("ADDED", item.object.clone());
                self.held.insert(item.uid, item);
            }
        }
        Ok(())
    }

    /// The next line; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            let stop = self.door.stop.clone();
            let bookmark = async {
                match self.bookmark_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.deadline) => {
                    if self.bookmark_at.is_some() {
                        self.bookmark(false);
                    }
                    self.ended = true;
                }
                () = bookmark => {
                    self.bookmark(false);
                    self.bookmark_at = Some(Instant::now() + BOOKMARK_EVERY);
                }
                // The senders end with the agent.
                changed = self.board.changed() => self.look(changed.is_err()),
                changed = self.roster.changed() => self.look(changed.is_err()),
            }
        }
    }

    fn look(&mut self, is_over: bool) {
        self.ended = is_over;
        let (items, revision) = self.door.items();
        self.revision = revision;
        self.compare(items);
    }

    /// Says what differs between `items` and what the client holds. What is gone goes
    /// first: its name may be another's now.
    fn compare(&mut self, items: Vec<Item>) {
        let mut before = std::mem::take(&mut self.held);
        let selected: Vec<Item> =
            items.into_iter().filter(|item| self.which.selects(&item.object)).collect();
        let is_there = |uid: &Uid| selected.iter().any(|item| item.uid == *uid);
        let gone: Vec<Uid> = before.keys().filter(|uid| !is_there(uid)).copied().collect();
        for uid in gone {
            if let Some(mut item) = before.remove(&uid) {
                item.object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
                self.say("DELETED", item.object);
            }
        }
        for item in selected {
            match before.get(&item.uid) {
                Some(known) if known.revision == item.revision => {}
                Some(_) => self.say("MODIFIED", item.object.clone()),
                None => self.say("ADDED", item.object.clone()),
            }
            self.held.insert(item.uid, item);
        }
    }

    fn say(&mut self, kind: &str, object: Value) {
        let object = match self.shape.form {
            Form::Object | Form::Discovery => object,
            Form::Metadata => table::partial(object),
            Form::Table => self.shape.row(object, std::mem::take(&mut self.with_columns)),
        };
        let bytes = serde_json::to_vec(&object).expect("a Value always serialises");
        self.lines.push_back(watch_line(kind, &bytes));
    }

    fn bookmark(&mut self, is_initial_end: bool) {
        let mut object = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"resourceVersion": self.revision.to_string()},
        });
        if is_initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.say("BOOKMARK", object);
    }
}
