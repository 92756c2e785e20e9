//! One call of the server into this module: replies, replication, and questions to the server.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::marker::PhantomData;
use std::ptr::NonNull;

use redis_module::raw;

use super::api::{self, Api, Failed, OK, done};
use super::string::{OwnedString, StringRef};

/// The format letter of a string, once for each argument that [`Context::replicate`] can take,
/// and a null byte.
const STRINGS: &[u8] = b"sssssss\0";

/// The current call of the server.
pub(crate) struct Context {
    pub(super) api: &'static Api,
    raw: *mut raw::RedisModuleCtx,
    replied: Cell<bool>,
    // Stays on the server's thread.
    not_send: PhantomData<*mut ()>,
}

impl Context {
    /// None before the module has been loaded; the server never calls that early.
    ///
    /// # Safety
    ///
    /// `raw` is the context that the server has passed to the running entry point, on the thread that the
    /// server called.
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

    // Replies. The server sends each in RESP2 or RESP3, as the client has asked.

    /// True once any part of a reply has been made.
    pub(super) fn has_replied(&self) -> bool {
        self.replied.get()
    }

    /// The reply comes later.
    pub(super) fn reply_later(&self) {
        self.replied.set(true);
    }

    pub(crate) fn reply_integer(&self, value: i64) {
        self.replied.set(true);
        // SAFETY: the context belongs to the running call.
        unsafe { (self.api.reply_with_long_long)(self.raw, value) };
    }

    pub(crate) fn reply_null(&self) {
        self.replied.set(true);
        // SAFETY: the context belongs to the running call.
        unsafe { (self.api.reply_with_null)(self.raw) };
    }

    pub(crate) fn reply_status(&self, status: &CStr) {
        self.replied.set(true);
        // SAFETY: the context belongs to the running call; the server copies the text.
        unsafe { (self.api.reply_with_simple_string)(self.raw, status.as_ptr()) };
    }

    pub(crate) fn reply_string(&self, string: StringRef<'_>) {
        self.replied.set(true);
        // SAFETY: the context belongs to the running call and the string is alive. The server copies the
        // string or, in newer versions, keeps a reference of its own until the reply has been sent; nothing
        // here changes a string.
        unsafe { (self.api.reply_with_string)(self.raw, string.raw()) };
    }

    /// Opens an array; the next `length` replies are its elements.
    pub(crate) fn reply_array(&self, length: usize) {
        self.replied.set(true);
        // A length beyond c_long is impossible: the values are in memory.
        let length = c_long::try_from(length).unwrap_or(c_long::MAX);
        // SAFETY: the context belongs to the running call.
        unsafe { (self.api.reply_with_array)(self.raw, length) };
    }

    /// Replies with an error: its code, a space and its text.
    pub(crate) fn reply_error(&self, error: &str) {
        self.replied.set(true);
        let error = one_line(error);
        // SAFETY: the context belongs to the running call; the server copies the text.
        unsafe { (self.api.reply_with_error)(self.raw, error.as_ptr()) };
    }

    // What replicas, clients and the log are told.

    /// Makes replicas and the AOF run `command`, with up to seven arguments. Everything that one call
    /// replicates is one transaction. Fails if the server has no such command because `rename-command` has
    /// taken its name.
    pub(crate) fn replicate<const N: usize>(
        &self,
        command: &CStr,
        arguments: [StringRef<'_>; N],
    ) -> Result<(), Failed> {
        // One "s" per argument: the server allocates once, for as many arguments as there are letters. For a
        // vector ("v") it would allocate twice.
        let format = const { STRINGS.split_at(STRINGS.len() - 1 - N).1 };
        let mut words = [std::ptr::null_mut(); 7];
        for (word, argument) in words.iter_mut().zip(arguments) {
            *word = argument.raw();
        }
        let [word_1, word_2, word_3, word_4, word_5, word_6, word_7] = words;
        // SAFETY: the format names N strings and ends with the null byte of `STRINGS`. These strings come
        // first, and the server reads no more. They are alive, and the server takes references of its own.
        let replicated = unsafe {
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
        done(replicated, "Replicate")
    }

    /// Breaks every WATCH on the key and invalidates the key in tracking clients.
    pub(crate) fn signal_modified(&self, key: StringRef<'_>) {
        // SAFETY: the context belongs to the running call and the string is alive.
        unsafe { (self.api.signal_modified_key)(self.raw, key.raw()) };
    }

    /// Publishes a keyspace event of class *module* (`d`).
    pub(crate) fn notify(&self, event: &CStr, key: StringRef<'_>) {
        // SAFETY: the context belongs to the running call, both strings are alive.
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

    /// A new string; the caller owns its only reference.
    pub(super) fn create_raw_string(&self, bytes: &[u8]) -> NonNull<raw::RedisModuleString> {
        // SAFETY: the context belongs to the running call. The pointer is valid for the length, and the server copies
        // the bytes. The server aborts when it is out of memory, so it returns a string. The string is not bound to
        // the call: automatic memory is never turned on.
        unsafe {
            NonNull::new_unchecked((self.api.create_string)(self.raw, bytes.as_ptr().cast(), bytes.len()))
        }
    }

    pub(crate) fn create_decimal(&self, value: i64) -> OwnedString<'_> {
        self.create_string(itoa::Buffer::new().format(value).as_bytes())
    }

    // The state of the server.

    /// Whether the server has a command of this name; `rename-command` can take the name away.
    pub(crate) fn has_command(&self, name: &CStr) -> bool {
        let name = self.create_string(name.to_bytes());
        let mut words = [name.as_ref().raw()];
        let mut count = 0;
        // SAFETY: the context belongs to the running call; the list holds one string, as stated, which is
        // alive. If the command needs more arguments, the server says so and reads none. No command has keys
        // without arguments, but a returned list of keys would be the caller's to free.
        unsafe {
            let keys = (self.api.get_command_keys)(self.raw, words.as_mut_ptr(), 1, &raw mut count);
            let error = std::io::Error::last_os_error();
            if !keys.is_null() {
                (self.api.free)(keys.cast());
            }
            !keys.is_null() || error.kind() != std::io::ErrorKind::NotFound
        }
    }

    pub(crate) fn selected_database(&self) -> c_int {
        // SAFETY: the context belongs to the running call.
        unsafe { (self.api.get_selected_db)(self.raw) }
    }

    /// Makes the rest of this call use another database. False if there is no database of that number.
    pub(crate) fn select_database(&self, database: c_int) -> bool {
        // SAFETY: the context belongs to the running call.
        unsafe { (self.api.select_db)(self.raw, database) == OK }
    }

    fn has_flag(&self, flag: u32) -> bool {
        // SAFETY: the context belongs to the running call.
        let flags = unsafe { (self.api.get_context_flags)(self.raw) };
        flags.cast_unsigned() & flag != 0
    }

    /// True on a primary that has loaded its data: only such a server decides what is gone.
    pub(crate) fn is_settled_primary(&self) -> bool {
        self.has_flag(raw::REDISMODULE_CTX_FLAGS_MASTER)
            && !self.has_flag(raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING)
    }

    /// True while data is loaded and most commands are refused. False while a replica loads data beside the old data.
    pub(crate) fn is_loading(&self) -> bool {
        self.has_flag(raw::REDISMODULE_CTX_FLAGS_LOADING)
    }

    /// Whether the client of this call may be blocked: not in a transaction or a script.
    pub(crate) fn may_block(&self) -> bool {
        !self.is_in_transaction() && !self.has_flag(raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING)
    }

    /// Whether a transaction or a script runs, of whichever client.
    pub(crate) fn is_in_transaction(&self) -> bool {
        self.has_flag(raw::REDISMODULE_CTX_FLAGS_MULTI | raw::REDISMODULE_CTX_FLAGS_LUA)
    }

    pub(crate) fn has_append_only_file(&self) -> bool {
        self.has_flag(raw::REDISMODULE_CTX_FLAGS_AOF)
    }

    /// A field of the section `server` of `INFO`; None if there is no field of that name.
    pub(crate) fn server_info(&self, field: &CStr) -> Option<String> {
        // SAFETY: the context belongs to the running call. The field is a C string inside the section, so the
        // section is freed after the field has been copied.
        unsafe {
            let section = (self.api.get_server_info)(self.raw, c"server".as_ptr());
            let value = (self.api.server_info_get_field)(section, field.as_ptr());
            let value = (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned());
            (self.api.free_server_info)(self.raw, section);
            value
        }
    }

    /// The databases that hold keys; None if INFO is renamed. Selecting each database to find out would be
    /// worse: Valkey 9 creates a database when it is selected.
    pub(crate) fn databases_with_keys(&self) -> Option<Vec<c_int>> {
        let info = self.ask(c"INFO", c"keyspace")?;
        let lines = info.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok());
        let databases = lines.filter_map(|line| line.strip_prefix("db")?.split_once(':')?.0.parse().ok());
        Some(databases.collect())
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.has_flag(raw::REDISMODULE_CTX_FLAGS_CLUSTER)
    }

    /// True while a failover or CLIENT PAUSE forbids writes that no client asked for.
    pub(crate) fn writes_are_paused(&self) -> bool {
        // SAFETY: takes nothing and only reads a flag.
        unsafe { (self.api.avoid_replica_traffic)() != 0 }
    }

    /// The reply of `CLUSTER NODES`; empty if the server gives none.
    pub(crate) fn cluster_nodes(&self) -> Vec<u8> {
        self.ask(c"CLUSTER", c"NODES").unwrap_or_default()
    }

    /// The reply of a command with one argument; None if there is no such command, or the reply is
    /// not a string.
    fn ask(&self, command: &CStr, argument: &CStr) -> Option<Vec<u8>> {
        // SAFETY: the format names one C string, which is given. The reply is freed after its bytes have been
        // copied. A reply that is neither a string nor an error has a null pointer; an error counts as no reply.
        unsafe {
            let reply = (self.api.call)(self.raw, command.as_ptr(), c"c".as_ptr(), argument.as_ptr());
            if reply.is_null() {
                return None;
            }
            let mut length = 0;
            let start = (self.api.call_reply_string_ptr)(reply, &raw mut length);
            let is_text =
                isize::try_from((self.api.call_reply_type)(reply)) != Ok(raw::REDISMODULE_REPLY_ERROR);
            let text = (is_text && !start.is_null())
                .then(|| std::slice::from_raw_parts(start.cast::<u8>(), length).to_vec());
            (self.api.free_call_reply)(reply);
            text
        }
    }

    /// The slot of a key; None if the server does not say.
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
}

/// The text as one line without NUL: a NUL would cut the text short, and a line break would end the reply.
fn one_line(text: &str) -> CString {
    let bytes: Vec<u8> =
        text.bytes().map(|byte| if matches!(byte, 0 | b'\r' | b'\n') { b' ' } else { byte }).collect();
    CString::new(bytes).unwrap_or_default()
}
