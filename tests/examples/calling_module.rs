//! Another module, for tests. It runs commands on its own behalf, or on behalf of the calling user.
//!
//! `CALLER.BYITSELF command [argument ...]` and `CALLER.FORUSER command [argument ...]` reply as the
//! command does.
#![allow(missing_docs)]

use redis_module::{
    CallOptionsBuilder, CallReply, CallResult, Context, RedisError, RedisResult, RedisString, RedisValue,
    redis_module,
};

fn call(context: &Context, arguments: Vec<RedisString>, options: CallOptionsBuilder) -> RedisResult {
    let mut words = arguments.into_iter().skip(1);
    let command = words.next().ok_or(RedisError::WrongArity)?.to_string_lossy();
    let words: Vec<RedisString> = words.collect();
    let words: Vec<&RedisString> = words.iter().collect();
    let reply: CallResult<'_> = context.call_ext(&command, &options.build(), words.as_slice());
    // Enough to distinguish a refusal from a list.
    match reply {
        Ok(CallReply::Array(array)) => Ok(RedisValue::BulkString(format!("listed {}", array.len()))),
        Ok(_) => Ok(RedisValue::BulkString("another reply".to_owned())),
        Err(error) => Err(RedisError::String(String::from_utf8_lossy(error.as_bytes()).into_owned())),
    }
}

fn by_itself(context: &Context, arguments: Vec<RedisString>) -> RedisResult {
    call(context, arguments, CallOptionsBuilder::new().errors_as_replies())
}

fn for_user(context: &Context, arguments: Vec<RedisString>) -> RedisResult {
    call(context, arguments, CallOptionsBuilder::new().errors_as_replies().verify_acl())
}

redis_module! {
    name: "caller",
    version: 1,
    allocator: (redis_module::alloc::RedisAlloc, redis_module::alloc::RedisAlloc),
    data_types: [],
    commands: [
        ["caller.byitself", by_itself, "readonly", 0, 0, 0, ""],
        ["caller.foruser", for_user, "readonly", 0, 0, 0, ""],
    ],
}
