//! A watch as an answer that does not end: one line of JSON for each event.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::negotiate::Form;
use super::table::{self, Include};
use super::{Counted, State};
use crate::verbs::{Item, Watch, WatchEvent, bookmark};

struct Streaming {
    watch: Watch,
    state: Arc<State>,
    form: Form,
    include: Include,
    with_columns: bool,
    _counted: Counted,
}

/// The answer that `watch` fills.
pub(super) fn stream(state: &Arc<State>, watch: Watch, form: Form, include: Include) -> Answer {
    let counted = Counted::new(state, |metrics| &metrics.watches);
    let state = Arc::clone(state);
    let start = Streaming { watch, state, form, include, with_columns: true, _counted: counted };
    let pieces = stream::unfold(start, |mut streaming| async move {
        let shutdown = streaming.state.shutdown.clone();
        let event = tokio::select! {
            event = streaming.watch.next() => event?,
            () = shutdown.cancelled() => return None,
        };
        let line = streaming.line(event);
        Some((Ok(line), streaming))
    });
    // Never compressed: an event would wait in the compressor for the next.
    answer::json_pieces(Box::pin(pieces), false)
}

impl Streaming {
    fn line(&mut self, event: WatchEvent) -> Bytes {
        match event {
            WatchEvent::Added(item) => self.object("ADDED", &item),
            WatchEvent::Modified { item, .. } => self.object("MODIFIED", &item),
            WatchEvent::Deleted(item) => self.object("DELETED", &item),
            WatchEvent::Bookmark { revision, initial_events_end } => {
                let object = bookmark(self.watch.resource(), revision, initial_events_end);
                let object = match self.form {
                    Form::Object | Form::Discovery => object,
                    Form::Metadata => table::partial(object),
                    Form::Table => self.table(object),
                };
                frame("BOOKMARK", &serde_json::to_vec(&object).expect("a Value serialises"))
            }
            WatchEvent::Error(status) => {
                let status = serde_json::to_vec(&status.to_json()).expect("a Value serialises");
                frame("ERROR", &status)
            }
        }
    }

    fn object(&mut self, kind: &str, item: &Item) -> Bytes {
        let converted = match self.form {
            Form::Object | Form::Discovery => return frame(kind, &item.object),
            Form::Metadata => table::partial(item.value()),
            Form::Table => self.table(item.value()),
        };
        frame(kind, &serde_json::to_vec(&converted).expect("a Value serialises"))
    }

    fn table(&mut self, object: Value) -> Value {
        let revision = object["metadata"]["resourceVersion"].clone();
        let metadata = json!({"resourceVersion": revision});
        let with_columns = std::mem::take(&mut self.with_columns);
        let resource = self.watch.resource();
        table::table(resource, vec![object], self.include, &metadata, with_columns)
    }
}

/// One line of a watch.
fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(kind.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    Bytes::from(line)
}
