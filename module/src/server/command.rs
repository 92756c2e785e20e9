//! Commands: how they are registered, described and called.

use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use redis_module::raw;

use super::api::{ERR, OK};
use super::context::Context;
use super::string::StringRef;

/// A command of this module.
pub(crate) trait Command {
    /// What the server is told about the command.
    const INFO: CommandInfo;

    /// Runs one call of the command and replies.
    fn run(context: &Context, arguments: &Arguments<'_>);

    /// Called after a panic in `run`, before the reply that says so.
    fn panicked();
}

/// What clients see of a command: `COMMAND INFO`, `COMMAND DOCS`, key specs, ACL categories.
pub(crate) struct CommandInfo {
    pub(crate) name: &'static CStr,
    /// The server's flags, space separated.
    pub(crate) flags: &'static CStr,
    /// ACL categories beyond those that the flags imply.
    pub(crate) acl_categories: &'static CStr,
    /// Number of arguments, including the command's name. Negative: at least that many.
    pub(crate) arity: i32,
    pub(crate) summary: &'static CStr,
    pub(crate) complexity: &'static CStr,
    pub(crate) since: &'static CStr,
    pub(crate) key_specs: &'static [KeySpec],
    pub(crate) arguments: &'static [Argument],
}

/// One key of a command.
pub(crate) struct KeySpec {
    pub(crate) place: Place,
    pub(crate) access: Access,
}

/// Which argument is the key (the command's name is 0).
pub(crate) enum Place {
    At(i32),
    /// The argument after the first one, looked for from `from` on, that is the keyword in any case.
    After {
        keyword: &'static CStr,
        from: i32,
    },
}

/// What a command does to a key. The server's ACL requires the matching permission.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    Read,
    /// Writes without revealing the old value.
    Update,
    /// Writes, and reveals or depends on the old value.
    ReadAndUpdate,
    /// Removes elements from the key.
    DeleteFrom,
    /// Removes the key.
    Remove,
}

impl Access {
    const fn flags(self) -> u32 {
        use raw::{
            REDISMODULE_CMD_KEY_ACCESS as ACCESS, REDISMODULE_CMD_KEY_DELETE as DELETE,
            REDISMODULE_CMD_KEY_RM as RM, REDISMODULE_CMD_KEY_RO as RO, REDISMODULE_CMD_KEY_RW as RW,
            REDISMODULE_CMD_KEY_UPDATE as UPDATE,
        };
        match self {
            Self::Read => RO | ACCESS,
            Self::Update => RW | UPDATE,
            Self::ReadAndUpdate => RW | ACCESS | UPDATE,
            Self::DeleteFrom => RW | DELETE,
            Self::Remove => RM | DELETE,
        }
    }
}

/// One argument, as `COMMAND DOCS` shows it.
pub(crate) struct Argument {
    pub(crate) name: &'static CStr,
    pub(crate) kind: ArgumentKind,
    /// The word before the value, as in `COUNT n`.
    pub(crate) token: Option<&'static CStr>,
    pub(crate) optional: bool,
}

pub(crate) enum ArgumentKind {
    /// The key of the key spec with this index.
    Key(i32),
    String,
    Integer,
    UnixTime,
    /// Only the token.
    Flag,
    /// One of several.
    OneOf(&'static [Argument]),
    /// Several in a row.
    Block(&'static [Argument]),
}

/// The arguments of one call, the command's name first.
pub(crate) struct Arguments<'c> {
    context: &'c Context,
    raw: &'c [*mut raw::RedisModuleString],
}

impl<'c> Arguments<'c> {
    /// # Safety
    ///
    /// The server has passed `argv` and `argc` to the entry point whose context this is.
    pub(super) unsafe fn from_raw(
        context: &'c Context,
        argv: *mut *mut raw::RedisModuleString,
        argc: c_int,
    ) -> Self {
        let length = usize::try_from(argc).unwrap_or(0);
        let raw = if argv.is_null() {
            &[]
        } else {
            // SAFETY: the server passes as many strings as it says, alive until the entry point returns.
            unsafe { std::slice::from_raw_parts(argv.cast_const(), length) }
        };
        Self { context, raw }
    }

    pub(crate) fn get(&self, index: usize) -> Option<StringRef<'c>> {
        let raw = NonNull::new(*self.raw.get(index)?)?;
        // SAFETY: the server keeps the arguments of a call alive and unchanged until it returns.
        Some(unsafe { StringRef::new(self.context.api, raw) })
    }

    /// The arguments from `index` on.
    pub(crate) fn from(&self, index: usize) -> impl Iterator<Item = StringRef<'c>> {
        (index..self.raw.len()).filter_map(|index| self.get(index))
    }

    /// The bytes of the arguments from `index` on.
    pub(crate) fn bytes_from(&self, index: usize) -> impl Iterator<Item = &'c [u8]> {
        self.from(index).map(StringRef::bytes)
    }
}

/// Registers a command with its description.
///
/// # Errors
///
/// A sentence that says what failed.
pub(crate) fn register<C: Command>(context: &Context) -> Result<(), &'static str> {
    let info = &C::INFO;
    // SAFETY: the context belongs to the running call; the server copies name and flags, and `call::<C>`
    // lives as long as the module.
    let created = unsafe {
        (context.api.create_command)(
            context.raw(),
            info.name.as_ptr(),
            Some(call::<C>),
            info.flags.as_ptr(),
            // The description says where the keys are.
            0,
            0,
            0,
        )
    };
    if created != OK {
        return Err("a command of this name exists already, or its flags are unknown to this server");
    }
    // SAFETY: as above.
    let command = unsafe { (context.api.get_command)(context.raw(), info.name.as_ptr()) };
    if command.is_null() {
        return Err("the server does not find the command that it has just created");
    }
    if let Some(set_categories) = context.api.set_command_acl_categories {
        // SAFETY: the command has just been created; the server copies the text.
        if unsafe { set_categories(command, info.acl_categories.as_ptr()) } != OK {
            return Err("the server does not know the command's ACL categories");
        }
    }
    describe(context, command, info)
}

fn describe(
    context: &Context,
    command: *mut raw::RedisModuleCommand,
    info: &CommandInfo,
) -> Result<(), &'static str> {
    // The layout of the structures below, with the values of the server's own header.
    let version = raw::RedisModuleCommandInfoVersion {
        version: 1,
        sizeof_historyentry: size_of::<raw::RedisModuleCommandHistoryEntry>(),
        sizeof_keyspec: size_of::<raw::RedisModuleCommandKeySpec>(),
        sizeof_arg: size_of::<raw::RedisModuleCommandArg>(),
    };
    let mut key_specs: Vec<_> = info.key_specs.iter().map(key_spec).collect();
    // SAFETY: plain numbers and pointers, for which zero is a valid value. A zeroed element ends the list.
    key_specs.push(unsafe { std::mem::zeroed() });
    let mut arguments = ArgumentList::new(info.arguments);
    let raw_info = raw::RedisModuleCommandInfo {
        version: &raw const version,
        summary: info.summary.as_ptr(),
        complexity: info.complexity.as_ptr(),
        since: info.since.as_ptr(),
        history: std::ptr::null_mut(),
        tips: std::ptr::null(),
        arity: info.arity,
        key_specs: key_specs.as_mut_ptr(),
        args: arguments.raw.as_mut_ptr(),
    };
    // SAFETY: the command has just been created; every list ends with a zeroed element, and the server
    // copies all of it before it returns.
    let described = unsafe { (context.api.set_command_info)(command, &raw const raw_info) };
    if described == OK { Ok(()) } else { Err("the server refuses the command's description") }
}

fn key_spec(spec: &KeySpec) -> raw::RedisModuleCommandKeySpec {
    use raw::{
        RedisModuleKeySpecBeginSearchType_REDISMODULE_KSPEC_BS_INDEX as INDEX,
        RedisModuleKeySpecBeginSearchType_REDISMODULE_KSPEC_BS_KEYWORD as KEYWORD,
    };
    // SAFETY: plain numbers and pointers, for which zero is a valid value. A zeroed way of finding keys means
    // a single key.
    let mut raw: raw::RedisModuleCommandKeySpec = unsafe { std::mem::zeroed() };
    raw.flags = u64::from(spec.access.flags());
    match spec.place {
        Place::At(position) => {
            raw.begin_search_type = INDEX;
            raw.bs.index.pos = position;
        }
        Place::After { keyword, from } => {
            raw.begin_search_type = KEYWORD;
            raw.bs.keyword.keyword = keyword.as_ptr();
            raw.bs.keyword.startfrom = from;
        }
    }
    raw
}

/// Arguments in the server's layout, with the lists that they point to.
struct ArgumentList {
    raw: Vec<raw::RedisModuleCommandArg>,
    _nested: Vec<ArgumentList>,
}

impl ArgumentList {
    fn new(arguments: &[Argument]) -> Self {
        let mut nested = Vec::new();
        let mut raw: Vec<_> = arguments.iter().map(|argument| Self::element(argument, &mut nested)).collect();
        // SAFETY: plain numbers and pointers, for which zero is a valid value. A zeroed element
        // ends the list.
        raw.push(unsafe { std::mem::zeroed() });
        Self { raw, _nested: nested }
    }

    fn element(argument: &Argument, nested: &mut Vec<Self>) -> raw::RedisModuleCommandArg {
        use raw::{
            RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_BLOCK as BLOCK,
            RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_INTEGER as INTEGER,
            RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_KEY as KEY,
            RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_ONEOF as ONEOF,
            RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_PURE_TOKEN as PURE_TOKEN,
            RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_STRING as STRING,
            RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_UNIX_TIME as UNIX_TIME,
        };
        let (kind, key_spec, parts): (_, _, &[Argument]) = match argument.kind {
            ArgumentKind::Key(spec) => (KEY, spec, &[]),
            ArgumentKind::String => (STRING, -1, &[]),
            ArgumentKind::Integer => (INTEGER, -1, &[]),
            ArgumentKind::UnixTime => (UNIX_TIME, -1, &[]),
            ArgumentKind::Flag => (PURE_TOKEN, -1, &[]),
            ArgumentKind::OneOf(parts) => (ONEOF, -1, parts),
            ArgumentKind::Block(parts) => (BLOCK, -1, parts),
        };
        let subargs = if parts.is_empty() {
            std::ptr::null_mut()
        } else {
            // Moving the list does not move its elements, so the pointer stays valid.
            let mut list = Self::new(parts);
            let elements = list.raw.as_mut_ptr();
            nested.push(list);
            elements
        };
        raw::RedisModuleCommandArg {
            name: argument.name.as_ptr(),
            type_: kind,
            key_spec_index: key_spec,
            token: argument.token.map_or(std::ptr::null(), CStr::as_ptr),
            summary: std::ptr::null(),
            since: std::ptr::null(),
            flags: if argument.optional { raw::REDISMODULE_CMD_ARG_OPTIONAL.cast_signed() } else { 0 },
            deprecated_since: std::ptr::null(),
            subargs,
            display_text: std::ptr::null::<c_char>(),
        }
    }
}

unsafe extern "C" fn call<C: Command>(
    raw: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: the server passes the context of this call.
    let Some(context) = (unsafe { Context::enter(raw) }) else { return ERR };
    // SAFETY: both are what the server has passed to this entry point.
    let arguments = unsafe { Arguments::from_raw(&context, argv, argc) };
    if catch_unwind(AssertUnwindSafe(|| C::run(&context, &arguments))).is_err() {
        C::panicked();
        // The client would take a second reply for the reply to its next command.
        if !context.has_replied() {
            context.reply_error(
                "DEFECT the pmcptask module failed to run this command; this is a defect of the module",
            );
        }
    }
    OK
}
