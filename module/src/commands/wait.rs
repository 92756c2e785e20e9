//! `PMCPTASK.WAIT task-key version timeout-ms`
//!
//! Waits until the task's version is not `version`. Replies with `OK`, version and data, with `MISSING` and 0 if
//! there is no such task, or with nil when the time is over. 0 ms waits for ever. Replies at once inside `MULTI` and
//! scripts, where nothing blocks.
//!
//! The end of the task is a change too. If the task is deleted and made again before the client is answered, the reply
//! is `OK` with the new task, whose version may be the version that the client has seen. A call that comes after that
//! only compares versions.
//!
//! The server looks for times that are over when it has something to do, and ten times a second unless `hz` says
//! otherwise: a nil can come 100 ms late, as that of `BLPOP` can.
//!
//! In a cluster, a client whose task may be at another node waits for the server's redirect, or for the end of its time.
//! If the task moves just when its change has woken the client, or at a replica, the reply is `TRYAGAIN`.
//!
//! On a server that must not tell of all changes ([`crate::server::Told::NotGeneric`]), changes by `DEL`, `RENAME`,
//! `EXPIRE` and other commands on keys of any type are noticed up to 100 ms late. If such
//! a command ends a task, and the task is made again at the same version before the next look, nobody notices.

use pmcptask_schema::TaskKey;
use pmcptask_schema::arguments::{seen_version, timeout_ms};

use super::{TASK_KEY, TaskCommand, positional, reply_outcome, reply_refusal, required};
use crate::record::{self, Reading};
use crate::refusal::Refusal;
use crate::server::{
    Access, ArgumentKind, Arguments, CommandInfo, CommandName, Context, KeySpec, Permissions, Place,
    StringRef, WaiterId, Waiting, block_on_key,
};
use crate::slots::Slots;
use crate::{reclaim, settings, statistics, waiters};

/// Longer times, of a million centuries, are for ever.
const LONGEST_TIMEOUT_MS: i64 = i64::MAX / 2;

pub(super) struct Wait;

impl TaskCommand for Wait {
    const INFO: CommandInfo = CommandInfo {
        name: c"pmcptask.wait",
        flags: c"readonly blocking",
        acl_categories: c"read slow blocking",
        arity: 4,
        summary: c"Waits until a task's version is another or the task is gone, at most for the given time.",
        complexity: c"O(log(N)) with N waiting clients.",
        since: c"0.1.0",
        key_specs: &[KeySpec { place: Place::At(1), access: Access::Read }],
        arguments: &[
            TASK_KEY,
            positional(c"version", ArgumentKind::Integer),
            positional(c"timeout-ms", ArgumentKind::Integer),
        ],
    };

    fn run(context: &Context, arguments: &Arguments<'_>) -> Result<(), Refusal> {
        let Wanted { task_key, version, timeout_ms } = Wanted::parse(arguments)?;

        let answered = answer_if_changed(context, task_key, Some(version))?;
        statistics::WAITS.increment();
        if answered {
            return Ok(());
        }
        if !context.may_block() {
            context.reply_null();
            return Ok(());
        }
        // The server fails to block a client for a time that is too long for its clock. 0 is for ever.
        let timeout_ms = if timeout_ms > LONGEST_TIMEOUT_MS { 0 } else { timeout_ms };
        let waiting = Waiting {
            answer: answer_waiter,
            ended: waiters::remove,
            panicked: || statistics::PANICS.increment(),
        };
        waiters::subscribe(context)?;
        let id = block_on_key(context, task_key, timeout_ms, waiting)?;
        waiters::add(context, id, task_key, version);
        Ok(())
    }
}

/// The arguments of the command.
struct Wanted<'c> {
    task_key: StringRef<'c>,
    version: i64,
    timeout_ms: i64,
}

impl<'c> Wanted<'c> {
    fn parse(arguments: &Arguments<'c>) -> Result<Self, Refusal> {
        let task_key = required(arguments, 1, "task-key")?;
        let version = seen_version(required(arguments, 2, "version")?.bytes())?;
        let timeout_ms = timeout_ms(required(arguments, 3, "timeout-ms")?.bytes())?;
        TaskKey::parse(task_key.bytes())?;
        Ok(Self { task_key, version, timeout_ms })
    }
}

/// Answers a client that waits. Returns false if the client goes on waiting.
fn answer_waiter(context: &Context, arguments: &Arguments<'_>, id: WaiterId, must_answer: bool) -> bool {
    settings::panic_if_asked();
    let is_woken = waiters::is_woken(context, id);
    // `CLIENT UNBLOCK` can come in the middle of another client's transaction, or while data is loaded, when nothing
    // may be decided.
    let can_tell = is_woken || !(context.is_in_transaction() || context.is_loading());
    let answered = Wanted::parse(arguments).and_then(|Wanted { task_key, version, .. }| {
        let seen = if is_woken || waiters::has_ended_for(context, id) { None } else { Some(version) };
        if can_tell { answer_if_certain(context, task_key, seen, is_woken) } else { Ok(false) }
    });
    match answered {
        Ok(false) if must_answer => context.reply_null(),
        Ok(answered) => return answered,
        Err(refusal) => reply_refusal(context, &refusal),
    }
    true
}

/// Answers a client, unless the task is missing and may be at another node: then a client that was woken is refused, and
/// another goes on waiting, or gets nil at its last chance.
fn answer_if_certain(
    context: &Context,
    task_key: StringRef<'_>,
    seen: Option<i64>,
    is_woken: bool,
) -> Result<bool, Refusal> {
    static WAIT: CommandName = CommandName::waiting("pmcptask.wait");
    // The server has checked the user's permission when the command came, perhaps long ago.
    if !Permissions::of(context, &WAIT).allow(task_key, task_key.bytes()) {
        return Err(Refusal::NoPermission { action: "read", key: task_key.bytes().to_vec() });
    }
    if !record::has_ended(context, task_key, context.now_ms()) {
        return answer_if_changed(context, task_key, seen);
    }
    match Slots::of(context).may_be_elsewhere(task_key.bytes()) {
        true if is_woken => Err(Refusal::MayBeElsewhere { key: task_key.bytes().to_vec() }),
        true => Ok(false),
        false => {
            reply_outcome(context, c"MISSING", 0);
            Ok(true)
        }
    }
}

/// Returns false without a reply if the task still has the version that the client has seen. Otherwise replies with the
/// task, or with `MISSING`, and returns true.
fn answer_if_changed(context: &Context, task_key: StringRef<'_>, seen: Option<i64>) -> Result<bool, Refusal> {
    let now_ms = context.now_ms();
    if let Some(seen) = seen
        && record::read_header(context, task_key, now_ms)?.version() == Some(seen)
    {
        return Ok(false);
    }
    match record::read(context, task_key, now_ms)? {
        Reading::Live(record) => {
            context.reply_array(3);
            context.reply_status(c"OK");
            context.reply_integer(record.version);
            context.reply_string(record.data.as_ref());
            return Ok(true);
        }
        Reading::Lapsed => reclaim::note_lapsed(context, task_key),
        Reading::Nothing => {}
    }
    reply_outcome(context, c"MISSING", 0);
    Ok(true)
}
