//! Reads the figures of `top` from the servers, once a second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pmcp_tasks::StorageError;
use pmcptask_client::{Primary, RedisBackend};
use redis::cmd;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::figures::Figures;
use super::walk::Walk;
use crate::failure::Failure;
use crate::servers::Servers;

const REFRESH: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
/// What the names of the counters start with.
const COUNTER: &str = "pmcptask_";
/// The counters that together count what was written.
const WRITES: [&str; 5] = ["puts", "cas_ok", "deletes", "expires", "tasks_trimmed"];

pub(super) struct Observer<'s> {
    servers: &'s Servers,
    /// How many records a second may read.
    records: usize,
    connected: Option<Connected>,
    figures: Figures,
    /// The count of writes, and when it was read.
    writes: Option<(u64, Instant)>,
}

struct Connected {
    backend: RedisBackend,
    primaries: Vec<Primary>,
    /// When the primaries were looked for.
    since: Instant,
    walk: Walk,
}

impl Connected {
    async fn open(servers: &Servers) -> Result<Self, StorageError> {
        let (backend, primaries) = (servers.backend().await?, servers.primaries().await?);
        let walk = new_walk(servers, &backend, &primaries).await?;
        Ok(Self { backend, primaries, since: Instant::now(), walk })
    }
}

async fn new_walk(
    servers: &Servers,
    backend: &RedisBackend,
    primaries: &[Primary],
) -> Result<Walk, StorageError> {
    let mut keys = 0_u64;
    for primary in primaries {
        keys = keys.saturating_add(primary.read("the number of keys", &cmd("DBSIZE")).await?);
    }
    Ok(Walk::new(backend.clone(), primaries.to_vec(), servers.prefix(), keys))
}

impl<'s> Observer<'s> {
    pub(super) async fn connect(servers: &'s Servers, records: usize) -> Result<Self, StorageError> {
        let connected = Some(Connected::open(servers).await?);
        let figures = Figures { prefix: servers.prefix().to_owned(), ..Figures::default() };
        Ok(Self { servers, records, connected, figures, writes: None })
    }

    /// Sends new figures once a second, until nobody wants them.
    pub(super) async fn observe(mut self, sender: &watch::Sender<Figures>) {
        let mut ticks = interval(REFRESH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.figures.failure = match self.look().await {
                Ok(()) => None,
                Err(error) => Some(Failure::from(error).to_string()),
            };
            if sender.send(self.figures.clone()).is_err() {
                return;
            }
        }
    }

    /// After a failure the next look opens new connections: these do not reconnect.
    async fn look(&mut self) -> Result<(), StorageError> {
        let mut connected = match self.connected.take() {
            Some(connected) => connected,
            None => Connected::open(self.servers).await?,
        };
        self.look_at_counters(&connected.primaries).await?;
        if let Some(complete) = connected.walk.step(self.records).await? {
            self.figures.tasks = complete.totals;
            self.figures.walk_took_seconds = Some(complete.took.as_secs());
            // The primaries may be others by now. Short walks do not connect for each.
            if connected.since.elapsed() > MINUTE {
                connected.primaries = self.servers.primaries().await?;
                connected.since = Instant::now();
            }
            connected.walk = new_walk(self.servers, &connected.backend, &connected.primaries).await?;
        } else if self.figures.walk_took_seconds.is_none() {
            self.figures.tasks = connected.walk.totals().clone();
        }
        self.figures.walk = connected.walk.progress();
        self.connected = Some(connected);
        Ok(())
    }

    async fn look_at_counters(&mut self, primaries: &[Primary]) -> Result<(), StorageError> {
        let mut sums = BTreeMap::new();
        for primary in primaries {
            let info: String = primary.read("INFO", cmd("INFO").arg("pmcptask")).await?;
            for (name, count) in counters(&info) {
                let sum = sums.entry(name.to_owned()).or_insert(0_u64);
                *sum = sum.saturating_add(count);
            }
        }
        self.figures.servers = primaries.iter().map(|primary| primary.address().to_owned()).collect();
        let writes = WRITES
            .iter()
            .filter_map(|name| sums.get(*name))
            .fold(0_u64, |all, more| all.saturating_add(*more));
        let before = self.writes.replace((writes, Instant::now()));
        self.figures.writes_per_second =
            before.and_then(|(before, at)| per_second(writes, before, at.elapsed()));
        self.figures.info = sums;
        Ok(())
    }
}

/// Rounded to the nearest number: a refresh takes a little more than a second, and one write in it is no 0.
/// None if the server has started anew since.
fn per_second(now: u64, before: u64, elapsed: Duration) -> Option<u64> {
    let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    now.checked_sub(before)?.saturating_mul(1_000).saturating_add(ms / 2).checked_div(ms)
}

fn counters(info: &str) -> impl Iterator<Item = (&str, u64)> {
    info.lines().filter_map(|line| {
        let (name, count) = line.trim_end().split_once(':')?;
        Some((name.strip_prefix(COUNTER)?, count.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_other_lines_are_not() {
        let info = "# pmcptask_counters\r\npmcptask_puts:12\r\npmcptask_name:x\r\nother:1\r\n";
        assert_eq!(counters(info).collect::<Vec<_>>(), [("puts", 12)]);
    }

    #[test]
    fn rate_is_that_of_the_time_between_and_none_after_a_restart() {
        assert_eq!(per_second(300, 100, Duration::from_secs(2)), Some(100));
        assert_eq!(per_second(1, 0, Duration::from_millis(1_003)), Some(1));
        assert_eq!(per_second(3, 100, Duration::from_secs(1)), None);
    }
}
