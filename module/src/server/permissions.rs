//! What users may do according to the server's ACL.

use std::cell::{Cell, OnceCell};
use std::ffi::CStr;
use std::io;
use std::ptr::NonNull;

use redis_module::raw;

use super::api::{Api, OK};
use super::context::Context;
use super::string::{Literal, OwnedString, StringRef};

/// A user of the ACL.
pub(crate) struct AclUser<'c> {
    context: &'c Context,
    raw: NonNull<raw::RedisModuleUser>,
}

impl<'c> AclUser<'c> {
    /// None if there is no user of this name.
    pub(crate) fn find(context: &'c Context, name: StringRef<'_>) -> Option<Self> {
        // SAFETY: the name is alive; the server returns a handle that the caller owns.
        let raw = NonNull::new(unsafe { (context.api.get_module_user_from_user_name)(name.raw()) })?;
        Some(Self { context, raw })
    }

    /// Whether the user may run a command in the selected database, with this key as its first argument and
    /// up to two `more` arguments: some servers check the number of arguments.
    pub(crate) fn may(&self, command: StringRef<'_>, key: StringRef<'_>, more: i32) -> bool {
        let mut words = [command.raw(), key.raw(), key.raw(), key.raw()];
        let count = more.clamp(0, 2).saturating_add(2);
        let (user, words) = (self.raw.as_ptr(), words.as_mut_ptr());
        // SAFETY: the user is alive until drop; the list holds at least as many strings as stated, all alive.
        // The null pointer means that no reason is wanted.
        unsafe {
            match self.context.api.acl_check_permissions {
                Some(check) => {
                    check(user, words, count, self.context.selected_database(), std::ptr::null_mut()) == OK
                }
                None => (self.context.api.acl_check_command_permissions)(user, words, count) == OK,
            }
        }
    }

    /// The user's rules, as `ACL LIST` shows them. The server caches the text.
    fn rules(&self) -> Option<OwnedString<'c>> {
        let Api { get_module_user_acl_string, .. } = self.context.api;
        let describe = (*get_module_user_acl_string)?;
        // SAFETY: the user is alive; the server returns a string that the caller owns.
        unsafe { Some(OwnedString::new(self.context.api, NonNull::new(describe(self.raw.as_ptr()))?)) }
    }

    /// Adds to the ACL log that the user was refused a key.
    fn log_refusal(&self, key: StringRef<'_>) {
        let reason = raw::RedisModuleACLLogEntryReason_REDISMODULE_ACL_LOG_KEY;
        let log = self.context.api.acl_add_log_entry;
        // SAFETY: the context belongs to the running call, user and key are alive.
        unsafe { log(self.context.raw(), self.raw.as_ptr(), key.raw(), reason) };
    }
}

impl Drop for AclUser<'_> {
    fn drop(&mut self) {
        // SAFETY: this value owns the handle; freeing it does not change the ACL user.
        unsafe { (self.context.api.free_module_user)(self.raw.as_ptr()) };
    }
}

/// The command that asks on whose behalf a command runs. No configuration renames a command of a module.
const ASKING: &CStr = c"pmcptask.get";

/// Whether a user may run one command on task keys that all start with the same bytes.
pub(crate) struct Permissions<'c> {
    context: &'c Context,
    command: &'static CommandName,
    user: OnceCell<User<'c>>,
    /// Whether the user may run the command on all of the keys; None until the rules have been read.
    has_all: Cell<Option<bool>>,
}

/// A command that a user may or may not run on a task's key.
pub(crate) struct CommandName {
    text: &'static str,
    string: Literal,
    /// How many more keys the command takes.
    more_keys: i32,
    /// The prefix of ACL patterns that allow what the command does, besides `~`, which allows everything.
    pattern: &'static str,
}

impl CommandName {
    /// Reads the task key, its only argument.
    pub(crate) const fn reading(text: &'static str) -> Self {
        Self { text, string: Literal::new(text), more_keys: 0, pattern: "%R~" }
    }

    /// Reads the task key, its first argument of three.
    pub(crate) const fn waiting(text: &'static str) -> Self {
        Self { text, string: Literal::new(text), more_keys: 2, pattern: "%R~" }
    }

    /// Deletes the task key, and takes the index key as well.
    pub(crate) const fn deleting(text: &'static str) -> Self {
        Self { text, string: Literal::new(text), more_keys: 1, pattern: "%W~" }
    }
}

/// Who runs a command.
enum User<'c> {
    /// Nobody whom the ACL limits: another module on its own behalf, or the append-only file.
    Nobody,
    Known(AclUser<'c>),
    /// A user who is no longer in the ACL.
    Deleted,
}

impl<'c> Permissions<'c> {
    pub(crate) fn of(context: &'c Context, command: &'static CommandName) -> Self {
        Self { context, command, user: OnceCell::new(), has_all: Cell::new(None) }
    }

    /// Whether the user may run the command on `key`. All keys that are asked about start with `common`. A
    /// refusal goes to the ACL log, like the server's own refusals.
    pub(crate) fn allow(&self, key: StringRef<'_>, common: &[u8]) -> bool {
        if self.has_all.get() == Some(true) {
            return true;
        }
        let user = match self.user.get_or_init(|| self.find_user()) {
            User::Nobody => {
                self.has_all.set(Some(true));
                return true;
            }
            User::Deleted => return false,
            User::Known(user) => user,
        };
        let CommandName { text, string, more_keys, pattern } = self.command;
        let allowed = user.may(string.get(self.context), key, *more_keys);
        if allowed && self.has_all.get().is_none() {
            let allows_all = |rules: &[u8]| allow_all(rules, text.as_bytes(), pattern.as_bytes(), common);
            let has_all = user.rules().is_some_and(|rules| allows_all(rules.bytes()));
            self.has_all.set(Some(has_all));
        }
        if !allowed {
            user.log_refusal(key);
        }
        allowed
    }

    fn find_user(&self) -> User<'c> {
        let Context { api, .. } = self.context;
        // Asking for the user's name crashes the server if there is no user. There is a user if a connected
        // client runs the command. A script or another module runs the command through a client that is not
        // connected; then a call on behalf of that client's user tells whether there is a user. The call lacks its
        // argument, so the server runs nothing and counts nothing.
        // SAFETY: the context belongs to the running call. The null pointer only asks whether the
        // client exists. The format names no argument; a reply is freed. The user's name is freed after use.
        unsafe {
            let client = (api.get_client_id)(self.context.raw());
            if (api.get_client_info_by_id)(std::ptr::null_mut(), client) != OK {
                let reply = (api.call)(self.context.raw(), ASKING.as_ptr(), c"C".as_ptr());
                let error = io::Error::last_os_error();
                if !reply.is_null() {
                    (api.free_call_reply)(reply);
                } else if error.kind() == io::ErrorKind::Unsupported {
                    return User::Nobody;
                }
            }
            let Some(name) = NonNull::new((api.get_current_user_name)(self.context.raw())) else {
                return User::Nobody;
            };
            let name = OwnedString::new(api, name);
            AclUser::find(self.context, name.as_ref()).map_or(User::Deleted, User::Known)
        }
    }
}

/// Whether a user with these rules may run a command on every key that starts with `common`, given that the
/// user may run it on one of these keys.
///
/// True if one pattern covers all these keys and nothing else decides: there are no selectors, each of which
/// could allow a part, and the command is not limited by its first argument.
fn allow_all(rules: &[u8], command: &[u8], access: &[u8], common: &[u8]) -> bool {
    let names_first_argument = |rule: &[u8]| {
        let rest = rule.strip_prefix(b"+").and_then(|rule| rule.split_at_checked(command.len()));
        rest.is_some_and(|(name, rest)| name.eq_ignore_ascii_case(command) && rest.starts_with(b"|"))
    };
    // No rule contains a space: the server refuses patterns with a space.
    let rules = || rules.split(|byte| *byte == b' ');
    rules().all(|rule| !rule.starts_with(b"(") && !names_first_argument(rule))
        && rules().any(|rule| {
            let pattern = rule.strip_prefix(b"~").or_else(|| rule.strip_prefix(access));
            pattern.and_then(|pattern| pattern.strip_suffix(b"*")).is_some_and(|literal| {
                common.starts_with(literal) && !literal.iter().any(|byte| b"*?[\\".contains(byte))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(rules: &str) -> bool {
        allow_all(rules.as_bytes(), b"pmcptask.get", b"%R~", b"pmcp:tasks:alice:")
    }

    #[test]
    fn one_pattern_for_all_keys_is_enough() {
        for pattern in ["~*", "~pmcp:*", "%R~pmcp:*", "%R~pmcp:tasks:alice:*", "~x ~pmcp:t*", "%W~x* ~p*"] {
            assert!(allows(&format!("on nopass {pattern} resetchannels -@all +pmcptask.get")), "{pattern}");
        }
    }

    #[test]
    fn anything_less_is_asked_for_key_by_key() {
        for pattern in [
            "",
            "~pmcp:tasks:alice:",
            "~pmcp:tasks:alice:t*",
            "~p?cp:*",
            "~pmcp:tasks:*:*",
            "~[p]mcp:*",
            "~bob*",
        ] {
            assert!(!allows(&format!("on nopass {pattern} resetchannels -@all +pmcptask.get")), "{pattern}");
        }
        for rules in [
            "on nopass %W~pmcp:* -@all +pmcptask.get",
            "on nopass ~pmcp:* -@all +pmcptask.list (~pmcp:tasks:alice:t1 -@all +pmcptask.get)",
            "on nopass ~pmcp:* -@all +pmcptask.get|pmcp:tasks:alice:t1",
            "on nopass ~pmcp:* -@all +PMCPTASK.GET|pmcp:tasks:alice:t1",
        ] {
            assert!(!allows(rules), "{rules}");
        }
    }
}
