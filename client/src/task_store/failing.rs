//! Failing a task for its worker.

use pmcp::types::protocol::error_codes;
use pmcp_tasks::store::backend::StorageBackend;
use pmcp_tasks::{GenericTaskStore, TaskError, TaskRecord, TaskStatus};
use serde_json::json;

/// The message of a task whose worker has died.
pub(super) const DIED: &str = "the process that worked on the task ended or lost its connection";
/// The message of a task whose worker was dropped.
pub(super) const DROPPED: &str = "the worker ended without a result";

/// Fails a task, with upstream's code.
pub(super) async fn fail<B: StorageBackend>(
    store: &GenericTaskStore<B>,
    task_id: &str,
    owner_id: &str,
    message: &str,
) -> Result<TaskRecord, TaskError> {
    // First, because with the protocol of 2026-07-28 a task that has failed has an error.
    let error = json!({ "code": error_codes::INTERNAL_ERROR, "message": message });
    store.set_error(task_id, owner_id, error).await?;
    store.update_status(task_id, owner_id, TaskStatus::Failed, Some(message.to_owned())).await
}
