//! `PMCPTASK.DEL task-key index-key`
//!
//! Removes a task: its hash, expiry and index entry. Replies with 1 if it existed and 0 otherwise.

use super::{INDEX_KEY, TASK_KEY, TaskCommand, required};
use crate::refusal::Refusal;
use crate::server::{Access, Arguments, CommandInfo, Context, KeySpec};
use crate::statistics;
use crate::task::OpenTask;

pub(super) struct Del;

impl TaskCommand for Del {
    const INFO: CommandInfo = CommandInfo {
        name: c"pmcptask.del",
        flags: c"write",
        acl_categories: c"write slow",
        arity: 3,
        summary: c"Deletes a task.",
        complexity: c"O(log(N)) with N tasks of the owner.",
        since: c"0.1.0",
        key_specs: &[
            KeySpec { position: 1, access: Access::Remove },
            KeySpec { position: 2, access: Access::DeleteFrom },
        ],
        arguments: &[TASK_KEY, INDEX_KEY],
    };

    fn run(context: &Context, arguments: &Arguments<'_>) -> Result<(), Refusal> {
        let task_key = required(arguments, 1, "task-key")?;
        let index_key = required(arguments, 2, "index-key")?;

        let existed = OpenTask::open(context, task_key, index_key)?.remove()?;

        if existed {
            statistics::DELETES.increment();
        }
        context.reply_integer(i64::from(existed));
        Ok(())
    }
}
