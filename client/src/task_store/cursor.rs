//! Cursors of lists. A cursor is the position of a page's last task, so it outlives the task.

use pmcp_tasks::StorageError;

use crate::listing::TaskPosition;

/// The cursor of a position. Task ids have no colon.
pub(super) fn of(position: &TaskPosition) -> String {
    format!("{}:{}", position.created_ms, position.task_id)
}

/// The position of a cursor.
///
/// # Errors
///
/// [`StorageError::Backend`] for what [`of`] did not make. Upstream starts the list over then, and a client that follows
/// cursors would never come to an end.
pub(super) fn position(cursor: &str) -> Result<TaskPosition, StorageError> {
    let parts = cursor.split_once(':').filter(|(_, task_id)| !task_id.is_empty() && !task_id.contains(':'));
    let position = parts.and_then(|(created_ms, task_id)| {
        Some(TaskPosition { created_ms: created_ms.parse().ok()?, task_id: task_id.to_owned() })
    });
    position.ok_or_else(|| StorageError::Backend {
        message: "cursor: expected the next_cursor of a page of this store, got another text".to_owned(),
        source: None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cursor_leads_back_to_its_position_and_other_texts_to_none() {
        for (created_ms, task_id) in [(0, "t"), (-5, "t 1"), (i64::MAX, "{é}")] {
            let there = TaskPosition { created_ms, task_id: task_id.to_owned() };
            assert_eq!(position(&of(&there)).unwrap(), there);
        }
        for rubbish in ["", ":", "5:", ":t", "t", "5", "x:t", "5:t:t", "9223372036854775808:t", "5.5:t"] {
            assert!(position(rubbish).is_err(), "{rubbish}");
        }
    }
}
