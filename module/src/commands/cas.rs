//! `PMCPTASK.CAS task-key index-key expected-version data [PXAT ms | PERSIST] [CREATED ms | NEWEST]`
//!
//! Stores a record if the task is at the expected version. Replies with `OK` and the new version, with
//! `CONFLICT` and the actual version, or with `MISSING` and 0. Only `OK` means that anything has changed.

use pmcptask_schema::arguments::{WriteOptions, expected_version};

use super::{CREATED, DATA, EXPIRY, INDEX_KEY, TASK_KEY, TaskCommand, positional, reply_outcome, required};
use crate::refusal::Refusal;
use crate::server::{Access, ArgumentKind, Arguments, CommandInfo, Context, KeySpec, Place};
use crate::statistics;
use crate::task::OpenTask;
use crate::terms::Terms;

pub(super) struct Cas;

impl TaskCommand for Cas {
    const INFO: CommandInfo = CommandInfo {
        name: c"pmcptask.cas",
        flags: c"write deny-oom",
        acl_categories: c"write slow",
        arity: -5,
        summary: c"Stores a task's record if the task is at the expected version.",
        complexity: c"O(log(N)) with N tasks of the owner.",
        since: c"0.1.0",
        key_specs: &[
            KeySpec { place: Place::At(1), access: Access::ReadAndUpdate },
            KeySpec { place: Place::At(2), access: Access::Update },
        ],
        arguments: &[
            TASK_KEY,
            INDEX_KEY,
            positional(c"expected-version", ArgumentKind::Integer),
            DATA,
            EXPIRY,
            CREATED,
        ],
    };

    fn run(context: &Context, arguments: &Arguments<'_>) -> Result<(), Refusal> {
        let task_key = required(arguments, 1, "task-key")?;
        let index_key = required(arguments, 2, "index-key")?;
        let expected = expected_version(required(arguments, 3, "expected-version")?.bytes())?;
        let data = required(arguments, 4, "data")?;
        let terms = Terms::new(data, WriteOptions::of_cas(arguments.from(5))?);

        let mut task = OpenTask::open(context, task_key, index_key)?;
        let stored = task.stored()?;
        let (outcome, counter, version) = match stored.version() {
            None => (c"MISSING", &statistics::CAS_MISSING, 0),
            Some(actual) if actual != expected => (c"CONFLICT", &statistics::CAS_CONFLICT, actual),
            Some(_) => (c"OK", &statistics::CAS_OK, task.write(stored, &terms, c"pmcptask.cas")?),
        };

        counter.increment();
        reply_outcome(context, outcome, version);
        Ok(())
    }
}
