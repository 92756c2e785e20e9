//! Connections live on the runtime that made them. If that runtime has ended, they are made again on the
//! caller's: several tests can share a backend in a `static`.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

/// Tasks on a runtime.
pub(crate) trait OnRuntime {
    /// Whether the runtime has ended, and the tasks with it.
    fn has_ended(&self) -> bool;

    /// Makes the same on another runtime.
    fn restarted_on(&self, runtime: &Handle) -> Self;
}

/// A value that is made again if its runtime has ended.
pub(crate) struct Revived<T> {
    now: ArcSwap<T>,
    restart: Mutex<()>,
}

impl<T: OnRuntime> Revived<T> {
    pub(super) fn new(first: T) -> Self {
        Self { now: ArcSwap::from_pointee(first), restart: Mutex::new(()) }
    }

    /// The current value, whose runtime may have ended.
    pub(super) fn last(&self) -> Arc<T> {
        self.now.load_full()
    }

    /// The current value, made again if its runtime has ended.
    pub(super) fn get(&self) -> Arc<T> {
        let now = self.last();
        if now.has_ended() { self.restart() } else { now }
    }

    fn restart(&self) -> Arc<T> {
        // Only one of many callers makes it again.
        let _restart = self.restart.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.last();
        match Handle::try_current() {
            Ok(runtime) if now.has_ended() => {
                let restarted = Arc::new(now.restarted_on(&runtime));
                self.now.store(restarted.clone());
                restarted
            }
            _ => now,
        }
    }
}
