//! What the module has done since it was loaded: the section `pmcptask` of `INFO`.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::refusal::Code;
use crate::server::Info;

/// A number of the section: most only grow.
pub(crate) struct Counter {
    name: &'static CStr,
    value: AtomicU64,
}

impl Counter {
    const fn new(name: &'static CStr) -> Self {
        Self { name, value: AtomicU64::new(0) }
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }

    /// True if the number has changed.
    pub(crate) fn set(&self, value: usize) -> bool {
        self.value.swap(value as u64, Ordering::Relaxed) != value as u64
    }

    pub(crate) fn add(&self, more: usize) {
        // Only the server's thread writes, so load and store do the work of an atomic addition.
        let value = self.value.load(Ordering::Relaxed);
        self.value.store(value.wrapping_add(more as u64), Ordering::Relaxed);
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $counter:ident: $name:literal,)*) => {
        $($(#[doc = $doc])* pub(crate) static $counter: Counter = Counter::new($name);)*

        /// Writes the section.
        pub(crate) fn write_info(info: &Info) {
            $(info.field($counter.name, $counter.value.load(Ordering::Relaxed));)*
        }
    };
}

counters! {
    /// PUTs that stored a record.
    PUTS: c"puts",
    /// PUT NX that found a task.
    PUT_EXISTS: c"put_exists",
    /// CAS that found the version they expected.
    CAS_OK: c"cas_ok",
    /// CAS that found another version.
    CAS_CONFLICT: c"cas_conflict",
    /// CAS that found no task.
    CAS_MISSING: c"cas_missing",
    /// GETs that found a task.
    GET_HITS: c"get_hits",
    /// GETs that found no task.
    GET_MISSES: c"get_misses",
    /// DELs that removed a task.
    DELETES: c"deletes",
    /// DEL VERSION that found another version.
    DEL_CONFLICT: c"del_conflict",
    /// DEL VERSION that found no task.
    DEL_MISSING: c"del_missing",
    /// EXPIREs that found a task.
    EXPIRES: c"expires",
    /// LISTs that were not refused.
    LISTS: c"lists",
    /// Records that LIST has replied with.
    RECORDS_LISTED: c"records_listed",
    /// TRIMs that were not refused.
    TRIMS: c"trims",
    /// Tasks that TRIM has removed.
    TASKS_TRIMMED: c"tasks_trimmed",
    /// WAITs that were not refused when they came.
    WAITS: c"waits",
    /// Clients that wait now.
    WAITING_CLIENTS: c"waiting_clients",
    /// Hashes that LIST has left out because they are corrupt.
    CORRUPT_RECORDS_SKIPPED: c"corrupt_records_skipped",
    /// Index entries removed because their task had ended without a command of this module.
    INDEX_ENTRIES_REMOVED: c"index_entries_removed",
    /// Completed walks through all indexes.
    INDEX_WALKS: c"index_walks",
    REFUSED_ERR: c"refused_err",
    REFUSED_WRONGTYPE: c"refused_wrongtype",
    REFUSED_CAPACITY: c"refused_capacity",
    REFUSED_CORRUPT: c"refused_corrupt",
    REFUSED_NOTHELD: c"refused_notheld",
    REFUSED_NOPERM: c"refused_noperm",
    REFUSED_CROSSSLOT: c"refused_crossslot",
    REFUSED_TRYAGAIN: c"refused_tryagain",
    /// 1 while a restart would lose writes that are in the append-only file.
    DEFAULT_USER_WOULD_LOSE_WRITES: c"default_user_would_lose_writes",
    /// Unexpected failures of server functions; anything but 0 is a defect.
    FAILED_CALLS: c"failed_calls",
    /// Panics of commands that were caught; anything but 0 is a defect.
    PANICS: c"panics",
}

/// Counts a refusal by its code.
pub(crate) fn count_refusal(code: Code) {
    match code {
        Code::Err => &REFUSED_ERR,
        Code::WrongType => &REFUSED_WRONGTYPE,
        Code::Capacity => &REFUSED_CAPACITY,
        Code::Corrupt => &REFUSED_CORRUPT,
        Code::NotHeld => &REFUSED_NOTHELD,
        Code::NoPerm => &REFUSED_NOPERM,
        Code::CrossSlot => &REFUSED_CROSSSLOT,
        Code::TryAgain => &REFUSED_TRYAGAIN,
        Code::Defect => &FAILED_CALLS,
    }
    .increment();
}
