//! Checkpoints that are found by their id alone. For each there is a pointer: a task without data, whose owner is the
//! checkpoint's id, in a prefix of its own. Its task id has the thread and the creation time.

use futures_util::future::try_join_all;
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend as _;
use pmcptask_client::{Applied, ListedEntry, Order, RedisBackend, WriteTerms};

use crate::error::Error;
use crate::ids::DatedId;
use crate::threads::{PAGE, Stored, Threads, composite, expiring};

/// How many threads with a checkpoint of one id are asked for at once. Few ids are in more than one.
const PAGE_OF_THREADS: usize = 10;

impl Threads {
    /// Stores a record as the thread's newest, or over the one with this id, so that it is found by its id. One round trip.
    pub(crate) async fn save(&self, thread: &str, id: &DatedId, json: Vec<u8>) -> Result<(), Error> {
        let data = self.encoded(json)?;
        let (record, pointer) = (composite(thread, &id.written()), pointer(thread, id));
        let turn = self.turn();
        let pointers = pointers(turn.backend())?;
        // Both expire in the same millisecond.
        let expiry = self.expiry();
        let (terms, terms_of_pointer) = (self.terms(expiry), expiring(WriteTerms::new().newest(), expiry));
        let (written, pointed) = futures_util::join!(
            turn.backend().put_with(&record, &data, &terms),
            pointers.put_with(&pointer, b"", &terms_of_pointer),
        );
        if was_refused(&written) && matches!(pointed, Ok(1)) {
            // The pointer is new, and leads nowhere. If this fails, it is left over until its TTL ends.
            drop(pointers.delete_if_version(&pointer, 1).await);
        }
        written?;
        pointed.map(drop).map_err(Error::NotFindable)
    }

    /// The record with this id, and its thread. If several threads have the id, it is the one that got it last. Two round trips.
    pub(crate) async fn find(&self, id: &str) -> Result<Option<(String, Stored)>, Error> {
        let turn = self.turn();
        let pointers = pointers(turn.backend())?;
        let mut after = None;
        loop {
            let page = pointers.list_entries(id, after.as_ref(), PAGE_OF_THREADS, Order::NewestFirst).await?;
            // What others wrote leads nowhere.
            for at in page.iter().filter_map(|entry| DatedId::read(&entry.task_id)) {
                let (thread, dated) = (at.text, DatedId { created_us: at.created_us, text: id.to_owned() });
                if let Some(stored) = self.get(&thread, &dated.written()).await? {
                    return Ok(Some((thread, stored)));
                }
            }
            if page.len() < PAGE_OF_THREADS {
                return Ok(None);
            }
            after = page.last().map(ListedEntry::position);
        }
    }

    /// Removes what makes records found, `PAGE` per round trip.
    pub(crate) async fn remove_pointers(&self, thread: &str, ids: &[DatedId]) -> Result<(), Error> {
        let turn = self.turn();
        let pointers = &pointers(turn.backend())?;
        for page in ids.chunks(PAGE) {
            let deleted = page.iter().map(|id| async move { pointers.delete(&pointer(thread, id)).await });
            try_join_all(deleted).await?;
        }
        Ok(())
    }

    /// Gives what makes records found its whole TTL again, if reads do that, `PAGE` per round trip.
    pub(crate) async fn refresh_pointers(&self, thread: &str, ids: &[DatedId]) -> Result<(), Error> {
        let Some(expiry) = self.expiry_after_read() else { return Ok(()) };
        let turn = self.turn();
        let pointers = &pointers(turn.backend())?;
        for page in ids.chunks(PAGE) {
            let refreshed = page
                .iter()
                .map(|id| async move { pointers.expire(&pointer(thread, id), Some(expiry)).await });
            try_join_all(refreshed).await?;
        }
        Ok(())
    }
}

fn pointers(backend: &RedisBackend) -> Result<RedisBackend, Error> {
    let prefix = [backend.prefix()?, ":by-id"].concat();
    Ok(backend.clone().with_prefix(prefix))
}

/// The composite key of the pointer to a checkpoint.
fn pointer(thread: &str, id: &DatedId) -> String {
    composite(&id.text, &DatedId { created_us: id.created_us, text: thread.to_owned() }.written())
}

/// Whether a write was certainly not made. It was made if only too few replicas have it.
fn was_refused<T>(written: &Result<T, StorageError>) -> bool {
    let Err(error) = written else { return false };
    pmcptask_client::Error::of(error).is_none_or(|error| error.was_applied() == Applied::No)
}
