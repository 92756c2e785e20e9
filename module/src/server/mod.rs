//! The safe layer over the server's module API, and the only place with `unsafe`.
//!
//! What it promises to the rest of the module: handles are closed and strings freed when they go out of
//! scope, no handle outlives the call that it belongs to, varargs are well formed, errors and log lines
//! are never used as a format, and no panic crosses into the server.

mod api;
mod blocked;
mod command;
mod configuration;
mod context;
mod events;
mod info;
mod key;
mod load;
mod permissions;
mod scan;
mod state;
mod string;
mod timer;

pub(crate) use api::Failed;
pub(crate) use blocked::{WaiterId, Waiting, block_on_key, wake};
pub(crate) use command::{
    Access, Argument, ArgumentKind, Arguments, Command, CommandInfo, KeySpec, Place,
    register as register_command,
};
pub(crate) use configuration::{NumericSetting, Switch, TextSetting, load_settings};
pub(crate) use context::Context;
pub(crate) use events::{
    Change, ServerEvent, Told, subscribe_to_all_keys, subscribe_to_ended_keys, subscribe_to_server_events,
    unsubscribe_from_all_keys,
};
pub(crate) use info::{Info, register as register_info};
pub(crate) use key::{Key, Kind, ScoreRange};
pub(crate) use load::{Module, export, on_load, on_unload};
pub(crate) use permissions::{AclUser, CommandName, Permissions};
pub(crate) use scan::ScanCursor;
pub(crate) use state::ServerThread;
pub(crate) use string::{Literal, OwnedString, StringRef};
pub(crate) use timer::{LONGEST_RUN, PAUSE_MS, Timer};
