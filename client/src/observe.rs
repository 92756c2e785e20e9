//! What calls and connections report: spans and events with the feature `tracing`, counters and histograms
//! with the feature `metrics`. Reports contain keys, never data.

use pmcp_tasks::StorageError;

/// Reports one call of the backend. Takes a function, because a future as an argument would take its memory
/// twice: as an argument and while it is awaited.
pub(crate) async fn call<T, C: Future<Output = Result<T, StorageError>>>(
    command: &'static str,
    key: &str,
    call: impl FnOnce() -> C,
) -> Result<T, StorageError> {
    #[cfg(feature = "metrics")]
    let started = std::time::Instant::now();

    #[cfg(feature = "tracing")]
    let result = {
        use tracing::Instrument as _;
        let span = tracing::debug_span!(
            "pmcptask",
            db.system.name = "redis",
            db.operation.name = command,
            key,
            outcome = tracing::field::Empty,
        );
        let result = call().instrument(span.clone()).await;
        span.record("outcome", outcome(&result));
        result
    };
    #[cfg(not(feature = "tracing"))]
    let result = {
        let _ = key;
        call().await
    };

    #[cfg(feature = "metrics")]
    {
        let outcome = outcome(&result);
        metrics::counter!("pmcptask_calls_total", "command" => command, "outcome" => outcome).increment(1);
        metrics::histogram!("pmcptask_call_seconds", "command" => command).record(started.elapsed());
    }
    #[cfg(not(feature = "metrics"))]
    let _ = command;

    result
}

/// The outcome of a call, as a label.
#[cfg(any(feature = "tracing", feature = "metrics"))]
fn outcome<T>(result: &Result<T, StorageError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(StorageError::NotFound { .. }) => "not_found",
        Err(StorageError::VersionConflict { .. }) => "conflict",
        Err(StorageError::CapacityExceeded { .. }) => "capacity",
        // Includes a write that too few replicas have, because a failover may undo it.
        Err(error)
            if crate::Error::of(error).is_some_and(|error| error.was_applied() != crate::Applied::No) =>
        {
            "unknown"
        }
        Err(_) => "failed",
    }
}

/// A connection was lost and is about to be replaced.
pub(crate) fn lost(address: &str) {
    #[cfg(feature = "tracing")]
    tracing::warn!(server.address = address, "connection lost");
    #[cfg(feature = "metrics")]
    metrics::counter!("pmcptask_connections_lost_total").increment(1);
    let _ = address;
}

/// A lost connection has been replaced.
pub(crate) fn reconnected(address: &str) {
    #[cfg(feature = "tracing")]
    tracing::info!(server.address = address, "connected again");
    #[cfg(feature = "metrics")]
    metrics::counter!("pmcptask_reconnects_total").increment(1);
    let _ = address;
}
