//! One call of the server into this module: what it may reply, ask and tell.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::marker::PhantomData;
use std::ptr::NonNull;

use redis_module::raw;

use super::api::{self, Api, OK};
use super::string::{OwnedString, StringRef};

/// The letter for a string, as often as one can be given to [`Context::replicate`], and a null byte.
const STRINGS: &[u8] = b"sssssss\0";

/// The call of the server that is going on.
pub(crate) struct Context {
    pub(super) api: &'static Api,
    raw: *mut raw::RedisModuleCtx,
    replied: Cell<bool>,
    // The server's thread only.
    not_send: PhantomData<*mut ()>,
}

impl Context {
    /// None before the module has been loaded, which the server never lets happen.
    ///
    /// # Safety
    ///
    /// `raw` is the context that the server has passed to the entry point that is running, on the
    /// thread that it called.
    pub(super) unsafe fn enter(raw: *mut raw::RedisModuleCtx) -> Option<Self> {
        Some(Self { api: api::get()?, raw, replied: Cell::new(false), not_send: PhantomData })
    }

    pub(super) fn raw(&self) -> *mut raw::RedisModuleCtx {
        self.raw
    }

    /// The server's clock, ms since the epoch.
    pub(crate) fn now_ms(&self) -> i64 {
        // SAFETY: takes nothing and only reads the clock.
        unsafe { (self.api.milliseconds)() }
    }

    // Replies. The server turns each into RESP2 or RESP3 as the client asked for.

    /// True once any part of a reply has been made.
    pub(super) fn has_replied(&self) -> bool {
        self.replied.get()
    }

    pub(crate) fn reply_integer(&self, value: i64) {
        self.replied.set(true);
        // SAFETY: the context is that of the running call.
        unsafe { (self.api.reply_with_long_long)(self.raw, value) };
    }

    pub(crate) fn reply_null(&self) {
        self.replied.set(true);
        // SAFETY: the context is that of the running call.
        unsafe { (self.api.reply_with_null)(self.raw) };
    }

    pub(crate) fn reply_status(&self, status: &CStr) {
        self.replied.set(true);
        // SAFETY: the context is that of the running call; the server copies the text.
        unsafe { (self.api.reply_with_simple_string)(self.raw, status.as_ptr()) };
    }

    pub(crate) fn reply_string(&self, string: StringRef<'_>) {
        self.replied.set(true);
        // SAFETY: the context is that of the running call and the string is alive. The server copies it or, in newer
        // ones, takes a reference of its own until the reply has been sent; nothing here changes a string.
        unsafe { (self.api.reply_with_string)(self.raw, string.raw()) };
    }

    /// Opens an array; the next `length` replies are its elements.
    pub(crate) fn reply_array(&self, length: usize) {
        self.replied.set(true);
        // A length beyond c_long cannot be: it counts values that are in memory.
        let length = c_long::try_from(length).unwrap_or(c_long::MAX);
        // SAFETY: the context is that of the running call.
        unsafe { (self.api.reply_with_array)(self.raw, length) };
    }

    /// Replies with an error: its code, a space and its text.
    pub(crate) fn reply_error(&self, error: &str) {
        self.replied.set(true);
        let error = one_line(error);
        // SAFETY: the context is that of the running call; the server copies the text.
        unsafe { (self.api.reply_with_error)(self.raw, error.as_ptr()) };
    }

    // What others are told.

    /// Tells replicas and the AOF to run `command`, with up to seven arguments. All that one call replicates
    /// is one transaction.
    pub(crate) fn replicate<const N: usize>(&self, command: &CStr, arguments: [StringRef<'_>; N]) {
        // One "s" each: the server makes room for as many arguments as there are letters, where a vector ("v")
        // has it make room twice.
        let format = const { STRINGS.split_at(STRINGS.len() - 1 - N).1 };
        let mut words = [std::ptr::null_mut(); 7];
        for (word, argument) in words.iter_mut().zip(arguments) {
            *word = argument.raw();
        }
        let [word_1, word_2, word_3, word_4, word_5, word_6, word_7] = words;
        // SAFETY: the format, which ends with the null byte of `STRINGS`, names N strings; they are given first,
        // and the server reads no more. They are alive, and it takes references of its own.
        unsafe {
            (self.api.replicate)(
                self.raw,
                command.as_ptr(),
                format.as_ptr().cast(),
                word_1,
                word_2,
                word_3,
                word_4,
                word_5,
                word_6,
                word_7,
            )
        };
    }

    /// Ends every WATCH on the key and invalidates it in tracking clients.
    pub(crate) fn signal_modified(&self, key: StringRef<'_>) {
        // SAFETY: the context is that of the running call and the string is alive.
        unsafe { (self.api.signal_modified_key)(self.raw, key.raw()) };
    }

    /// Publishes a keyspace event of class *module* (`d`).
    pub(crate) fn notify(&self, event: &CStr, key: StringRef<'_>) {
        // SAFETY: the context is that of the running call, both strings are alive.
        unsafe {
            (self.api.notify_keyspace_event)(
                self.raw,
                raw::REDISMODULE_NOTIFY_MODULE,
                event.as_ptr(),
                key.raw(),
            )
        };
    }

    /// Writes a line to the server's log. Never pass a user's data.
    pub(crate) fn log_warning(&self, line: &str) {
        let line = one_line(line);
        // SAFETY: the line is the argument of a fixed format, so nothing in it is taken for a directive.
        unsafe { (self.api.log)(self.raw, c"warning".as_ptr(), c"%s".as_ptr(), line.as_ptr()) };
    }

    // Values.

    pub(crate) fn create_string<'c>(&'c self, bytes: &[u8]) -> OwnedString<'c> {
        let raw = self.create_raw_string(bytes);
        // SAFETY: the string has just been made and belongs to nobody else.
        unsafe { OwnedString::new(self.api, raw) }
    }

    /// A string of which the caller owns the one reference.
    pub(super) fn create_raw_string(&self, bytes: &[u8]) -> NonNull<raw::RedisModuleString> {
        // SAFETY: the pointer is valid for the length, and the server copies the bytes. It aborts where
        // it has no memory, so what comes back is a string. Its memory is not bound to the call: automatic
        // memory is never turned on.
        unsafe {
            NonNull::new_unchecked((self.api.create_string)(self.raw, bytes.as_ptr().cast(), bytes.len()))
        }
    }

    pub(crate) fn create_decimal(&self, value: i64) -> OwnedString<'_> {
        self.create_string(itoa::Buffer::new().format(value).as_bytes())
    }

    // The state of the server.

    pub(crate) fn selected_database(&self) -> c_int {
        // SAFETY: the context is that of the running call.
        unsafe { (self.api.get_selected_db)(self.raw) }
    }

    /// Makes the rest of this call use another database. False where there is none of that number.
    pub(crate) fn select_database(&self, database: c_int) -> bool {
        // SAFETY: the context is that of the running call.
        unsafe { (self.api.select_db)(self.raw, database) == OK }
    }

    fn has_flag(&self, flag: u32) -> bool {
        // SAFETY: the context is that of the running call.
        let flags = unsafe { (self.api.get_context_flags)(self.raw) };
        flags.cast_unsigned() & flag != 0
    }

    /// True on a primary that has loaded its data: the one that decides what is gone.
    pub(crate) fn is_settled_primary(&self) -> bool {
        self.has_flag(raw::REDISMODULE_CTX_FLAGS_MASTER)
            && !self.has_flag(raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING)
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.has_flag(raw::REDISMODULE_CTX_FLAGS_CLUSTER)
    }

    /// True while a failover or CLIENT PAUSE forbids writes that no client asked for.
    pub(crate) fn writes_are_paused(&self) -> bool {
        // SAFETY: takes nothing and only reads a flag.
        unsafe { (self.api.avoid_replica_traffic)() != 0 }
    }

    /// What `CLUSTER NODES` says of this node and the others; empty where the server does not say.
    pub(crate) fn cluster_nodes(&self) -> Vec<u8> {
        // SAFETY: the format names one C string, which is given. The reply is freed after its bytes have
        // been copied; a null reply (no such command) has no bytes, and a reply that is no string has a
        // null pointer.
        unsafe {
            let reply = (self.api.call)(self.raw, c"CLUSTER".as_ptr(), c"c".as_ptr(), c"NODES".as_ptr());
            if reply.is_null() {
                return Vec::new();
            }
            let mut length = 0;
            let start = (self.api.call_reply_string_ptr)(reply, &raw mut length);
            let nodes = if start.is_null() {
                Vec::new()
            } else {
                std::slice::from_raw_parts(start.cast::<u8>(), length).to_vec()
            };
            (self.api.free_call_reply)(reply);
            nodes
        }
    }

    /// The slot of a key; None where the server does not say.
    pub(crate) fn cluster_slot(&self, key: &[u8]) -> Option<i64> {
        // SAFETY: the format names a C string and a buffer with its length, which are given. The reply is
        // freed after its number has been read; a null reply (no such command) has none.
        unsafe {
            let reply = (self.api.call)(
                self.raw,
                c"CLUSTER".as_ptr(),
                c"cb".as_ptr(),
                c"KEYSLOT".as_ptr(),
                key.as_ptr().cast::<c_char>(),
                key.len(),
            );
            if reply.is_null() {
                return None;
            }
            let is_integer =
                isize::try_from((self.api.call_reply_type)(reply)) == Ok(raw::REDISMODULE_REPLY_INTEGER);
            let slot = is_integer.then(|| (self.api.call_reply_integer)(reply));
            (self.api.free_call_reply)(reply);
            slot
        }
    }

    /// What the user who sent this command may do.
    pub(crate) fn permissions(&self) -> Permissions<'_> {
        Permissions { context: self, user: self.user() }
    }

    fn user(&self) -> User {
        // Redis 7.0 crashes when it is asked for the name where there is no user. There is one where a
        // client that is connected runs the command, or a script does in the client's name.
        // SAFETY: the context is that of the running call. A null pointer asks whether the client exists
        // and nothing more. The name is freed after its use; the user is owned by the caller.
        unsafe {
            let client = (self.api.get_client_id)(self.raw);
            let connected = (self.api.get_client_info_by_id)(std::ptr::null_mut(), client) == OK;
            if !connected && !self.has_flag(raw::REDISMODULE_CTX_FLAGS_LUA) {
                return User::Nobody;
            }
            let Some(name) = NonNull::new((self.api.get_current_user_name)(self.raw)) else {
                return User::Nobody;
            };
            let name = OwnedString::new(self.api, name);
            NonNull::new((self.api.get_module_user_from_user_name)(name.as_ref().raw()))
                .map_or(User::Deleted, User::Known)
        }
    }
}

/// Who runs a command.
enum User {
    /// Nobody in particular: another module, say, for which the server does not check keys either.
    Nobody,
    Known(NonNull<raw::RedisModuleUser>),
    /// Somebody whom the ACL does not know any more.
    Deleted,
}

/// What one user may do, for as long as one call.
pub(crate) struct Permissions<'c> {
    context: &'c Context,
    user: User,
}

impl Permissions<'_> {
    /// Whether the user may read a key. A refusal goes to the ACL log, as those of the server itself do.
    pub(crate) fn may_read(&self, key: StringRef<'_>) -> bool {
        let user = match self.user {
            User::Nobody => return true,
            User::Deleted => return false,
            User::Known(user) => user,
        };
        let Context { api, raw, .. } = self.context;
        let reason = raw::RedisModuleACLLogEntryReason_REDISMODULE_ACL_LOG_KEY;
        // SAFETY: the context is that of the running call, the user is alive until drop and the string is
        // alive.
        unsafe {
            let access = raw::REDISMODULE_CMD_KEY_ACCESS.cast_signed();
            let may_read = (api.acl_check_key_permissions)(user.as_ptr(), key.raw(), access) == OK;
            if !may_read {
                (api.acl_add_log_entry)(*raw, user.as_ptr(), key.raw(), reason);
            }
            may_read
        }
    }
}

impl Drop for Permissions<'_> {
    fn drop(&mut self) {
        if let User::Known(user) = self.user {
            // SAFETY: the user came from `get_module_user_from_user_name`, which hands over a handle of
            // its own; freeing it leaves the ACL user as it is.
            unsafe { (self.context.api.free_module_user)(user.as_ptr()) };
        }
    }
}

/// The text as one line with no NUL in it, so that it can neither end early nor end the reply.
fn one_line(text: &str) -> CString {
    let bytes: Vec<u8> =
        text.bytes().map(|byte| if matches!(byte, 0 | b'\r' | b'\n') { b' ' } else { byte }).collect();
    CString::new(bytes).unwrap_or_default()
}
