//! DELETE of a collection: every object that is selected.

use api::resource::{Resource, Verb};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::read::Filter;
use super::{Api, Deleted, Target, stored};
use crate::identity::Identity;
use crate::object;
use crate::options::{DeleteOptions, ListOptions, Selection};
use crate::status::{Reason, Status};

/// Deletes under way at once: the store commits what comes together.
const PARALLEL: usize = 64;

impl Api {
    /// Deletes every object that is selected, as they are now; one that is gone
    /// or replaced meanwhile is left alone.
    ///
    /// # Errors
    /// `Forbidden`, or the first that a delete returns.
    pub async fn delete_collection(
        &self,
        who: &Identity,
        resource: &'static Resource,
        namespace: &str,
        selection: &Selection,
        options: &DeleteOptions,
    ) -> Result<Vec<Deleted>, Status> {
        let target = Target::object(resource, namespace, "");
        self.authorize_selected(who, Verb::DeleteCollection, &target, Some(selection))?;
        stored(resource)?;
        let filter = Filter::new(resource, selection.clone())?;
        let list = ListOptions { selection: selection.clone(), ..ListOptions::default() };
        let mut pages = self.list_unchecked(&filter, namespace, &list)?;
        let mut deleted = Vec::new();
        while let Some(page) = pages.next_page()? {
            let deletes = page.into_iter().map(|item| async move {
                let found: Value = item.value();
                let target = Target::object(
                    resource,
                    object::meta(&found, "namespace"),
                    object::meta(&found, "name"),
                );
                let uid = Some(object::meta(&found, "uid").to_owned());
                let options = DeleteOptions { uid, ..options.clone() };
                match self.delete_checked(&target, &options).await {
                    Ok(deleted) => Ok(Some(deleted)),
                    Err(status) if matches!(status.reason, Reason::NotFound | Reason::Conflict) => {
                        Ok(None)
                    }
                    Err(status) => Err(status),
                }
            });
            let page: Vec<_> = stream::iter(deletes).buffered(PARALLEL).try_collect().await?;
            deleted.extend(page.into_iter().flatten());
        }
        Ok(deleted)
    }
}
