//! `tasks` and `stuck`: lists of tasks, without their records.

use std::time::Duration;

use pmcp_tasks::TaskStatus;
use pmcptask_client::{ListedTask, RedisBackend};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{Output, Row};
use crate::owners::{Owner, OwnerWalk};
use crate::pages::Pages;
use crate::printable::{in_line, say};
use crate::record::Summary;
use crate::servers::Servers;
use crate::times::{expiry, length, now_ms, time, timestamp};

/// A task as lists show it.
#[derive(Debug, Serialize)]
pub(crate) struct Task {
    pub(crate) owner: String,
    pub(crate) id: String,
    pub(crate) status: Option<TaskStatus>,
    pub(crate) version: u64,
    created: Option<String>,
    updated: Option<String>,
    expires: Option<String>,
    #[serde(skip)]
    times: Times,
}

#[derive(Debug)]
struct Times {
    created_ms: i64,
    summary: Summary,
    now_ms: i64,
}

impl Task {
    fn new(owner: &str, task: &ListedTask, now_ms: i64) -> Self {
        let summary = Summary::of(&task.record.data);
        Self {
            owner: owner.to_owned(),
            id: task.task_id.clone(),
            status: summary.status,
            version: task.record.version,
            created: timestamp(task.created_ms),
            updated: summary.updated_ms.and_then(timestamp),
            expires: summary.expires_ms.and_then(timestamp),
            times: Times { created_ms: task.created_ms, summary, now_ms },
        }
    }
}

/// The status in a table.
pub(crate) fn status_name(status: Option<TaskStatus>) -> String {
    status.map_or_else(|| "-".to_owned(), |status| status.to_string())
}

impl Row for Task {
    fn header() -> Option<String> {
        Some(columns("ID", "STATUS", "VERSION", "CREATED", "AGE", "EXPIRES"))
    }

    fn line(&self) -> String {
        let Times { created_ms, summary, now_ms } = &self.times;
        columns(
            &in_line(&self.id),
            &status_name(self.status),
            &self.version.to_string(),
            &time(*created_ms),
            &length(now_ms.saturating_sub(*created_ms)),
            &expiry(summary.expires_ms, *now_ms),
        )
    }
}

fn columns(id: &str, status: &str, version: &str, created: &str, age: &str, expires: &str) -> String {
    format!("{id:<36}  {status:<14}  {version:>7}  {created:<20}  {age:>4}  {expires}")
}

/// Prints the tasks of an owner, newest first.
pub(crate) async fn list(
    servers: &Servers,
    owner: &str,
    limit: Option<usize>,
    status: Option<TaskStatus>,
    output: &mut Output,
) -> Result<(), Failure> {
    let backend = servers.backend().await?;
    let mut pages = Pages::new(owner.to_owned());
    let mut left = limit.unwrap_or(usize::MAX);
    while left > 0 && !pages.is_over() {
        // With a status, nobody knows how many it takes to find so many.
        let most = if status.is_none() { left } else { usize::MAX };
        let page = pages.next(&backend, most).await?;
        let tasks = page.iter().map(|task| Task::new(owner, task, now_ms()));
        for task in tasks.filter(|task| status.is_none_or(|status| task.status == Some(status))).take(left) {
            output.row(&task)?;
            left = left.saturating_sub(1);
        }
        output.flush()?;
    }
    Ok(())
}

/// A task that waits for something that may never come.
#[derive(Debug, Serialize)]
struct StuckTask {
    #[serde(flatten)]
    task: Task,
    idle_ms: i64,
}

impl Row for StuckTask {
    fn header() -> Option<String> {
        Some(format!("{:<14}  {:>4}  {:>4}  {:<36}  OWNER", "STATUS", "IDLE", "AGE", "ID"))
    }

    fn line(&self) -> String {
        let Task { owner, id, status, times, .. } = &self.task;
        let age = length(times.now_ms.saturating_sub(times.created_ms));
        let (status, idle, id) = (status_name(*status), length(self.idle_ms), in_line(id));
        format!("{status:<14}  {idle:>4}  {age:>4}  {id:<36}  {}", in_line(owner))
    }
}

/// Prints the tasks, of one owner or of all, that are not finished and whose record has not changed for so
/// long.
pub(crate) async fn stuck(
    servers: &Servers,
    owner: Option<String>,
    older: Duration,
    output: &mut Output,
) -> Result<(), Failure> {
    let backend = servers.backend().await?;
    let older_ms = i64::try_from(older.as_millis()).unwrap_or(i64::MAX);
    if let Some(owner) = owner {
        return stuck_of(&backend, owner, older_ms, output).await;
    }
    let mut walk = OwnerWalk::new(backend.clone(), servers.primaries().await?, servers.prefix());
    let mut unread = 0_usize;
    while let Some(found) = walk.next().await? {
        for Owner { owner, .. } in found {
            match stuck_of(&backend, owner.clone(), older_ms, output).await {
                // The lists of others may be readable.
                Err(failure) if failure.is_of_one_owner() => {
                    unread = unread.saturating_add(1);
                    say(&format!("pmcptask: {}: {failure}", in_line(&owner)));
                }
                other => other?,
            }
        }
    }
    if unread == 0 { Ok(()) } else { Err(Failure::Unread(unread)) }
}

async fn stuck_of(
    backend: &RedisBackend,
    owner: String,
    older_ms: i64,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut pages = Pages::new(owner);
    while !pages.is_over() {
        let page = pages.next(backend, usize::MAX).await?;
        for task in page.iter().map(|task| Task::new(pages.owner(), task, now_ms())) {
            let Times { created_ms, summary, now_ms } = &task.times;
            match summary.idle_ms(*created_ms, *now_ms) {
                Some(idle_ms) if idle_ms >= older_ms => output.row(&StuckTask { task, idle_ms })?,
                _ => {}
            }
        }
        output.flush()?;
    }
    Ok(())
}
