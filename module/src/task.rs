//! A task open for writing: its hash, its index entry and its expiry, changed as one unit.

use std::ffi::CStr;

use pmcptask_schema::{IndexKey, TaskKey, expires_at_seconds};

use crate::fields::{DATA, EXPIRES_AT, FIRST_VERSION, VERSION};
use crate::record::{self, ExpiresAt, Header, Stored};
use crate::refusal::Refusal;
use crate::server::{Context, Failed, Key, Kind, OwnedString, StringRef};
use crate::settings::MAX_RECORD_BYTES;
use crate::slots::Slots;
use crate::terms::Terms;
use crate::time::Time;
use crate::{effects, index, reclaim};

/// The longest value that a small hash (a listpack) takes, in bytes: the server's
/// default `hash-max-listpack-value`.
const LONG: usize = 64;

/// The two keys of one task, open for writing. Opening them writes nothing.
pub(crate) struct OpenTask<'c> {
    context: &'c Context,
    task_name: StringRef<'c>,
    hash: Key<'c>,
    index_name: StringRef<'c>,
    index: Key<'c>,
    index_key: IndexKey<'c>,
    task_id: OwnedString<'c>,
    /// One timestamp for all decisions of a command.
    now_ms: i64,
}

impl<'c> OpenTask<'c> {
    /// Opens both keys, which have to belong together.
    ///
    /// # Errors
    ///
    /// [`Refusal::Key`] and [`Refusal::WrongType`].
    pub(crate) fn open(
        context: &'c Context,
        task_name: StringRef<'c>,
        index_name: StringRef<'c>,
    ) -> Result<Self, Refusal> {
        let task_key = TaskKey::parse(task_name.bytes())?;
        let index_key = IndexKey::parse(index_name.bytes())?;
        index_key.check_holds(&task_key)?;
        let hash = Key::open_for_writing(context, task_name);
        let index = Key::open_for_writing(context, index_name);
        if !matches!(hash.kind(), Kind::Hash | Kind::Nothing)
            || !matches!(index.kind(), Kind::SortedSet | Kind::Nothing)
        {
            return Err(Refusal::WrongType);
        }
        let task_id = context.create_string(task_key.task_id);
        Ok(Self { context, task_name, hash, index_name, index, index_key, task_id, now_ms: context.now_ms() })
    }

    /// What is stored, without reading the record.
    ///
    /// # Errors
    ///
    /// [`Refusal::Corrupt`].
    pub(crate) fn stored(&self) -> Result<Stored, Refusal> {
        let stored = record::header_of(self.context, &self.hash, self.task_name, self.now_ms)?;
        if stored == Stored::Lapsed {
            reclaim::note_lapsed(self.context, self.task_name);
        }
        Ok(stored)
    }

    /// Checks that another task lives. In a cluster, its key has to have the same slot: before they run a command, most
    /// servers look only at the keys whose place never changes.
    ///
    /// # Errors
    ///
    /// [`Refusal::CrossSlot`], [`Refusal::NotHeld`], [`Refusal::MayBeElsewhere`] and [`Refusal::WrongType`].
    pub(crate) fn check_held(&self, held: StringRef<'_>) -> Result<(), Refusal> {
        let slots = Slots::of(self.context);
        if !slots.have_same(self.task_name.bytes(), held.bytes()) {
            return Err(Refusal::CrossSlot);
        }
        let stored = record::header_unnoticed(self.context, held, self.now_ms);
        match stored {
            Ok(Stored::Live(_)) => return Ok(()),
            Ok(Stored::Lapsed) => reclaim::note_lapsed(self.context, held),
            Ok(Stored::Nothing) if slots.may_be_elsewhere(held.bytes()) => {
                return Err(Refusal::MayBeElsewhere { key: held.bytes().to_vec() });
            }
            // A corrupt hash is no task that somebody holds.
            Ok(Stored::Nothing) | Err(Refusal::Corrupt { .. }) => {}
            Err(refusal) => return Err(refusal),
        }
        Err(Refusal::NotHeld { key: held.bytes().to_vec() })
    }

    /// Stores a record as the next version (1 for a new task), publishes `event`, and returns the version. If
    /// the record has already expired, the task is removed instead.
    ///
    /// # Errors
    ///
    /// [`Refusal::Expiry`], [`Refusal::VersionExhausted`], [`Refusal::NoneNewer`], [`Refusal::TooManyTasks`] and
    /// [`Refusal::RecordTooLarge`]: nothing was written. [`Refusal::Failed`]: part of the write may
    /// have been made.
    pub(crate) fn write(&mut self, stored: Stored, terms: &Terms<'_>, event: &CStr) -> Result<i64, Refusal> {
        check_size(terms.data)?;
        let now_ms = self.now_ms;
        let is_new = stored.version().is_none();
        let version = stored.version().unwrap_or(0).checked_add(1).ok_or(Refusal::VersionExhausted)?;
        // An entry without a live task does not count: a new task with this id gets its own creation time.
        let entry = if is_new { None } else { self.index.score(self.task_id.as_ref()) };
        let expires_at = terms.expires_at()?;
        let created = match entry {
            Some(_) => None,
            None => Some(terms.created(now_ms, || index::newest(&self.index, now_ms))?),
        };
        if let (true, Some(allowed)) = (is_new, terms.max_tasks()) {
            self.check_room_for_one_more(allowed)?;
        }

        if expires_at.is_some_and(|at| at.ms <= now_ms) {
            self.remove_all()?;
            return Ok(version);
        }
        if stored == Stored::Lapsed {
            self.hash.delete()?;
            effects::deleted(self.context, self.task_name)?;
        }
        self.set_fields(version, terms.data, expires_at.map(|at| at.ms), stored)?;
        self.set_expiry(expires_at, is_new)?;
        if let Some(created) = created {
            let task_id = self.task_id.as_ref();
            index::insert_entry(self.context, &mut self.index, self.index_name, task_id, created)?;
        }
        self.context.signal_modified(self.task_name);
        self.context.notify(event, self.task_name);
        reclaim::note_written(self.context, self.index_key.prefix);
        Ok(version)
    }

    /// Changes when the task expires, and publishes `pmcptask.expire`. If the time is past, the task is removed instead.
    /// True if there was a live task.
    ///
    /// # Errors
    ///
    /// [`Refusal::Corrupt`]: nothing was written. [`Refusal::Failed`]: part of the write may have been made.
    pub(crate) fn expire(&mut self, expires_at: Option<Time<'_>>) -> Result<bool, Refusal> {
        let Stored::Live(Header { expires_at: before, .. }) = self.stored()? else { return Ok(false) };
        if expires_at.is_some_and(|at| at.ms <= self.now_ms) {
            self.remove_all()?;
            return Ok(true);
        }
        let after = expires_at_field(expires_at.map(|at| at.ms));
        if let ExpiresAt::At(seconds) = after
            && before != after
        {
            let seconds = self.context.create_decimal(seconds);
            self.set([(EXPIRES_AT.get(self.context), seconds.as_ref())])?;
        }
        self.remove_expires_at(before, after)?;
        self.set_expiry(expires_at, false)?;
        self.context.signal_modified(self.task_name);
        self.context.notify(c"pmcptask.expire", self.task_name);
        reclaim::note_written(self.context, self.index_key.prefix);
        Ok(true)
    }

    fn check_room_for_one_more(&self, allowed: i64) -> Result<(), Refusal> {
        let allowed_tasks = usize::try_from(allowed).unwrap_or(usize::MAX);
        let has_room = index::has_fewer_live_tasks(
            self.context,
            &self.index,
            &self.index_key,
            allowed_tasks,
            self.now_ms,
            |task_name| reclaim::note_lapsed(self.context, task_name),
        );
        if has_room { Ok(()) } else { Err(Refusal::TooManyTasks { allowed }) }
    }

    fn set_fields(
        &mut self,
        version: i64,
        data: StringRef<'_>,
        expires_at_ms: Option<i64>,
        stored: Stored,
    ) -> Result<(), Failed> {
        let context = self.context;
        let later_version;
        let version = if version == 1 {
            FIRST_VERSION.get(context)
        } else {
            later_version = context.create_decimal(version);
            later_version.as_ref()
        };
        let version = (VERSION.get(context), version);
        let data = (DATA.get(context), data);
        // A long value makes the server convert a new hash into a hash table. Setting that value first leaves
        // less to convert.
        let [first, second] = if data.1.bytes().len() > LONG { [data, version] } else { [version, data] };
        let before = match stored {
            Stored::Live(header) => header.expires_at,
            Stored::Nothing | Stored::Lapsed => ExpiresAt::Absent,
        };
        let after = expires_at_field(expires_at_ms);
        match after {
            ExpiresAt::At(seconds) if before != after => {
                let seconds = context.create_decimal(seconds);
                self.set([first, second, (EXPIRES_AT.get(context), seconds.as_ref())])?;
            }
            // The most frequent write does not change the expiry.
            _ => self.set([first, second])?,
        }
        self.remove_expires_at(before, after)
    }

    /// Removes the field `expires_at` if a task that expired does so no more.
    fn remove_expires_at(&mut self, before: ExpiresAt, after: ExpiresAt) -> Result<(), Failed> {
        if after == ExpiresAt::Absent && before != ExpiresAt::Absent {
            self.hash.remove_hash_field(EXPIRES_AT.get(self.context))?;
            effects::expires_at_removed(self.context, self.task_name)?;
        }
        Ok(())
    }

    fn set<const N: usize>(&mut self, fields: [(StringRef<'_>, StringRef<'_>); N]) -> Result<(), Failed> {
        self.hash.set_hash_fields(fields)?;
        effects::fields_set(self.context, self.task_name, fields)
    }

    fn set_expiry(&mut self, expires_at: Option<Time<'_>>, is_new: bool) -> Result<(), Failed> {
        let before = if is_new { None } else { self.hash.expiry() };
        let expires_at_ms = expires_at.map(|at| at.ms);
        if before != expires_at_ms {
            self.hash.set_expiry(expires_at_ms)?;
            effects::expiry_set(self.context, self.task_name, expires_at)?;
        }
        Ok(())
    }

    /// Removes the task: hash, expiry and index entry. True if there was a live task. A corrupt hash is
    /// removed too, and counts as a task.
    pub(crate) fn remove(&mut self) -> Result<bool, Failed> {
        let live = self.stored().map_or(true, |stored| stored.version().is_some());
        self.remove_all()?;
        Ok(live)
    }

    /// Removes hash, expiry and index entry, whatever the hash is.
    pub(crate) fn remove_all(&mut self) -> Result<(), Failed> {
        let had_hash = self.hash.kind() != Kind::Nothing;
        if had_hash {
            self.hash.delete()?;
            effects::deleted(self.context, self.task_name)?;
            self.context.signal_modified(self.task_name);
        }
        index::remove_entry(self.context, &mut self.index, self.index_name, self.task_id.as_ref())?;
        // Another module may write when it hears of a task's end.
        if had_hash {
            self.context.notify(c"pmcptask.del", self.task_name);
        }
        Ok(())
    }
}

/// The field `expires_at` of a task that expires at this time.
fn expires_at_field(expires_at_ms: Option<i64>) -> ExpiresAt {
    expires_at_ms.map_or(ExpiresAt::Absent, |at| ExpiresAt::At(expires_at_seconds(at)))
}

fn check_size(data: StringRef<'_>) -> Result<(), Refusal> {
    let bytes = data.bytes().len();
    let allowed = MAX_RECORD_BYTES.get();
    if i64::try_from(bytes).is_ok_and(|bytes| bytes <= allowed) {
        Ok(())
    } else {
        Err(Refusal::RecordTooLarge { bytes, allowed })
    }
}
