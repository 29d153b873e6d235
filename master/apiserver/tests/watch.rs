//! What a watch promises.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::sync::Arc;
use std::time::Duration;

use api::resource::{Resource, by_kind};
use api::selector::LabelSelector;
use pinnace_apiserver::{
    Api, DeleteOptions, Identity, ListOptions, MASTERS, PatchKind, Selection, Target, Watch,
    WatchEvent, WatchOptions, WriteOptions,
};
use serde_json::{Value, json};
use store::MemoryStore;

fn config_maps() -> &'static Resource {
    by_kind("", "ConfigMap").unwrap()
}

async fn cluster() -> (Api, Identity) {
    let api = Api::new(Arc::new(MemoryStore::new()));
    api.bootstrap().await.unwrap();
    (api, Identity::authenticated("admin", &[MASTERS]))
}

async fn put(api: &Api, who: &Identity, name: &str, color: &str) {
    let options = WriteOptions::default();
    let target = Target::object(config_maps(), "default", name);
    let object = json!({"metadata": {"name": name, "labels": {"color": color}}});
    if api.get(who, &target).is_ok() {
        api.patch(who, &target, PatchKind::Merge, object, &options).await.unwrap();
    } else {
        api.create(who, config_maps(), "default", object, &options).await.unwrap();
    }
}

async fn remove(api: &Api, who: &Identity, name: &str) {
    let target = Target::object(config_maps(), "default", name);
    api.delete(who, &target, &DeleteOptions::default()).await.unwrap();
}

fn describe(event: &WatchEvent) -> String {
    let item = |item: &pinnace_apiserver::Item| {
        let object: Value = item.value();
        let metadata = &object["metadata"];
        assert_eq!(metadata["resourceVersion"], item.revision.to_string());
        format!(
            "{} {}",
            metadata["name"].as_str().unwrap(),
            metadata["labels"]["color"].as_str().unwrap()
        )
    };
    match event {
        WatchEvent::Added(added) => format!("ADDED {}", item(added)),
        WatchEvent::Modified { item: modified, .. } => format!("MODIFIED {}", item(modified)),
        WatchEvent::Deleted(deleted) => format!("DELETED {}", item(deleted)),
        WatchEvent::Bookmark { initial_events_end, .. } => format!("BOOKMARK {initial_events_end}"),
        WatchEvent::Error(status) => format!("ERROR {}", status.code()),
    }
}

/// The next `n` events.
async fn take(watch: &mut Watch, n: usize) -> String {
    let mut lines = Vec::new();
    for _ in 0..n {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
        lines.push(event.expect("in time").as_ref().map_or_else(|| "END".to_owned(), describe));
    }
    lines.join(", ")
}

fn selected(labels: &str) -> Selection {
    Selection { labels: LabelSelector::parse(labels).unwrap(), ..Selection::all() }
}

#[tokio::test]
async fn a_watch_without_revision_begins_with_what_is_there() {
    let (api, who) = cluster().await;
    put(&api, &who, "a", "red").await;
    put(&api, &who, "b", "red").await;
    let mut watch = api.watch(&who, config_maps(), "", &WatchOptions::default()).unwrap();
    assert_eq!(take(&mut watch, 2).await, "ADDED a red, ADDED b red");
    put(&api, &who, "a", "blue").await;
    remove(&api, &who, "b").await;
    put(&api, &who, "c", "red").await;
    assert_eq!(take(&mut watch, 3).await, "MODIFIED a blue, DELETED b red, ADDED c red");
}

#[tokio::test]
async fn a_watch_from_a_list_misses_and_repeats_nothing() {
    let (api, who) = cluster().await;
    put(&api, &who, "a", "red").await;
    let list = api.list(&who, config_maps(), "default", &ListOptions::default()).unwrap();
    put(&api, &who, "a", "blue").await;
    remove(&api, &who, "a").await;
    let options = WatchOptions { resource_version: Some(list.revision), ..Default::default() };
    let mut watch = api.watch(&who, config_maps(), "default", &options).unwrap();
    assert_eq!(take(&mut watch, 2).await, "MODIFIED a blue, DELETED a blue");
    assert_eq!(watch.revision(), api.store().revision());
}

#[tokio::test]
async fn with_a_selector_objects_come_and_go() {
    let (api, who) = cluster().await;
    put(&api, &who, "a", "red").await;
    let options = WatchOptions { selection: selected("color=blue"), ..Default::default() };
    let mut watch = api.watch(&who, config_maps(), "", &options).unwrap();
    put(&api, &who, "a", "blue").await;
    put(&api, &who, "b", "red").await;
    put(&api, &who, "a", "green").await;
    put(&api, &who, "b", "blue").await;
    remove(&api, &who, "b").await;
    assert_eq!(
        take(&mut watch, 4).await,
        // What it was when it was last selected.
        "ADDED a blue, DELETED a blue, ADDED b blue, DELETED b blue"
    );
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let (api, who) = cluster().await;
    let options = WatchOptions { send_initial_events: true, bookmarks: true, ..Default::default() };
    let mut empty = api.watch(&who, config_maps(), "", &options).unwrap();
    assert_eq!(take(&mut empty, 1).await, "BOOKMARK true");
    for n in 0..600 {
        put(&api, &who, &format!("m{n:03}"), "red").await;
    }
    let mut watch = api.watch(&who, config_maps(), "", &options).unwrap();
    put(&api, &who, "late", "red").await;
    let all = take(&mut watch, 602).await;
    assert!(all.starts_with("ADDED m000 red, ADDED m001 red"), "{all}");
    assert!(all.ends_with("ADDED m599 red, BOOKMARK true, ADDED late red"), "{all}");
    assert_eq!(all.matches("late").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn bookmarks_tell_the_revision_and_the_timeout_ends_the_watch() {
    let (api, who) = cluster().await;
    let options = WatchOptions {
        bookmarks: true,
        resource_version: Some(api.store().revision()),
        timeout: Some(Duration::from_secs(90)),
        ..Default::default()
    };
    let mut watch = api.watch(&who, config_maps(), "", &options).unwrap();
    // Of another resource: nothing to deliver, but the bookmark moves on.
    let options = WriteOptions::default();
    let secret = json!({"metadata": {"name": "s"}});
    api.create(&who, by_kind("", "Secret").unwrap(), "default", secret, &options).await.unwrap();
    let Some(WatchEvent::Bookmark { revision, .. }) = watch.next().await else { panic!() };
    assert_eq!(revision, api.store().revision());
    assert!(matches!(watch.next().await, Some(WatchEvent::Bookmark { .. })), "the last word");
    assert!(watch.next().await.is_none());
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn forgotten_changes_are_expired() {
    let (api, who) = cluster().await;
    put(&api, &who, "a", "red").await;
    let start = api.store().revision();
    put(&api, &who, "a", "blue").await;
    let options = WatchOptions { resource_version: Some(start), ..Default::default() };
    let mut slow = api.watch(&who, config_maps(), "", &options).unwrap();
    put(&api, &who, "b", "blue").await;
    api.store().compact(api.store().revision()).await.unwrap();
    let status = api.watch(&who, config_maps(), "", &options).unwrap_err();
    assert_eq!(status.code(), 410);
    assert!(status.message.starts_with("too old resource version: "), "{status}");
    // One that was overtaken learns it in the stream, and ends.
    assert_eq!(take(&mut slow, 2).await, "ERROR 410, END");
    let future = WatchOptions { resource_version: Some(1 << 40), ..Default::default() };
    assert_eq!(api.watch(&who, config_maps(), "", &future).unwrap_err().code(), 504);
}
