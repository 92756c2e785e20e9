//! An open key: its type, its hash fields, its sorted-set members, its expiry.

use std::ffi::c_int;
use std::ops::ControlFlow;
use std::ptr::NonNull;

use redis_module::raw;

use super::api::{Failed, OK, done};
use super::context::Context;
use super::string::{OwnedString, StringRef};

/// Ends a list of names in a call with a variable number of arguments.
const NO_MORE: *mut raw::RedisModuleString = std::ptr::null_mut();

/// What a key holds: the types that this module tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nothing,
    Hash,
    SortedSet,
    /// Any other type, including those of newer servers.
    Other,
}

/// A range of scores in a sorted set, and the direction to walk it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScoreRange {
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
    pub(crate) highest_first: bool,
}

impl ScoreRange {
    /// All members, in order.
    pub(crate) const ALL: Self =
        Self { lowest: f64::NEG_INFINITY, highest: f64::INFINITY, highest_first: false };
}

/// An open key, closed when it goes out of scope.
pub(crate) struct Key<'c> {
    context: &'c Context,
    raw: NonNull<raw::RedisModuleKey>,
}

impl<'c> Key<'c> {
    /// Opens a key for reading. None if the key does not exist or has expired.
    pub(crate) fn open_for_reading(context: &'c Context, name: StringRef<'_>) -> Option<Self> {
        // SAFETY: the context belongs to the running call and the name is alive.
        let raw =
            unsafe { (context.api.open_key)(context.raw(), name.raw(), raw::REDISMODULE_READ.cast_signed()) };
        Some(Self { context, raw: NonNull::new(raw)? })
    }

    /// Opens a key for writing, whether or not it exists. Closing it signals nothing: a caller that writes
    /// calls [`Context::signal_modified`].
    pub(crate) fn open_for_writing(context: &'c Context, name: StringRef<'_>) -> Self {
        Self::open(context, name, raw::REDISMODULE_READ | raw::REDISMODULE_WRITE)
    }

    /// Opens a key for the module's own work. This counts neither as a use of the key (`OBJECT IDLETIME`) nor
    /// as a hit or a miss. As with any access, the server may delete the key if it has expired.
    pub(crate) fn open_unnoticed(context: &'c Context, name: StringRef<'_>) -> Self {
        // Opening for reading counts hits and misses, in Redis 7.0 without exception. Opening for
        // writing never does.
        let mode = raw::REDISMODULE_READ | raw::REDISMODULE_WRITE | raw::REDISMODULE_OPEN_KEY_NOTOUCH;
        Self::open(context, name, mode)
    }

    fn open(context: &'c Context, name: StringRef<'_>, mode: u32) -> Self {
        // SAFETY: the context belongs to the running call and the name is alive. The server always returns a
        // handle to a key that is opened for writing.
        let raw = unsafe {
            NonNull::new_unchecked((context.api.open_key)(context.raw(), name.raw(), mode.cast_signed()))
        };
        Self { context, raw }
    }

    /// # Safety
    ///
    /// `raw` is an open key of this call. Dropping the handle closes it.
    pub(super) unsafe fn from_raw(context: &'c Context, raw: NonNull<raw::RedisModuleKey>) -> Self {
        Self { context, raw }
    }

    pub(super) fn raw(&self) -> *mut raw::RedisModuleKey {
        self.raw.as_ptr()
    }

    pub(crate) fn kind(&self) -> Kind {
        // SAFETY: the key is open.
        let kind = unsafe { (self.context.api.key_type)(self.raw.as_ptr()) };
        // Compared as plain numbers, because newer servers have types that the bindings do not know.
        match isize::try_from(kind) {
            Ok(raw::REDISMODULE_KEYTYPE_EMPTY) => Kind::Nothing,
            Ok(raw::REDISMODULE_KEYTYPE_HASH) => Kind::Hash,
            Ok(raw::REDISMODULE_KEYTYPE_ZSET) => Kind::SortedSet,
            _ => Kind::Other,
        }
    }

    /// Number of elements in the key's value.
    pub(crate) fn len(&self) -> usize {
        // SAFETY: the key is open.
        unsafe { (self.context.api.value_length)(self.raw.as_ptr()) }
    }

    /// Removes the key and its value. The key has to be open for writing.
    pub(crate) fn delete(&mut self) -> Result<(), Failed> {
        // SAFETY: the key is open.
        done(unsafe { (self.context.api.delete_key)(self.raw.as_ptr()) }, "DeleteKey")
    }

    /// When the key expires, ms since the epoch. The key has to exist: without one, Redis 8.6 crashes.
    pub(crate) fn expiry(&self) -> Option<i64> {
        // SAFETY: the key is open.
        let at = unsafe { (self.context.api.get_abs_expire)(self.raw.as_ptr()) };
        (at != i64::from(raw::REDISMODULE_NO_EXPIRE)).then_some(at)
    }

    /// Sets or removes the key's expiry. An expiry in the past does not remove the key. The key has to be
    /// open for writing and exist.
    pub(crate) fn set_expiry(&mut self, at_ms: Option<i64>) -> Result<(), Failed> {
        let at = at_ms.unwrap_or_else(|| i64::from(raw::REDISMODULE_NO_EXPIRE));
        // SAFETY: the key is open.
        done(unsafe { (self.context.api.set_abs_expire)(self.raw.as_ptr(), at) }, "SetAbsExpire")
    }

    // Hashes.

    /// Reads up to three fields of a hash; all None if the key holds no hash.
    pub(crate) fn hash_fields<const N: usize>(
        &self,
        fields: [StringRef<'_>; N],
    ) -> [Option<OwnedString<'c>>; N] {
        const { assert!(N <= 3) };
        let mut names: [*mut raw::RedisModuleString; 3] = [std::ptr::null_mut(); 3];
        for (name, field) in names.iter_mut().zip(fields) {
            *name = field.raw();
        }
        let mut values: [*mut raw::RedisModuleString; 3] = [std::ptr::null_mut(); 3];
        let [name_1, name_2, name_3] = names;
        let [value_1, value_2, value_3] = &mut values;
        // SAFETY: the key is open. The list consists of pairs, name and place for a string, and ends at the
        // first null name. All names and places outlive the call.
        unsafe {
            (self.context.api.hash_get)(
                self.raw.as_ptr(),
                raw::REDISMODULE_HASH_NONE.cast_signed(),
                name_1,
                std::ptr::from_mut(value_1),
                name_2,
                std::ptr::from_mut(value_2),
                name_3,
                std::ptr::from_mut(value_3),
                NO_MORE,
            )
        };
        let mut values = values.into_iter();
        fields.map(|_| {
            let value = NonNull::new(values.next()?)?;
            // SAFETY: the server hands out strings that the caller owns.
            Some(unsafe { OwnedString::new(self.context.api, value) })
        })
    }

    /// Whether a hash has a field, without reading it.
    pub(crate) fn hash_has(&self, field: StringRef<'_>) -> bool {
        let mut exists: c_int = 0;
        // SAFETY: the key is open; the list is one pair as the flag says, name and place for an integer, and
        // a null name.
        unsafe {
            (self.context.api.hash_get)(
                self.raw.as_ptr(),
                raw::REDISMODULE_HASH_EXISTS.cast_signed(),
                field.raw(),
                &raw mut exists,
                NO_MORE,
            )
        };
        exists != 0
    }

    /// Sets up to three fields of a hash, which is created if the key does not exist. The key has to be open
    /// for writing and hold a hash or nothing.
    pub(crate) fn set_hash_fields<const N: usize>(
        &mut self,
        fields: [(StringRef<'_>, StringRef<'_>); N],
    ) -> Result<(), Failed> {
        const { assert!(N <= 3) };
        let mut pairs: [(*mut raw::RedisModuleString, *mut raw::RedisModuleString); 3] =
            [(NO_MORE, std::ptr::null_mut()); 3];
        for (pair, (name, value)) in pairs.iter_mut().zip(fields) {
            *pair = (name.raw(), value.raw());
        }
        let [(name_1, value_1), (name_2, value_2), (name_3, value_3)] = pairs;
        // SAFETY: the key is open. The list consists of pairs, name and value, and ends at the first null
        // name. The server copies names and values.
        let set = unsafe {
            (self.context.api.hash_set)(
                self.raw.as_ptr(),
                raw::REDISMODULE_HASH_COUNT_ALL.cast_signed(),
                name_1,
                value_1,
                name_2,
                value_2,
                name_3,
                value_3,
                NO_MORE,
            )
        };
        if usize::try_from(set) == Ok(N) { Ok(()) } else { Err(Failed("HashSet")) }
    }

    /// Removes a field that the hash has. The key has to be open for writing.
    pub(crate) fn remove_hash_field(&mut self, field: StringRef<'_>) -> Result<(), Failed> {
        // SAFETY: the key is open; the list is one pair, name and the mark for deletion, and a null name.
        let removed = unsafe {
            (self.context.api.hash_set)(
                self.raw.as_ptr(),
                raw::REDISMODULE_HASH_NONE.cast_signed(),
                field.raw(),
                raw::REDISMODULE_HASH_DELETE,
                NO_MORE,
            )
        };
        if removed == 1 { Ok(()) } else { Err(Failed("HashSet")) }
    }

    // Sorted sets.

    pub(crate) fn score(&self, member: StringRef<'_>) -> Option<f64> {
        let mut score = 0.0;
        // SAFETY: the key is open and the member is alive.
        let found = unsafe { (self.context.api.zset_score)(self.raw.as_ptr(), member.raw(), &raw mut score) };
        (found == OK).then_some(score)
    }

    /// Sets a member's score; the sorted set is created if the key does not exist. The key has to be open for
    /// writing and hold a sorted set or nothing.
    pub(crate) fn set_score(&mut self, member: StringRef<'_>, score: f64) -> Result<(), Failed> {
        // SAFETY: the key is open and the member is alive; null flags mean none.
        let added = unsafe {
            (self.context.api.zset_add)(self.raw.as_ptr(), score, member.raw(), std::ptr::null_mut())
        };
        done(added, "ZsetAdd")
    }

    /// Removes a member. Removing the last member removes the sorted set. True if there was such a member.
    /// The key has to be open for writing and hold a sorted set or nothing.
    pub(crate) fn remove_member(&mut self, member: StringRef<'_>) -> Result<bool, Failed> {
        let mut removed: c_int = 0;
        // SAFETY: the key is open and the member is alive.
        let returned =
            unsafe { (self.context.api.zset_rem)(self.raw.as_ptr(), member.raw(), &raw mut removed) };
        done(returned, "ZsetRem")?;
        Ok(removed != 0)
    }

    /// Passes the members in a range of scores to `visit`, which must not call the server: opening a key,
    /// even for reading, can change the sorted set.
    pub(crate) fn walk(
        &self,
        part: ScoreRange,
        mut visit: impl FnMut(OwnedString<'c>, f64) -> ControlFlow<()>,
    ) {
        let ScoreRange { lowest, highest, highest_first } = part;
        let api = self.context.api;
        let key = self.raw.as_ptr();
        let (start, step) = if highest_first {
            (api.zset_last_in_score_range, api.zset_range_prev)
        } else {
            (api.zset_first_in_score_range, api.zset_range_next)
        };
        // SAFETY: the key is open, and nothing changes the sorted set before the walk is stopped. The server
        // returns members that the caller owns, or null if the range has none or the key is not a sorted set.
        unsafe {
            if start(key, lowest, highest, 0, 0) != OK {
                return;
            }
            loop {
                let mut score = 0.0;
                let Some(member) = NonNull::new((api.zset_range_current_element)(key, &raw mut score)) else {
                    break;
                };
                if visit(OwnedString::new(api, member), score).is_break() || step(key) == 0 {
                    break;
                }
            }
            (api.zset_range_stop)(key);
        }
    }
}

impl Drop for Key<'_> {
    fn drop(&mut self) {
        // SAFETY: the key is open, and this is the only place that closes it.
        unsafe { (self.context.api.close_key)(self.raw.as_ptr()) };
    }
}
