//! What lists consist of: tasks with their position, with or without records, in one order or the other.

use pmcp_tasks::VersionedRecord;

/// A task of a list.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ListedTask {
    /// The task id, without the owner.
    pub task_id: String,
    /// When the task was created, in ms since the epoch.
    pub created_ms: i64,
    /// The record and its version.
    pub record: VersionedRecord,
}

impl ListedTask {
    /// Where the next page starts if this task is the last one of a page.
    #[must_use]
    pub fn position(&self) -> TaskPosition {
        TaskPosition { created_ms: self.created_ms, task_id: self.task_id.clone() }
    }
}

/// A task of a list without its record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedEntry {
    /// The task id, without the owner.
    pub task_id: String,
    /// When the task was created, in ms since the epoch.
    pub created_ms: i64,
    /// The record's version.
    pub version: u64,
}

impl ListedEntry {
    /// Where the next page starts if this task is the last one of a page.
    #[must_use]
    pub fn position(&self) -> TaskPosition {
        TaskPosition { created_ms: self.created_ms, task_id: self.task_id.clone() }
    }
}

/// A place in the order of an owner's tasks. The place stays valid when the task there has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPosition {
    /// Creation time, in ms since the epoch.
    pub created_ms: i64,
    /// The task id, without the owner; it decides between tasks of one creation time.
    pub task_id: String,
}

/// The order of a list: by creation time, then by task id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Oldest first.
    #[default]
    OldestFirst,
    /// Newest first.
    NewestFirst,
}
