//! `PMCPTASK.DEL task-key index-key [VERSION n]`
//!
//! Removes a task: its hash, expiry and index entry. Replies with 1 if the task existed and 0 otherwise. With
//! `VERSION`, removes the task only at that version, and replies as CAS does.

use pmcptask_schema::arguments::deleted_version;

use super::{INDEX_KEY, TASK_KEY, TaskCommand, optional, reply_outcome, required};
use crate::refusal::Refusal;
use crate::server::{Access, ArgumentKind, Arguments, CommandInfo, Context, KeySpec, Place};
use crate::statistics;
use crate::task::OpenTask;

pub(super) struct Del;

impl TaskCommand for Del {
    const INFO: CommandInfo = CommandInfo {
        name: c"pmcptask.del",
        flags: c"write",
        acl_categories: c"write slow",
        arity: -3,
        summary: c"Deletes a task.",
        complexity: c"O(log(N)) with N tasks of the owner.",
        since: c"0.1.0",
        key_specs: &[
            KeySpec { place: Place::At(1), access: Access::Remove },
            KeySpec { place: Place::At(2), access: Access::DeleteFrom },
        ],
        arguments: &[TASK_KEY, INDEX_KEY, optional(c"version", ArgumentKind::Integer, c"VERSION")],
    };

    fn run(context: &Context, arguments: &Arguments<'_>) -> Result<(), Refusal> {
        let task_key = required(arguments, 1, "task-key")?;
        let index_key = required(arguments, 2, "index-key")?;
        let expected = deleted_version(arguments.bytes_from(3))?;

        let mut task = OpenTask::open(context, task_key, index_key)?;
        let Some(expected) = expected else {
            let existed = task.remove()?;
            if existed {
                statistics::DELETES.increment();
            }
            context.reply_integer(i64::from(existed));
            return Ok(());
        };
        let (outcome, counter, version) = match task.stored()?.version() {
            None => (c"MISSING", &statistics::DEL_MISSING, 0),
            Some(actual) if actual != expected => (c"CONFLICT", &statistics::DEL_CONFLICT, actual),
            Some(version) => {
                task.remove_all()?;
                (c"OK", &statistics::DELETES, version)
            }
        };
        counter.increment();
        reply_outcome(context, outcome, version);
        Ok(())
    }
}
