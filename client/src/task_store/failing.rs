//! What a task has that fails for its worker.

use pmcp::types::protocol::error_codes;
use pmcp_tasks::TaskRecord;
use pmcp_tasks::store::backend::VersionedRecord;
use serde_json::json;

/// The message of a task whose worker has died.
pub(super) const DIED: &str = "the process that worked on the task ended or lost its connection";
/// The message of a task whose worker was dropped.
pub(super) const DROPPED: &str = "the worker ended without a result";

/// The record with an error, which a task that has failed needs with the protocol of 2026-07-28. The error becomes part of the
/// record before upstream's code changes the status, so that both are one write, and a refusal writes neither.
pub(super) fn with_error(record: VersionedRecord, message: &str) -> VersionedRecord {
    let VersionedRecord { data, version } = record;
    let data = match serde_json::from_slice::<TaskRecord>(&data) {
        Ok(mut task) => {
            task.error = Some(json!({ "code": error_codes::INTERNAL_ERROR, "message": message }));
            serde_json::to_vec(&task).unwrap_or(data)
        }
        // Upstream's code says what is wrong with the record.
        Err(_) => data,
    };
    VersionedRecord { data, version }
}
