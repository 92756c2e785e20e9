//! `PMCPTASK.EXPIRE task-key index-key PXAT ms | PERSIST`
//!
//! Changes when a task expires. Version and record stay. Replies with 1 if the task exists and 0 otherwise. A time
//! that is past ends the task.

use pmcptask_schema::arguments::new_expiry;

use super::{INDEX_KEY, NEW_EXPIRY, TASK_KEY, TaskCommand, required};
use crate::refusal::Refusal;
use crate::server::{Access, Arguments, CommandInfo, Context, KeySpec, Place};
use crate::statistics;
use crate::task::OpenTask;
use crate::time::Time;

pub(super) struct Expire;

impl TaskCommand for Expire {
    const INFO: CommandInfo = CommandInfo {
        name: c"pmcptask.expire",
        flags: c"write",
        acl_categories: c"write slow",
        arity: -4,
        summary: c"Sets or removes the expiry of a task.",
        complexity: c"O(1), or O(log(N)) with N tasks of the owner if the time is past.",
        since: c"0.1.0",
        key_specs: &[
            KeySpec { place: Place::At(1), access: Access::Update },
            KeySpec { place: Place::At(2), access: Access::DeleteFrom },
        ],
        arguments: &[TASK_KEY, INDEX_KEY, NEW_EXPIRY],
    };

    fn run(context: &Context, arguments: &Arguments<'_>) -> Result<(), Refusal> {
        let task_key = required(arguments, 1, "task-key")?;
        let index_key = required(arguments, 2, "index-key")?;
        let expires_at = new_expiry(arguments.from(3))?.map(Time::from);

        let exists = OpenTask::open(context, task_key, index_key)?.expire(expires_at)?;

        if exists {
            statistics::EXPIRES.increment();
        }
        context.reply_integer(i64::from(exists));
        Ok(())
    }
}
