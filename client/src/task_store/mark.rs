//! The mark of a worker in its task's record.

use pmcp_tasks::TaskRecord;
use serde_json::{Value, json};

/// The variable that has the mark. Variables survive every rewrite of a record, by any store and backend.
pub(super) const VARIABLE: &str = "pmcptask.worker";

/// Who works on a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// The composite key of the lease of the worker's process.
    pub(super) lease: String,
    /// Tells the workers of a process apart.
    pub(super) worker: u32,
}

impl Mark {
    pub(super) fn to_json(&self) -> Value {
        json!({ "lease": self.lease, "worker": self.worker })
    }

    /// The mark in a task's record, if the task is not terminal.
    pub(super) fn of_unfinished(record: &[u8]) -> Option<Self> {
        // Most records have no mark, and need not be read.
        memchr::memmem::find(record, VARIABLE.as_bytes())?;
        let record: TaskRecord = serde_json::from_slice(record).ok()?;
        if record.task.status.is_terminal() { None } else { Self::of(&record) }
    }

    /// The mark in a task's record.
    pub(super) fn of(record: &TaskRecord) -> Option<Self> {
        let mark = record.variables.get(VARIABLE)?;
        let worker = u32::try_from(mark.get("worker")?.as_u64()?).ok()?;
        Some(Self { lease: mark.get("lease")?.as_str()?.to_owned(), worker })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use pmcp_tasks::TaskStatus;

    use super::*;

    #[test]
    fn mark_is_read_from_the_record_of_a_task_that_is_not_terminal() {
        let mark = Mark { lease: "name:1".to_owned(), worker: u32::MAX };
        let mut record = TaskRecord::new("owner".to_owned(), "tools/call".to_owned(), None);
        let read = |record: &TaskRecord| Mark::of_unfinished(&serde_json::to_vec(record).unwrap());
        assert_eq!(read(&record), None);
        for rubbish in
            [json!(null), json!(1), json!({ "lease": "name:1" }), json!({ "lease": 1, "worker": 1 })]
        {
            record.variables.insert(VARIABLE.to_owned(), rubbish);
            assert_eq!(read(&record), None);
        }
        record.variables.insert(VARIABLE.to_owned(), mark.to_json());
        assert_eq!(read(&record), Some(mark));
        record.task.status = TaskStatus::Cancelled;
        assert_eq!(read(&record), None);
        assert_eq!(Mark::of_unfinished(b"pmcptask.worker"), None);
    }
}
