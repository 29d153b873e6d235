//! A watch as an answer that does not end: one line of JSON for each event.

use std::sync::Arc;

use bytes::Bytes;
use front::answer::{self, Answer};
use front::negotiate::Form;
use front::printers;
use front::shape::{Shape, watch_line};
use front::table::{self, Include};
use futures::stream;
use serde_json::Value;

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
                watch_line("BOOKMARK", &serde_json::to_vec(&object).expect("a Value serialises"))
            }
            WatchEvent::Error(status) => {
                let status = serde_json::to_vec(&status.to_json()).expect("a Value serialises");
                watch_line("ERROR", &status)
            }
        }
    }

    fn object(&mut self, kind: &str, item: &Item) -> Bytes {
        let converted = match self.form {
            Form::Object | Form::Discovery => return watch_line(kind, &item.object),
            Form::Metadata => table::partial(item.value()),
            Form::Table => self.table(item.value()),
        };
        watch_line(kind, &serde_json::to_vec(&converted).expect("a Value serialises"))
    }

    fn table(&mut self, object: Value) -> Value {
        let with_columns = std::mem::take(&mut self.with_columns);
        let printer = printers::printer(self.watch.resource());
        let shape = Shape { form: self.form, include: self.include, printer };
        shape.row(object, with_columns)
    }
}
