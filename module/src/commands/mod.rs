//! The commands, one file each.

mod cas;
mod del;
mod expire;
mod get;
mod list;
mod put;
mod trim;
mod wait;

use crate::refusal::Refusal;
use crate::server::{self, Argument, ArgumentKind, Arguments, Command, CommandInfo, Context, StringRef};
use crate::{settings, statistics};
use pmcptask_schema::arguments::ArgumentError;

/// A command of this module: parse, check, act, replicate, reply. An error is returned before any reply and,
/// except for [`Refusal::Failed`], before the first write.
trait TaskCommand {
    const INFO: CommandInfo;

    fn run(context: &Context, arguments: &Arguments<'_>) -> Result<(), Refusal>;
}

/// The command as the server calls it: runs it and turns a refusal into an error reply.
struct Served<C>(C);

impl<C: TaskCommand> Command for Served<C> {
    const INFO: CommandInfo = C::INFO;

    fn run(context: &Context, arguments: &Arguments<'_>) {
        settings::panic_if_asked();
        if let Err(refusal) = C::run(context, arguments) {
            reply_refusal(context, &refusal);
        }
    }

    fn panicked() {
        statistics::PANICS.increment();
    }
}

fn reply_refusal(context: &Context, refusal: &Refusal) {
    statistics::count_refusal(refusal.code());
    context.reply_error(&refusal.to_string());
}

/// Registers all commands.
///
/// # Errors
///
/// The sentence for the log that says what is wrong.
pub(crate) fn register(context: &Context) -> Result<(), String> {
    fn one<C: TaskCommand>(context: &Context) -> Result<(), String> {
        server::register_command::<Served<C>>(context)
            .map_err(|why| format!("{}: {why}", C::INFO.name.to_string_lossy()))
    }
    one::<put::Put>(context)?;
    one::<cas::Cas>(context)?;
    one::<get::Get>(context)?;
    one::<del::Del>(context)?;
    one::<list::List>(context)?;
    one::<expire::Expire>(context)?;
    one::<trim::Trim>(context)?;
    one::<wait::Wait>(context)
}

/// An argument that the command's arity guarantees.
fn required<'c>(
    arguments: &Arguments<'c>,
    index: usize,
    name: &'static str,
) -> Result<StringRef<'c>, Refusal> {
    arguments.get(index).ok_or_else(|| ArgumentError::missing(name, "an argument").into())
}

/// Replies with how a comparison of versions ended, and the version that decided.
fn reply_outcome(context: &Context, outcome: &std::ffi::CStr, version: i64) {
    context.reply_array(2);
    context.reply_status(outcome);
    context.reply_integer(version);
}

// Descriptions of arguments that several commands share.

const TASK_KEY: Argument = positional(c"task-key", ArgumentKind::Key(0));
const INDEX_KEY: Argument = positional(c"index-key", ArgumentKind::Key(1));
const DATA: Argument = positional(c"data", ArgumentKind::String);
const NEW_EXPIRY: Argument = Argument {
    name: c"expiry",
    kind: ArgumentKind::OneOf(&[
        Argument {
            name: c"expires-at-ms",
            kind: ArgumentKind::UnixTime,
            token: Some(c"PXAT"),
            optional: false,
        },
        Argument { name: c"persist", kind: ArgumentKind::Flag, token: Some(c"PERSIST"), optional: false },
    ]),
    token: None,
    optional: false,
};
const EXPIRY: Argument = Argument { optional: true, ..NEW_EXPIRY };
const CREATED: Argument = optional(
    c"created",
    ArgumentKind::OneOf(&[
        positional(c"created-ms", ArgumentKind::UnixTime),
        Argument { name: c"newest", kind: ArgumentKind::Flag, token: Some(c"NEWEST"), optional: false },
    ]),
    c"CREATED",
);

const fn positional(name: &'static std::ffi::CStr, kind: ArgumentKind) -> Argument {
    Argument { name, kind, token: None, optional: false }
}

const fn optional(
    name: &'static std::ffi::CStr,
    kind: ArgumentKind,
    token: &'static std::ffi::CStr,
) -> Argument {
    Argument { name, kind, token: Some(token), optional: true }
}
