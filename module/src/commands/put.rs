//! `PMCPTASK.PUT task-key index-key data [PXAT ms | PERSIST] [CREATED ms | NEWEST] [MAXTASKS n] [NX]
//! [HELD task-key]`
//!
//! Stores a record as the task's next version, whatever the current version is. Replies with the new version:
//! 1 for a new task. With `NX`, replies with 0 and changes nothing if a live task exists.
//! With `HELD`, is refused if there is no live task at that key.

use pmcptask_schema::arguments::WriteOptions;

use super::{CREATED, DATA, EXPIRY, INDEX_KEY, TASK_KEY, TaskCommand, optional, required};
use crate::refusal::Refusal;
use crate::server::{Access, ArgumentKind, Arguments, CommandInfo, Context, KeySpec, Place};
use crate::statistics;
use crate::task::OpenTask;
use crate::terms::Terms;

pub(super) struct Put;

impl TaskCommand for Put {
    const INFO: CommandInfo = CommandInfo {
        name: c"pmcptask.put",
        flags: c"write deny-oom",
        acl_categories: c"write slow",
        arity: -4,
        summary: c"Stores a task's record and returns its new version.",
        complexity: c"O(log(N)) with N tasks of the owner. With MAXTASKS n and an index of n entries or more, O(log(N)+n+D): entries \
                      are looked at, newest first, until n live tasks are found; D of them have none.",
        since: c"0.1.0",
        key_specs: &[
            KeySpec { place: Place::At(1), access: Access::Update },
            KeySpec { place: Place::At(2), access: Access::Update },
            KeySpec { place: Place::After { keyword: c"HELD", from: 4 }, access: Access::Read },
        ],
        arguments: &[
            TASK_KEY,
            INDEX_KEY,
            DATA,
            EXPIRY,
            CREATED,
            optional(c"max-tasks", ArgumentKind::Integer, c"MAXTASKS"),
            optional(c"only-new", ArgumentKind::Flag, c"NX"),
            optional(c"held-task-key", ArgumentKind::Key(2), c"HELD"),
        ],
    };

    fn run(context: &Context, arguments: &Arguments<'_>) -> Result<(), Refusal> {
        let task_key = required(arguments, 1, "task-key")?;
        let index_key = required(arguments, 2, "index-key")?;
        let data = required(arguments, 3, "data")?;
        let terms = Terms::new(data, WriteOptions::of_put(arguments.from(4))?);

        let mut task = OpenTask::open(context, task_key, index_key)?;
        if let Some(held) = terms.held() {
            task.check_held(held)?;
        }
        let stored = task.stored()?;
        if terms.only_new() && stored.version().is_some() {
            statistics::PUT_EXISTS.increment();
            context.reply_integer(0);
            return Ok(());
        }
        let version = task.write(stored, &terms, c"pmcptask.put")?;

        statistics::PUTS.increment();
        context.reply_integer(version);
        Ok(())
    }
}
