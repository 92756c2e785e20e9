//! What lives on the runtime of whoever made it, and is made again on the caller's where that has ended: a backend in
//! a `static`, say, that several tests use.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

/// Tasks on a runtime.
pub(crate) trait OnRuntime {
    /// Whether the runtime has ended, and the tasks with it.
    fn has_ended(&self) -> bool;

    /// The same, on another runtime.
    fn again(&self, runtime: &Handle) -> Self;
}

/// What is made again where its runtime has ended.
pub(crate) struct Revived<T> {
    now: ArcSwap<T>,
    making: Mutex<()>,
}

impl<T: OnRuntime> Revived<T> {
    pub(super) fn new(first: T) -> Self {
        Self { now: ArcSwap::from_pointee(first), making: Mutex::new(()) }
    }

    /// That of the moment, which may live on a runtime that has ended.
    pub(super) fn last(&self) -> Arc<T> {
        self.now.load_full()
    }

    /// That of the moment, made again if its runtime has ended.
    pub(super) fn get(&self) -> Arc<T> {
        let now = self.last();
        if now.has_ended() { self.revive() } else { now }
    }

    fn revive(&self) -> Arc<T> {
        // Of many callers, one makes it.
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.last();
        match Handle::try_current() {
            Ok(runtime) if now.has_ended() => {
                let again = Arc::new(now.again(&runtime));
                self.now.store(again.clone());
                again
            }
            _ => now,
        }
    }
}
