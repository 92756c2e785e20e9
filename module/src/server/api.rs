//! The server's functions, looked up once when the module is loaded.
//!
//! A function that the server does not have is a null pointer. Functions that every supported server has are
//! checked once at load; the others are options.

use std::ffi::{CStr, c_char, c_double, c_int, c_longlong, c_uint, c_ulonglong, c_void};
use std::fmt;
use std::sync::OnceLock;

use redis_module::raw;

macro_rules! functions {
    (
        required { $($name:ident: $pointer:ident = $type:ty,)* }
        optional { $($optional_name:ident: $optional_pointer:ident = $optional_type:ty,)* }
        by_name { $($named:ident: $function:literal = $named_type:ty,)* }
    ) => {
        /// One pointer for each function that this module calls.
        pub(super) struct Api {
            $(pub(super) $name: $type,)*
            $(pub(super) $optional_name: Option<$optional_type>,)*
            $(pub(super) $named: Option<$named_type>,)*
        }

        impl Api {
            /// Copies the pointers that the server has filled in. Fails with the name of the
            /// first missing one.
            fn look_up() -> Result<Self, &'static str> {
                // SAFETY: `Export_RedisModule_Init` wrote the pointers and has returned; nothing writes them
                // afterwards. Each is copied out, and no reference to the static is made.
                unsafe {
                    Ok(Self {
                        $($name: raw::$pointer.ok_or(stringify!($pointer))?,)*
                        $($optional_name: raw::$optional_pointer,)*
                        $($named: find($function).map(|function| {
                            std::mem::transmute::<*mut c_void, $named_type>(function)
                        }),)*
                    })
                }
            }
        }
    };
}

type Ctx = *mut raw::RedisModuleCtx;
type Key = *mut raw::RedisModuleKey;
type Str = *mut raw::RedisModuleString;

functions! {
    required {
        acl_add_log_entry: RedisModule_ACLAddLogEntry = unsafe extern "C" fn(
            Ctx, *mut raw::RedisModuleUser, Str, raw::RedisModuleACLLogEntryReason,
        ),
        acl_check_command_permissions: RedisModule_ACLCheckCommandPermissions =
            unsafe extern "C" fn(*mut raw::RedisModuleUser, *mut Str, c_int) -> c_int,
        avoid_replica_traffic: RedisModule_AvoidReplicaTraffic = unsafe extern "C" fn() -> c_int,
        block_client_on_keys: RedisModule_BlockClientOnKeys = unsafe extern "C" fn(
            Ctx, raw::RedisModuleCmdFunc, raw::RedisModuleCmdFunc,
            Option<unsafe extern "C" fn(Ctx, *mut c_void)>, c_longlong, *mut Str, c_int, *mut c_void,
        ) -> *mut raw::RedisModuleBlockedClient,
        call: RedisModule_Call =
            unsafe extern "C" fn(Ctx, *const c_char, *const c_char, ...) -> *mut raw::RedisModuleCallReply,
        call_reply_integer: RedisModule_CallReplyInteger =
            unsafe extern "C" fn(*mut raw::RedisModuleCallReply) -> c_longlong,
        call_reply_type: RedisModule_CallReplyType =
            unsafe extern "C" fn(*mut raw::RedisModuleCallReply) -> c_int,
        call_reply_string_ptr: RedisModule_CallReplyStringPtr =
            unsafe extern "C" fn(*mut raw::RedisModuleCallReply, *mut usize) -> *const c_char,
        close_key: RedisModule_CloseKey = unsafe extern "C" fn(Key),
        create_command: RedisModule_CreateCommand = unsafe extern "C" fn(
            Ctx, *const c_char, raw::RedisModuleCmdFunc, *const c_char, c_int, c_int, c_int,
        ) -> c_int,
        create_string: RedisModule_CreateString = unsafe extern "C" fn(Ctx, *const c_char, usize) -> Str,
        create_timer: RedisModule_CreateTimer = unsafe extern "C" fn(
            Ctx, raw::mstime_t, raw::RedisModuleTimerProc, *mut c_void,
        ) -> raw::RedisModuleTimerID,
        delete_key: RedisModule_DeleteKey = unsafe extern "C" fn(Key) -> c_int,
        free: RedisModule_Free = unsafe extern "C" fn(*mut c_void),
        free_call_reply: RedisModule_FreeCallReply = unsafe extern "C" fn(*mut raw::RedisModuleCallReply),
        free_server_info: RedisModule_FreeServerInfo =
            unsafe extern "C" fn(Ctx, *mut raw::RedisModuleServerInfoData),
        free_module_user: RedisModule_FreeModuleUser = unsafe extern "C" fn(*mut raw::RedisModuleUser),
        free_string: RedisModule_FreeString = unsafe extern "C" fn(Ctx, Str),
        free_thread_safe_context: RedisModule_FreeThreadSafeContext = unsafe extern "C" fn(Ctx),
        get_abs_expire: RedisModule_GetAbsExpire = unsafe extern "C" fn(Key) -> raw::mstime_t,
        get_blocked_client_private_data: RedisModule_GetBlockedClientPrivateData =
            unsafe extern "C" fn(Ctx) -> *mut c_void,
        get_client_id: RedisModule_GetClientId = unsafe extern "C" fn(Ctx) -> c_ulonglong,
        get_client_info_by_id: RedisModule_GetClientInfoById =
            unsafe extern "C" fn(*mut c_void, u64) -> c_int,
        get_command: RedisModule_GetCommand =
            unsafe extern "C" fn(Ctx, *const c_char) -> *mut raw::RedisModuleCommand,
        get_command_keys: RedisModule_GetCommandKeys =
            unsafe extern "C" fn(Ctx, *mut Str, c_int, *mut c_int) -> *mut c_int,
        get_context_flags: RedisModule_GetContextFlags = unsafe extern "C" fn(Ctx) -> c_int,
        get_current_user_name: RedisModule_GetCurrentUserName = unsafe extern "C" fn(Ctx) -> Str,
        get_detached_thread_safe_context: RedisModule_GetDetachedThreadSafeContext =
            unsafe extern "C" fn(Ctx) -> Ctx,
        get_module_user_from_user_name: RedisModule_GetModuleUserFromUserName =
            unsafe extern "C" fn(Str) -> *mut raw::RedisModuleUser,
        get_server_info: RedisModule_GetServerInfo =
            unsafe extern "C" fn(Ctx, *const c_char) -> *mut raw::RedisModuleServerInfoData,
        get_selected_db: RedisModule_GetSelectedDb = unsafe extern "C" fn(Ctx) -> c_int,
        hash_get: RedisModule_HashGet = unsafe extern "C" fn(Key, c_int, ...) -> c_int,
        hash_set: RedisModule_HashSet = unsafe extern "C" fn(Key, c_int, ...) -> c_int,
        info_add_field_unsigned: RedisModule_InfoAddFieldULongLong =
            unsafe extern "C" fn(*mut raw::RedisModuleInfoCtx, *const c_char, c_ulonglong) -> c_int,
        info_add_section: RedisModule_InfoAddSection =
            unsafe extern "C" fn(*mut raw::RedisModuleInfoCtx, *const c_char) -> c_int,
        key_type: RedisModule_KeyType = unsafe extern "C" fn(Key) -> c_int,
        load_configs: RedisModule_LoadConfigs = unsafe extern "C" fn(Ctx) -> c_int,
        log: RedisModule_Log = unsafe extern "C" fn(Ctx, *const c_char, *const c_char, ...),
        milliseconds: RedisModule_Milliseconds = unsafe extern "C" fn() -> raw::mstime_t,
        notify_keyspace_event: RedisModule_NotifyKeyspaceEvent =
            unsafe extern "C" fn(Ctx, c_int, *const c_char, Str) -> c_int,
        open_key: RedisModule_OpenKey = unsafe extern "C" fn(Ctx, Str, c_int) -> Key,
        register_bool_config: RedisModule_RegisterBoolConfig = unsafe extern "C" fn(
            Ctx, *const c_char, c_int, c_uint, raw::RedisModuleConfigGetBoolFunc,
            raw::RedisModuleConfigSetBoolFunc, raw::RedisModuleConfigApplyFunc, *mut c_void,
        ) -> c_int,
        register_info_func: RedisModule_RegisterInfoFunc =
            unsafe extern "C" fn(Ctx, raw::RedisModuleInfoFunc) -> c_int,
        register_numeric_config: RedisModule_RegisterNumericConfig = unsafe extern "C" fn(
            Ctx, *const c_char, c_longlong, c_uint, c_longlong, c_longlong,
            raw::RedisModuleConfigGetNumericFunc, raw::RedisModuleConfigSetNumericFunc,
            raw::RedisModuleConfigApplyFunc, *mut c_void,
        ) -> c_int,
        register_string_config: RedisModule_RegisterStringConfig = unsafe extern "C" fn(
            Ctx, *const c_char, *const c_char, c_uint, raw::RedisModuleConfigGetStringFunc,
            raw::RedisModuleConfigSetStringFunc, raw::RedisModuleConfigApplyFunc, *mut c_void,
        ) -> c_int,
        replicate: RedisModule_Replicate = unsafe extern "C" fn(Ctx, *const c_char, *const c_char, ...) -> c_int,
        reply_with_array: RedisModule_ReplyWithArray = unsafe extern "C" fn(Ctx, std::ffi::c_long) -> c_int,
        reply_with_error: RedisModule_ReplyWithError = unsafe extern "C" fn(Ctx, *const c_char) -> c_int,
        reply_with_long_long: RedisModule_ReplyWithLongLong = unsafe extern "C" fn(Ctx, c_longlong) -> c_int,
        reply_with_null: RedisModule_ReplyWithNull = unsafe extern "C" fn(Ctx) -> c_int,
        reply_with_simple_string: RedisModule_ReplyWithSimpleString =
            unsafe extern "C" fn(Ctx, *const c_char) -> c_int,
        reply_with_string: RedisModule_ReplyWithString = unsafe extern "C" fn(Ctx, Str) -> c_int,
        scan: RedisModule_Scan = unsafe extern "C" fn(
            Ctx, *mut raw::RedisModuleScanCursor, raw::RedisModuleScanCB, *mut c_void,
        ) -> c_int,
        scan_cursor_create: RedisModule_ScanCursorCreate =
            unsafe extern "C" fn() -> *mut raw::RedisModuleScanCursor,
        scan_cursor_destroy: RedisModule_ScanCursorDestroy =
            unsafe extern "C" fn(*mut raw::RedisModuleScanCursor),
        scan_key: RedisModule_ScanKey = unsafe extern "C" fn(
            Key, *mut raw::RedisModuleScanCursor, raw::RedisModuleScanKeyCB, *mut c_void,
        ) -> c_int,
        select_db: RedisModule_SelectDb = unsafe extern "C" fn(Ctx, c_int) -> c_int,
        server_info_get_field: RedisModule_ServerInfoGetFieldC = unsafe extern "C" fn(
            *mut raw::RedisModuleServerInfoData, *const c_char,
        ) -> *const c_char,
        set_abs_expire: RedisModule_SetAbsExpire = unsafe extern "C" fn(Key, raw::mstime_t) -> c_int,
        set_command_info: RedisModule_SetCommandInfo =
            unsafe extern "C" fn(*mut raw::RedisModuleCommand, *const raw::RedisModuleCommandInfo) -> c_int,
        set_module_options: RedisModule_SetModuleOptions = unsafe extern "C" fn(Ctx, c_int),
        signal_modified_key: RedisModule_SignalModifiedKey = unsafe extern "C" fn(Ctx, Str) -> c_int,
        stop_timer: RedisModule_StopTimer =
            unsafe extern "C" fn(Ctx, raw::RedisModuleTimerID, *mut *mut c_void) -> c_int,
        string_ptr_len: RedisModule_StringPtrLen =
            unsafe extern "C" fn(*const raw::RedisModuleString, *mut usize) -> *const c_char,
        subscribe_to_server_event: RedisModule_SubscribeToServerEvent =
            unsafe extern "C" fn(Ctx, raw::RedisModuleEvent, raw::RedisModuleEventCallback) -> c_int,
        subscribe_to_keyspace_events: RedisModule_SubscribeToKeyspaceEvents =
            unsafe extern "C" fn(Ctx, c_int, raw::RedisModuleNotificationFunc) -> c_int,
        unblock_client: RedisModule_UnblockClient =
            unsafe extern "C" fn(*mut raw::RedisModuleBlockedClient, *mut c_void) -> c_int,
        value_length: RedisModule_ValueLength = unsafe extern "C" fn(Key) -> usize,
        zset_add: RedisModule_ZsetAdd = unsafe extern "C" fn(Key, c_double, Str, *mut c_int) -> c_int,
        zset_first_in_score_range: RedisModule_ZsetFirstInScoreRange =
            unsafe extern "C" fn(Key, c_double, c_double, c_int, c_int) -> c_int,
        zset_last_in_score_range: RedisModule_ZsetLastInScoreRange =
            unsafe extern "C" fn(Key, c_double, c_double, c_int, c_int) -> c_int,
        zset_range_current_element: RedisModule_ZsetRangeCurrentElement =
            unsafe extern "C" fn(Key, *mut c_double) -> Str,
        zset_range_next: RedisModule_ZsetRangeNext = unsafe extern "C" fn(Key) -> c_int,
        zset_range_prev: RedisModule_ZsetRangePrev = unsafe extern "C" fn(Key) -> c_int,
        zset_range_stop: RedisModule_ZsetRangeStop = unsafe extern "C" fn(Key),
        zset_rem: RedisModule_ZsetRem = unsafe extern "C" fn(Key, Str, *mut c_int) -> c_int,
        zset_score: RedisModule_ZsetScore = unsafe extern "C" fn(Key, Str, *mut c_double) -> c_int,
    }
    optional {
        // Redis 7.0.6 and Valkey.
        get_module_user_acl_string: RedisModule_GetModuleUserACLString =
            unsafe extern "C" fn(*mut raw::RedisModuleUser) -> Str,
        // Redis 7.2 and Valkey.
        set_command_acl_categories: RedisModule_SetCommandACLCategories =
            unsafe extern "C" fn(*mut raw::RedisModuleCommand, *const c_char) -> c_int,
        // Redis 8.2.
        unsubscribe_from_keyspace_events: RedisModule_UnsubscribeFromKeyspaceEvents =
            unsafe extern "C" fn(Ctx, c_int, raw::RedisModuleNotificationFunc) -> c_int,
    }
    // Functions that the bindings do not have.
    by_name {
        // Valkey 9.1, whose users can be limited to databases.
        acl_check_permissions: c"ValkeyModule_ACLCheckPermissions" = unsafe extern "C" fn(
            *mut raw::RedisModuleUser, *mut Str, c_int, c_int, *mut raw::RedisModuleACLLogEntryReason,
        ) -> c_int,
    }
}

/// Asks the server for a function; None if the server has no function of this name.
pub(super) fn find(function: &CStr) -> Option<*mut c_void> {
    let mut found: *mut c_void = std::ptr::null_mut();
    // SAFETY: the pointer was filled in when the module was initialized and is copied out. The name is a C
    // string, and there is room for the pointer that the server writes.
    let is_found = unsafe { raw::RedisModule_GetApi?(function.as_ptr(), (&raw mut found).cast()) == OK };
    (is_found && !found.is_null()).then_some(found)
}

/// A server function failed although everything was checked before the call: a defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed(pub(super) &'static str);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server's function {} failed", self.0)
    }
}

/// What the server's functions return for success and failure.
#[allow(clippy::cast_possible_truncation, reason = "0 and 1")]
pub(super) const OK: c_int = raw::REDISMODULE_OK as c_int;
#[allow(clippy::cast_possible_truncation, reason = "0 and 1")]
pub(super) const ERR: c_int = raw::REDISMODULE_ERR as c_int;

/// Turns a server function's return value into an error, unless it is `OK`.
pub(super) fn done(returned: c_int, function: &'static str) -> Result<(), Failed> {
    if returned == OK { Ok(()) } else { Err(Failed(function)) }
}

static API: OnceLock<Api> = OnceLock::new();

/// Looks up the functions. To be called after the server has filled in its pointers.
///
/// # Errors
///
/// The name of a function that this server does not have.
pub(super) fn initialize() -> Result<&'static Api, &'static str> {
    let api = Api::look_up()?;
    Ok(API.get_or_init(|| api))
}

/// The functions, if the module has been loaded.
pub(super) fn get() -> Option<&'static Api> {
    API.get()
}
