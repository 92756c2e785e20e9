//! The texts of the module's errors, as the contract has them, each with its error code.

/// For a key in the place of a task key.
pub const NO_TASK_KEY: &str = "ERR task key: expected <prefix>:tasks:<owner>:<task-id>, got another form";
/// For a task key that ends at its last colon.
pub const NO_TASK_ID: &str = "ERR task key: expected a task id after the last colon, got none";
/// For a key in the place of an index key.
pub const NO_INDEX_KEY: &str = "ERR index key: expected <prefix>:idx:<owner>, got another form";
/// For the index key of another owner or prefix.
pub const OTHER_INDEX: &str =
    "ERR index key: expected the index of the task key's own prefix and owner, got another";
/// For a key that holds another type. The words are the server's.
pub const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
/// For a hash at [`TASK`](crate::TASK) with no version, or one that the module would not write.
pub const CORRUPT_VERSION: &str =
    "CORRUPT the hash at key 'pmcp:tasks:o:t' has a version that is no positive integer, or none";
/// For a hash at [`TASK`](crate::TASK) without data.
pub const CORRUPT_DATA: &str = "CORRUPT the hash at key 'pmcp:tasks:o:t' has no data";
/// For `PXAT` or `PERSIST` twice, or both.
pub const TWO_EXPIRIES: &str = "ERR expiry: expected one PXAT or PERSIST, got two";
/// For neither `PXAT` nor `PERSIST`, where one of them is required.
pub const NO_EXPIRY: &str = "ERR expiry: expected PXAT or PERSIST, got nothing";
/// How the error for an unknown option of PUT starts.
pub const OF_PUT: &str = "ERR option: expected PXAT, PERSIST, CREATED, MAXTASKS, NX or HELD, got";
/// How the error for an unknown option of CAS starts.
pub const OF_CAS: &str = "ERR option: expected PXAT, PERSIST or CREATED, got";
/// How the error for an unknown option of DEL starts.
pub const OF_DEL: &str = "ERR option: expected VERSION, got";
/// How the error for an unknown option of LIST starts.
pub const OF_LIST: &str = "ERR option: expected REV, AFTER, COUNT or NODATA, got";
/// How the error for an unknown option of EXPIRE starts.
pub const OF_EXPIRE: &str = "ERR option: expected PXAT or PERSIST, got";
/// How the error for an unknown option of TRIM starts.
pub const OF_TRIM: &str = "ERR option: expected KEEP or COUNT, got";
/// For a write to a task at the largest version.
pub const LARGEST_VERSION: &str = "ERR version: the task is at 9223372036854775807, the largest there is";

/// What `PXAT` takes.
pub const MS: &str = "ms since the epoch, from 0 to 9223372036854775807";
/// What `CREATED` takes.
pub const CREATED_TIME: &str = "NEWEST or ms since the epoch, from 0 to 9007199254740991";
/// What `AFTER` takes.
pub const LISTED_MS: &str = "ms since the epoch, from -9223372036854775808 to 9223372036854775807";
/// What `COUNT`, `KEEP`, `MAXTASKS`, `VERSION` and an expected version take.
pub const INTEGER: &str = "an integer from 0 to 9223372036854775807";

/// What `HELD` takes.
pub const A_TASK_KEY: &str = "a task key <prefix>:tasks:<owner>:<task-id>";

/// What the timeout of WAIT takes.
pub const TIMEOUT: &str = "ms, from 0 (for ever) to 9223372036854775807";

/// For `CREATED NEWEST` where an entry of the index has the largest creation time.
pub const NONE_NEWER: &str =
    "ERR CREATED: no task can be newer, an entry of the index is at 9007199254740991 or later";

/// For `HELD` with this key, where no task lives.
#[must_use]
pub fn not_held(key: &str) -> String {
    format!("NOTHELD the task of HELD does not exist or has expired: '{key}'")
}

/// For a new task of an owner who has as many tasks as `MAXTASKS` allows.
#[must_use]
pub fn no_room(max_tasks: u32) -> String {
    format!("CAPACITY owner already has {max_tasks} or more live tasks (MAXTASKS {max_tasks})")
}
