//! The module's commands, ready to send.

use pmcptask_schema::{Envelope, ExpiryError};
use redis::Cmd;

use crate::listing::{Order, TaskPosition};

/// Starts a command with buffers that fit all of it. `more`: how many arguments the caller adds.
fn command(name: &str, arguments: &[&[u8]], more: usize) -> Cmd {
    /// The bytes of the longest 64-bit number. No option name is longer.
    const LONGEST_OPTION: usize = 20;
    let bytes = arguments.iter().fold(name.len(), |bytes, argument| bytes.saturating_add(argument.len()));
    let bytes = bytes.saturating_add(more.saturating_mul(LONGEST_OPTION));
    let words = arguments.len().saturating_add(more).saturating_add(1);
    let mut command = Cmd::with_capacity(words, bytes);
    command.arg(name);
    for argument in arguments {
        command.arg(argument);
    }
    command
}

/// `PMCPTASK.GET`
pub(crate) fn get(task_key: &str) -> Cmd {
    command("PMCPTASK.GET", &[task_key.as_bytes()], 0)
}

/// `PMCPTASK.PUT`
pub(crate) fn put(task_key: &str, index_key: &str, data: &[u8], times: RecordTimes) -> Cmd {
    let arguments = [task_key.as_bytes(), index_key.as_bytes(), data];
    let mut put = command("PMCPTASK.PUT", &arguments, RecordTimes::WORDS);
    times.add_to(&mut put);
    put
}

/// `PMCPTASK.PUT` of a task that does not exist yet, unless its owner has `max_tasks`.
pub(crate) fn put_new(
    task_key: &str,
    index_key: &str,
    data: &[u8],
    times: RecordTimes,
    max_tasks: Option<usize>,
) -> Cmd {
    let mut put = put(task_key, index_key, data, times);
    put.arg("NX");
    if let Some(max_tasks) = max_tasks {
        put.arg("MAXTASKS").arg(i64::try_from(max_tasks).unwrap_or(i64::MAX));
    }
    put
}

/// `PMCPTASK.CAS`
pub(crate) fn cas(
    task_key: &str,
    index_key: &str,
    expected_version: u64,
    data: &[u8],
    times: RecordTimes,
) -> Cmd {
    // A version beyond `i64` matches no task, and neither does 0.
    let expected_version = i64::try_from(expected_version).unwrap_or(0).to_string();
    let arguments = [task_key.as_bytes(), index_key.as_bytes(), expected_version.as_bytes(), data];
    let mut cas = command("PMCPTASK.CAS", &arguments, RecordTimes::WORDS);
    times.add_to(&mut cas);
    cas
}

/// `PMCPTASK.DEL`
pub(crate) fn del(task_key: &str, index_key: &str) -> Cmd {
    command("PMCPTASK.DEL", &[task_key.as_bytes(), index_key.as_bytes()], 0)
}

/// `PMCPTASK.DEL` of a task at this version.
pub(crate) fn del_version(task_key: &str, index_key: &str, expected_version: u64) -> Cmd {
    let mut del = del(task_key, index_key);
    del.arg("VERSION").arg(i64::try_from(expected_version).unwrap_or(0));
    del
}

/// `PMCPTASK.EXPIRE`, at a time in ms since the epoch or never.
pub(crate) fn expire(task_key: &str, index_key: &str, at_ms: Option<i64>) -> Cmd {
    let mut expire = command("PMCPTASK.EXPIRE", &[task_key.as_bytes(), index_key.as_bytes()], 2);
    match at_ms {
        Some(at_ms) => expire.arg("PXAT").arg(at_ms),
        None => expire.arg("PERSIST"),
    };
    expire
}

/// `PMCPTASK.TRIM`
pub(crate) fn trim(index_key: &str, keep: usize, count: usize) -> Cmd {
    let mut trim = command("PMCPTASK.TRIM", &[index_key.as_bytes()], 4);
    let [keep, count] = [keep, count].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
    trim.arg("KEEP").arg(keep).arg("COUNT").arg(count);
    trim
}

/// `PMCPTASK.LIST` of at most `count` tasks, starting behind `after` if given.
pub(crate) fn list(index_key: &str, count: usize, after: Option<&TaskPosition>, order: Order) -> Cmd {
    /// `COUNT n AFTER created task-id REV`
    const WORDS: usize = 6;
    let mut list = command("PMCPTASK.LIST", &[index_key.as_bytes()], WORDS);
    // The server's integers end there.
    list.arg("COUNT").arg(i64::try_from(count).unwrap_or(i64::MAX));
    if let Some(after) = after {
        list.arg("AFTER").arg(after.created_ms).arg(&after.task_id);
    }
    if order == Order::NewestFirst {
        list.arg("REV");
    }
    list
}

/// The same without records.
pub(crate) fn list_entries(index_key: &str, count: usize, after: Option<&TaskPosition>, order: Order) -> Cmd {
    let mut list = list(index_key, count, after, order);
    list.arg("NODATA");
    list
}

/// `PMCPTASK.LIST` of all tasks without their records.
pub(crate) fn list_versions(index_key: &str) -> Cmd {
    command("PMCPTASK.LIST", &[index_key.as_bytes(), b"NODATA"], 0)
}

/// A `WAIT` that returns at once. The reply shows whether the user may call `WAIT`.
pub(crate) fn probe_wait() -> Cmd {
    command("WAIT", &[b"0", b"1"], 0)
}

/// When the task of a record expires, and when it was created. Commands carry both times beside the record,
/// so that the server does not parse the record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordTimes {
    pub(crate) expires_at_ms: Option<i64>,
    created: Created,
}

/// The creation time of a task that enters the index.
#[derive(Debug, Clone, Copy)]
enum Created {
    /// The server's clock.
    Now,
    /// In ms since the epoch.
    At(i64),
    /// Later than that of every other task of the owner.
    Newest,
}

impl RecordTimes {
    /// `PXAT ms CREATED ms`
    const WORDS: usize = 4;

    /// Reads the times from the record.
    pub(crate) fn of(record: &[u8]) -> Result<Self, ExpiryError> {
        let Envelope { expires_at_ms, created_at_ms, .. } = Envelope::read(record);
        Ok(Self { expires_at_ms: expires_at_ms?, created: created_at_ms.map_or(Created::Now, Created::At) })
    }

    /// The expiry alone, in ms since the epoch; None: never.
    pub(crate) fn ending_at(ms: Option<i64>) -> Self {
        Self { expires_at_ms: ms, created: Created::Now }
    }

    /// The same expiry for the newest task of the owner.
    pub(crate) fn of_newest(self) -> Self {
        Self { created: Created::Newest, ..self }
    }

    fn add_to(self, command: &mut Cmd) {
        match self.expires_at_ms {
            // PXAT takes no negative time. 0 is in the past too.
            Some(at_ms) => command.arg("PXAT").arg(at_ms.max(0)),
            None => command.arg("PERSIST"),
        };
        match self.created {
            Created::Now => {}
            Created::At(ms) => _ = command.arg("CREATED").arg(ms),
            Created::Newest => _ = command.arg("CREATED").arg("NEWEST"),
        }
    }
}
