//! The leases of processes with workers: this process' own, and what is known of those of others.
//!
//! A process has one lease for all of its workers with one store. So its renewals do not grow in number with the tasks that
//! are worked on, and neither do the checks of those who read these tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use pmcp_tasks::store::backend::VersionedRecord;
use pmcp_tasks::{GenericTaskStore, StorageError, TaskError, TaskStatus};
use pmcptask_schema::split_composite;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::failing::{self, DIED};
use super::found::Found;
use super::mark::Mark;
use crate::backend::RedisBackend;
use crate::error::{CallKind, Error};
use crate::lease::{self, Lease};

/// How soon a lease is looked at again that is dead, has no known end, or could not be looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often a task whose worker has died is read again because somebody changes it.
const ATTEMPTS: usize = 10;

/// The lease of this process.
pub(super) struct ProcessLease {
    /// The composite key of the lease.
    pub(super) key: String,
    valid_until: watch::Receiver<Instant>,
}

impl ProcessLease {
    pub(super) fn is_valid(&self) -> bool {
        *self.valid_until.borrow() > Instant::now()
    }

    /// Whether the lease is renewed. That ends with the runtime that renews it.
    fn is_kept(&self) -> bool {
        self.valid_until.has_changed().is_ok()
    }

    /// Resolves once the lease is not valid any more.
    pub(super) async fn loss(&self) {
        let mut changes = self.valid_until.clone();
        loop {
            let valid_until = *changes.borrow_and_update();
            if valid_until <= Instant::now() {
                return;
            }
            tokio::select! {
                () = sleep_until(valid_until) => {}
                Ok(()) = changes.changed() => {}
            }
        }
    }
}

/// The lease of this process, and what is known of those of others.
pub(super) struct ProcessLeases {
    backend: RedisBackend,
    pub(super) duration: Duration,
    own: tokio::sync::Mutex<Own>,
    others: Mutex<Others>,
}

/// The lease of this process.
#[derive(Default)]
struct Own {
    lease: Weak<ProcessLease>,
    /// When it could not be acquired for the last time, and why.
    failure: Option<(Instant, Arc<StorageError>)>,
}

/// What is known of the leases of other processes, by their composite keys.
#[derive(Default)]
struct Others {
    by_key: HashMap<String, Arc<Entry>>,
    /// How many were left when those were removed that nobody asks for any more.
    kept: usize,
}

impl Others {
    fn entry(&mut self, lease: &str) -> Arc<Entry> {
        // Now and then, so that an entry costs little.
        if self.by_key.len() > self.kept.saturating_mul(2).saturating_add(16) {
            // Somebody looks at one that is locked.
            self.by_key.retain(|_, entry| entry.try_lock().map_or(true, |known| holds(*known)));
            self.kept = self.by_key.len();
        }
        self.by_key.entry(lease.to_owned()).or_default().clone()
    }
}

/// What is known of a lease. One looks, and the others wait for what is found.
type Entry = tokio::sync::Mutex<Option<Verdict>>;

/// What a look at a lease has found.
#[derive(Clone, Copy)]
struct Verdict {
    is_alive: bool,
    /// Until then, nobody looks again.
    until: Instant,
}

impl Verdict {
    fn alive_until(self) -> Option<Instant> {
        self.is_alive.then_some(self.until)
    }
}

fn holds(known: Option<Verdict>) -> bool {
    known.is_some_and(|verdict| verdict.until > Instant::now())
}

impl ProcessLeases {
    pub(super) fn new(backend: RedisBackend, duration: Duration) -> Self {
        Self { backend, duration, own: tokio::sync::Mutex::default(), others: Mutex::default() }
    }

    /// The lease of this process, acquired if there is none. It is renewed as long as anybody keeps what is returned.
    /// Callers that wait for an acquisition share its failure. Otherwise each caller would start its own attempt after the one
    /// before, and the last would fail late.
    pub(super) async fn own(self: &Arc<Self>) -> Result<Arc<ProcessLease>, Arc<StorageError>> {
        let (leases, asked) = (self.clone(), Instant::now());
        // A task of its own: a caller that is not polled any more must not keep the lock, which renewals wait for.
        let acquired = tokio::spawn(async move {
            let mut own = leases.own.lock().await;
            if let Some(lease) = own.lease.upgrade().filter(|lease| lease.is_valid() && lease.is_kept()) {
                return Ok(lease);
            }
            if let Some((_, failure)) = own.failure.as_ref().filter(|(failed, _)| *failed > asked) {
                return Err(failure.clone());
            }
            match leases.acquire().await {
                Ok(lease) => {
                    *own = Own { lease: Arc::downgrade(&lease), failure: None };
                    Ok(lease)
                }
                Err(error) => {
                    let failure = Arc::new(error);
                    own.failure = Some((Instant::now(), failure.clone()));
                    Err(failure)
                }
            }
        });
        acquired.await.unwrap_or_else(|error| {
            let message = format!("the lease of workers was not acquired: {error}");
            Err(Arc::new(StorageError::Backend { message, source: Some(Box::new(error)) }))
        })
    }

    async fn acquire(self: &Arc<Self>) -> Result<Arc<ProcessLease>, StorageError> {
        // Nobody else acquires this name.
        let name = format!("worker-{:032x}", fastrand::u128(..));
        let lost = || Error::LeaseLost { name: name.clone() };
        let lease = Lease::acquire(&self.backend, &name, self.duration).await?.ok_or_else(lost)?;
        let (sender, valid_until) = watch::channel(lease.valid_until());
        let shared = Arc::new(ProcessLease { key: lease.key().to_owned(), valid_until });
        tokio::spawn(keep(self.clone(), lease, sender, shared.clone()));
        Ok(shared)
    }

    /// Resolves once the lease in the mark is dead.
    pub(super) async fn death_of(self: &Arc<Self>, mark: &Mark) {
        while let Some(until) = self.alive_until(&mark.lease).await {
            sleep_until(until).await;
        }
    }

    /// Until when a lease lives, up to 1 ms more because `PTTL` counts in whole ms; None if it is dead. A lease that cannot be
    /// looked at is taken for alive, for a short time: the worker may well be.
    async fn alive_until(self: &Arc<Self>, lease: &str) -> Option<Instant> {
        // This process knows best whether it lives.
        if let Ok(Some(own)) = self.own.try_lock().map(|own| own.lease.upgrade())
            && own.key == lease
            && own.is_valid()
        {
            return Some(*own.valid_until.borrow());
        }
        let entry = self.others().entry(lease);
        if let Ok(Some(verdict)) = entry.try_lock().as_deref()
            && holds(Some(*verdict))
        {
            return verdict.alive_until();
        }
        let (leases, lease) = (self.clone(), lease.to_owned());
        // A task of its own: a caller that is not polled any more must not keep the lock, which all others wait for.
        let looked = tokio::spawn(async move { leases.look_at(&lease, &entry).await });
        // The runtime ends.
        looked.await.unwrap_or_else(|_| Instant::now().checked_add(LOOK_AGAIN))
    }

    /// Looks at a lease, unless somebody has done so just before.
    async fn look_at(&self, lease: &str, entry: &Entry) -> Option<Instant> {
        let mut known = entry.lock().await;
        if let Some(verdict) = *known
            && holds(*known)
        {
            return verdict.alive_until();
        }
        let asked = Instant::now();
        let left = lease::left(&self.backend, lease).await;
        // Counted from the answer: whoever waits for this look shares that the lease is dead or unknown, also if it took long.
        let soon = Instant::now().checked_add(LOOK_AGAIN);
        let (is_alive, until) = match left {
            Ok(None) => (false, soon),
            Ok(Some(left)) if !left.is_zero() => (true, asked.checked_add(left)),
            // What is no key of a lease is no lease.
            Err(error) if matches!(Error::of(&error), Some(Error::Key(_))) => (false, soon),
            _ => (true, soon),
        };
        *known = until.map(|until| Verdict { is_alive, until });
        known.and_then(Verdict::alive_until)
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of a marked task that is not terminal. If its worker is dead, the task fails first.
    pub(super) async fn fail_if_dead(
        self: &Arc<Self>,
        key: &str,
        mut record: VersionedRecord,
        mut mark: Mark,
    ) -> Result<VersionedRecord, StorageError> {
        for _ in 0..ATTEMPTS {
            if self.alive_until(&mark.lease).await.is_some() {
                return Ok(record);
            }
            // The record may come from a replica, or from before a failover.
            let epoch = self.backend.session().epoch();
            record = self.backend.read_record(key, CallKind::ReadToReplace).await?;
            match Mark::of_unfinished(&record.data) {
                None => return Ok(record),
                Some(now) if now != mark => mark = now,
                Some(_) => match self.fail(key, &record, epoch).await {
                    // Somebody else changes it too.
                    Err(TaskError::ConcurrentModification { .. }) => {}
                    Ok(failed) => return Ok(failed),
                    // Whoever reads the task next may be able to write.
                    Err(_) => return Ok(record),
                },
            }
        }
        Ok(record)
    }

    /// Fails a task, with upstream's code.
    async fn fail(
        &self,
        key: &str,
        record: &VersionedRecord,
        epoch: u64,
    ) -> Result<VersionedRecord, TaskError> {
        let Ok((owner_id, task_id)) = split_composite(key) else {
            return Err(TaskError::NotFound { task_id: key.to_owned() });
        };
        let record = failing::with_error(record.clone(), DIED);
        let store = GenericTaskStore::new(Found::task_to_change(record, self.backend.clone(), epoch));
        let died = Some(DIED.to_owned());
        let failed = store.update_status(task_id, owner_id, TaskStatus::Failed, died).await?;
        // As upstream has just written it.
        let data = serde_json::to_vec(&failed).map_err(|error| TaskError::StoreError(error.to_string()))?;
        Ok(VersionedRecord { data, version: failed.version })
    }
}

/// Renews the lease as long as anybody works, and gives it up after a period in which nobody did.
async fn keep(
    leases: Arc<ProcessLeases>,
    mut lease: Lease,
    valid_until: watch::Sender<Instant>,
    shared: Arc<ProcessLease>,
) {
    let period = leases.duration.mul_f32(1.0 / 3.0);
    loop {
        sleep(period).await;
        let mut own = leases.own.lock().await;
        if Arc::strong_count(&shared) == 1 {
            // A newer one stays.
            if own.lease.as_ptr() == Arc::as_ptr(&shared) {
                own.lease = Weak::new();
            }
            break;
        }
        drop(own);
        if !renew(&mut lease, period.mul_f32(0.2)).await {
            // Also where the local clock would give more time. What is lost stays lost.
            valid_until.send_replace(Instant::now());
            return;
        }
        valid_until.send_replace(lease.valid_until());
    }
    // Otherwise it ends by itself.
    drop(lease.release().await);
}

/// Renews a lease while it is valid; false if it is lost.
async fn renew(lease: &mut Lease, pause: Duration) -> bool {
    let valid_until = lease.valid_until();
    loop {
        match timeout_at(valid_until, lease.renew()).await {
            Ok(Ok(())) => return true,
            // Without replicas the lease is as good as all that is written meanwhile.
            Ok(Err(_)) if lease.valid_until() > valid_until => return true,
            Ok(Err(_)) if lease.is_valid() => sleep(pause).await,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn leases_that_are_over_are_forgotten_and_those_that_live_are_not() {
        const LIVING: usize = 50;
        let until = Instant::now().checked_add(Duration::from_mins(1)).unwrap();
        let mut others = Others::default();
        for n in 0..LIVING {
            *others.entry(&format!("living:{n}")).try_lock().unwrap() =
                Some(Verdict { is_alive: true, until });
        }
        for n in 0..10_000 {
            drop(others.entry(&format!("over:{n}")));
            assert!(others.by_key.len() <= 3 * LIVING);
        }
        let mut is_known = |n| others.entry(&format!("living:{n}")).try_lock().unwrap().is_some();
        assert!((0..LIVING).all(&mut is_known));
    }
}
