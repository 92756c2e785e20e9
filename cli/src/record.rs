//! What a record says about its task.

use chrono::{DateTime, Utc};
use pmcp_tasks::TaskStatus;
use pmcptask_schema::Envelope;
use serde::Deserialize;

/// The few fields that lists show. The owner of a record may store anything in it, so each can be missing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) status: Option<TaskStatus>,
    pub(crate) updated_ms: Option<i64>,
    pub(crate) expires_ms: Option<i64>,
}

impl Summary {
    pub(crate) fn of(data: &[u8]) -> Self {
        let expires_ms = Envelope::read(data).expires_at_ms.unwrap_or(None);
        let task = serde_json::from_slice::<Record>(data).ok().map(|record| record.task);
        let updated = task.as_ref().and_then(|task| task.last_updated_at);
        Self {
            status: task.and_then(|task| task.status),
            updated_ms: updated.map(|time| time.timestamp_millis()),
            expires_ms,
        }
    }

    /// How long an unfinished task has not changed. None: it is finished, or has no status of `pmcp-tasks`.
    pub(crate) fn idle_ms(&self, created_ms: i64, now_ms: i64) -> Option<i64> {
        self.status.filter(|status| !status.is_terminal())?;
        Some(now_ms.saturating_sub(self.updated_ms.unwrap_or(created_ms)))
    }
}

#[derive(Deserialize)]
struct Record {
    task: Task,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Task {
    status: Option<TaskStatus>,
    last_updated_at: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use pmcp_tasks::TaskRecord;

    use super::*;

    #[test]
    fn record_of_pmcp_tasks_is_understood() {
        let record = TaskRecord::new("alice".to_owned(), "tools/call".to_owned(), Some(60_000));
        let summary = Summary::of(&serde_json::to_vec(&record).unwrap());
        let expires = record.expires_at.unwrap().timestamp_millis();
        assert_eq!(summary.status, Some(TaskStatus::Working));
        assert!((expires..=expires + 1).contains(&summary.expires_ms.unwrap()));
        assert_eq!(summary.idle_ms(0, summary.updated_ms.unwrap() + 5_000), Some(5_000));
    }

    #[test]
    fn record_of_others_has_no_status_and_is_never_stuck() {
        for data in [&b"no JSON"[..], b"{}", br#"{"task":{"status":"baked"}}"#, b"\xff"] {
            let summary = Summary::of(data);
            assert_eq!((summary.status, summary.idle_ms(0, i64::MAX)), (None, None));
        }
        let finished = Summary { status: Some(TaskStatus::Failed), ..Summary::default() };
        assert_eq!(finished.idle_ms(0, i64::MAX), None);
    }
}
