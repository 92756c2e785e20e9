//! `PMCPTASK.TRIM index-key KEEP n [COUNT m]`
//!
//! Keeps the newest `n` live tasks of an owner and removes the oldest of the others, at most `m` in one call.
//! Replies with the number of tasks that it removed.

use pmcptask_schema::IndexKey;
use pmcptask_schema::arguments::TrimOptions;

use super::{TaskCommand, optional, positional, required};
use crate::refusal::Refusal;
use crate::server::{
    Access, Argument, ArgumentKind, Arguments, CommandInfo, Context, Key, KeySpec, Kind, Place,
};
use crate::{statistics, trim};

pub(super) struct Trim;

impl TaskCommand for Trim {
    const INFO: CommandInfo = CommandInfo {
        name: c"pmcptask.trim",
        flags: c"write",
        acl_categories: c"write slow",
        arity: -4,
        summary: c"Removes an owner's oldest tasks, and keeps the newest.",
        complexity: c"O(M*log(N)) with N tasks of the owner and M entries looked at: those of the tasks to keep, those of \
                      the tasks that are removed, and those without a live task among them.",
        since: c"0.1.0",
        key_specs: &[KeySpec { place: Place::At(1), access: Access::DeleteFrom }],
        arguments: &[
            positional(c"index-key", ArgumentKind::Key(0)),
            Argument { name: c"keep", kind: ArgumentKind::Integer, token: Some(c"KEEP"), optional: false },
            optional(c"count", ArgumentKind::Integer, c"COUNT"),
        ],
    };

    fn run(context: &Context, arguments: &Arguments<'_>) -> Result<(), Refusal> {
        let index_name = required(arguments, 1, "index-key")?;
        let TrimOptions { keep, count } = TrimOptions::parse(arguments.bytes_from(2))?;
        let key = IndexKey::parse(index_name.bytes())?;
        let [keep, count] = [keep, count].map(|number| usize::try_from(number).unwrap_or(usize::MAX));

        let index = Key::open_for_writing(context, index_name);
        let removed = match index.kind() {
            Kind::Nothing => 0,
            Kind::SortedSet => trim::remove_oldest(context, index, index_name, &key, keep, count)?,
            _ => return Err(Refusal::WrongType),
        };

        statistics::TRIMS.increment();
        statistics::TASKS_TRIMMED.add(removed);
        context.reply_integer(i64::try_from(removed).unwrap_or(i64::MAX));
        Ok(())
    }
}
