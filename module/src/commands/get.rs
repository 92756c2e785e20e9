//! `PMCPTASK.GET task-key`
//!
//! Replies with a task's version and data, or nil if there is no task.

use pmcptask_schema::TaskKey;

use super::{TASK_KEY, TaskCommand, required};
use crate::record::{self, Reading};
use crate::refusal::Refusal;
use crate::server::{Access, Arguments, CommandInfo, Context, KeySpec, Place};
use crate::{reclaim, statistics};

pub(super) struct Get;

impl TaskCommand for Get {
    const INFO: CommandInfo = CommandInfo {
        name: c"pmcptask.get",
        flags: c"readonly fast",
        acl_categories: c"read fast",
        arity: 2,
        summary: c"Returns a task's version and record.",
        complexity: c"O(1)",
        since: c"0.1.0",
        key_specs: &[KeySpec { place: Place::At(1), access: Access::Read }],
        arguments: &[TASK_KEY],
    };

    fn run(context: &Context, arguments: &Arguments<'_>) -> Result<(), Refusal> {
        let task_key = required(arguments, 1, "task-key")?;
        TaskKey::parse(task_key.bytes())?;

        match record::read(context, task_key, context.now_ms())? {
            Reading::Live(record) => {
                statistics::GET_HITS.increment();
                context.reply_array(2);
                context.reply_integer(record.version);
                context.reply_string(record.data.as_ref());
                return Ok(());
            }
            Reading::Lapsed => reclaim::note_lapsed(context, task_key),
            Reading::Nothing => {}
        }
        statistics::GET_MISSES.increment();
        context.reply_null();
        Ok(())
    }
}
