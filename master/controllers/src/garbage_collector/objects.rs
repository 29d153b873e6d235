//! Caches of different resources behind one trait.

use std::fmt;

use api::ObjectKey;
use futures::future::BoxFuture;

use crate::cache::Cache;
use crate::cluster::Kind;
use crate::projection::{Meta, Projection, Term, intern};

/// What a handler of [`Objects::on_change`] is told.
pub type MetaHandler = Box<dyn Fn(Option<&Meta>, Option<&Meta>) + Send + Sync>;

/// The metadata of one resource's objects.
pub trait Objects: Send + Sync + fmt::Debug + 'static {
    /// The resource.
    fn resource(&self) -> Kind;
    /// One object's.
    fn get(&self, key: &ObjectKey) -> Option<Meta>;
    /// That of every object with this owner.
    fn of_owner(&self, uid: &str) -> Vec<Meta>;
    /// Whether any object has this owner.
    fn has_owned(&self, uid: &str) -> bool;
    /// Calls `handler` after every change, and now for every object there is.
    fn on_change(&self, handler: MetaHandler);
    /// Waits until everything there is has been listed once.
    fn synced(&self) -> BoxFuture<'_, ()>;
}

impl<T: Projection + fmt::Debug> Objects for Cache<T> {
    fn resource(&self) -> Kind {
        Self::resource(self)
    }

    fn get(&self, key: &ObjectKey) -> Option<Meta> {
        Self::get(self, key).map(|object| object.meta().clone())
    }

    fn of_owner(&self, uid: &str) -> Vec<Meta> {
        let found = self.find(&Term::Owner(intern(uid)));
        found.iter().map(|object| object.meta().clone()).collect()
    }

    fn has_owned(&self, uid: &str) -> bool {
        self.any(&Term::Owner(intern(uid)))
    }

    fn on_change(&self, handler: MetaHandler) {
        Self::on_change(self, move |before, after| {
            handler(before.map(|b| b.meta()), after.map(|a| a.meta()));
        });
    }

    fn synced(&self) -> BoxFuture<'_, ()> {
        Box::pin(Self::synced(self))
    }
}
