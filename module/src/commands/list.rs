//! `PMCPTASK.LIST index-key [REV] [AFTER created-ms task-id] [COUNT n] [NODATA]`
//!
//! Replies with an owner's live tasks in order of creation: task id, version, creation time and data of
//! each, or without the data. It writes nothing, and one call is one consistent snapshot.

use pmcptask_schema::IndexKey;
use pmcptask_schema::arguments::ListOptions;

use super::{TaskCommand, optional, positional, required};
use crate::index::{Part, Position};
use crate::refusal::Refusal;
use crate::server::{
    Access, Argument, ArgumentKind, Arguments, CommandInfo, Context, Key, KeySpec, Kind, Place,
};
use crate::{index, reclaim, statistics};

pub(super) struct List;

impl TaskCommand for List {
    const INFO: CommandInfo = CommandInfo {
        name: c"pmcptask.list",
        flags: c"readonly",
        acl_categories: c"read slow",
        arity: -2,
        summary: c"Lists an owner's tasks with their records, in order of creation.",
        complexity: c"O(log(N)+M) with N tasks of the owner and M entries looked at: those listed, those without a live task \
                      before the last one listed, and with AFTER those of the same creation time.",
        since: c"0.1.0",
        key_specs: &[KeySpec { place: Place::At(1), access: Access::Read }],
        arguments: &[
            positional(c"index-key", ArgumentKind::Key(0)),
            optional(c"newest-first", ArgumentKind::Flag, c"REV"),
            Argument {
                name: c"after",
                kind: ArgumentKind::Block(&[
                    positional(c"created-ms", ArgumentKind::UnixTime),
                    positional(c"task-id", ArgumentKind::String),
                ]),
                token: Some(c"AFTER"),
                optional: true,
            },
            optional(c"count", ArgumentKind::Integer, c"COUNT"),
            optional(c"no-data", ArgumentKind::Flag, c"NODATA"),
        ],
    };

    fn run(context: &Context, arguments: &Arguments<'_>) -> Result<(), Refusal> {
        let index_name = required(arguments, 1, "index-key")?;
        let options = ListOptions::parse(arguments.bytes_from(2))?;
        let key = IndexKey::parse(index_name.bytes())?;
        let after =
            |(created_ms, task_id): (i64, &[u8])| Position::Task { created_ms, task_id: task_id.to_vec() };
        let part = Part {
            newest_first: options.newest_first,
            after: options.after.map(after),
            count: options.count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX)),
            with_data: !options.without_data,
        };

        let listed = match Key::open_for_reading(context, index_name) {
            None => Vec::new(),
            Some(index) if index.kind() != Kind::SortedSet => return Err(Refusal::WrongType),
            Some(index) => index::list(context, &index, &key, part, |task_name| {
                reclaim::note_lapsed(context, task_name);
            })?,
        };

        statistics::LISTS.increment();
        statistics::RECORDS_LISTED.add(listed.len());
        context.reply_array(listed.len());
        for task in listed {
            context.reply_array(if task.data.is_some() { 4 } else { 3 });
            context.reply_string(task.task_id.as_ref());
            context.reply_integer(task.version);
            context.reply_integer(task.created_ms);
            if let Some(data) = task.data {
                context.reply_string(data.as_ref());
            }
        }
        Ok(())
    }
}
