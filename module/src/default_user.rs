//! Checks that a restart would restore the tasks from the append-only file.
//!
//! Older servers replay the file's transactions as the default user. If that user may not write the keys, a
//! restart drops every write of this module, with one line in the log. No event reports a change of the ACL,
//! so the rules are checked once a second.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pmcptask_schema::Keyspace;

use crate::effects::{ON_INDEXES, ON_TASKS};
use crate::server::{AclUser, Context, ServerEvent, ServerThread};
use crate::{reclaim, settings, statistics};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Maximum number of written prefixes to check per database, so that one check stays short.
const MOST_WRITTEN: usize = 100;

static LAST_LOOK: ServerThread<Option<Instant>> = ServerThread::new(None);

/// Handles a server event.
pub(crate) fn on_server_event(context: &Context, event: ServerEvent) {
    match event {
        ServerEvent::AppendOnlyFileLoads => look(context),
        ServerEvent::Cron => {
            let Some(mut last) = LAST_LOOK.borrow_mut(context) else { return };
            if last.is_none_or(|last| last.elapsed() >= LOOK_EVERY) {
                *last = Some(Instant::now());
                look(context);
            }
        }
        _ => {}
    }
}

fn look(context: &Context) {
    let refused = if context.has_append_only_file() && replays_as_default_user(context) {
        what_is_refused(context)
    } else {
        None
    };
    let has_changed = statistics::DEFAULT_USER_WOULD_LOSE_WRITES.set(usize::from(refused.is_some()));
    if let (true, Some(refused)) = (has_changed, refused) {
        context.log_warning(&format!(
            "a restart loses the tasks in the append-only file, because this server replays the file as the \
             default user, who may not run {refused}; a safe form is: ACL SETUSER default off ~* &* +@all"
        ));
    }
}

/// The first command of the file that the default user may not run, for the prefixes in use. The server
/// itself adds `SELECT`, and `UNLINK` for a key that it finds expired.
fn what_is_refused(context: &Context) -> Option<String> {
    let default = AclUser::find(context, context.create_string(b"default").as_ref())?;
    let select = context.create_string(b"SELECT");
    if !default.may(select.as_ref(), context.create_string(b"0").as_ref(), 0) {
        return Some("SELECT".to_owned());
    }
    let mut prefixes = settings::prefixes();
    prefixes.push(Keyspace::DEFAULT_PREFIX.as_bytes().to_vec());
    prefixes.extend(reclaim::written_prefixes(context, MOST_WRITTEN));
    for prefix in prefixes {
        let task = [prefix.as_slice(), b":tasks:owner:task"].concat();
        let index = [prefix.as_slice(), b":idx:owner"].concat();
        let on_tasks = ON_TASKS.iter().chain(&[c"UNLINK"]).map(|command| (command, &task));
        let on_indexes = ON_INDEXES.iter().map(|command| (command, &index));
        for (command, key) in on_tasks.chain(on_indexes) {
            let [name, key] = [command.to_bytes(), key].map(|text| context.create_string(text));
            let more = match command.to_bytes() {
                b"HSET" | b"ZADD" => 2,
                b"DEL" | b"PERSIST" | b"UNLINK" => 0,
                _ => 1,
            };
            if !default.may(name.as_ref(), key.as_ref(), more) {
                return Some(format!("{} {}", command.to_string_lossy(), key.bytes().escape_ascii()));
            }
        }
    }
    None
}

/// Whether this server replays the file as the default user. Versions from the first one that was seen to be
/// correct do not. An unreadable version counts as old.
fn replays_as_default_user(context: &Context) -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        // Valkey also reports `redis_version:7.2.4`.
        let (version, first_right) = match context.server_info(c"valkey_version") {
            Some(valkey) => (Some(valkey), [9, 1, 2]),
            None => (context.server_info(c"redis_version"), [8, 6, 0]),
        };
        version.as_deref().and_then(numbers).is_none_or(|version| version < first_right)
    })
}

/// The three numbers of a version.
fn numbers(version: &str) -> Option<[u32; 3]> {
    let mut parts = version.split(['.', '-']).map_while(|part| part.parse().ok());
    Some([parts.next()?, parts.next()?, parts.next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_three_numbers() {
        assert_eq!(numbers("7.0.15"), Some([7, 0, 15]));
        assert_eq!(numbers("10.2.0-rc1"), Some([10, 2, 0]));
        for other in ["", "9", "9.1", "x.y.z"] {
            assert_eq!(numbers(other), None, "{other}");
        }
    }
}
