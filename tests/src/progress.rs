//! How far clients have come that work at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long clients may take to make the calls that are waited for.
const LIMIT: Duration = Duration::from_mins(1);

/// The successful calls of each client, and whether the clients should go on. Clones share both.
#[derive(Debug, Clone)]
pub struct Progress {
    successes: Arc<[AtomicUsize]>,
    is_over: Arc<AtomicBool>,
}

impl Progress {
    /// For this many clients.
    #[must_use]
    pub fn of(clients: usize) -> Self {
        let successes = (0..clients).map(|_| AtomicUsize::new(0)).collect();
        Self { successes, is_over: Arc::default() }
    }

    /// Counts a successful call of a client.
    pub fn count(&self, client: usize) {
        self.successes[client].fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the clients should stop.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// Tells the clients to stop.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }

    /// Waits for this many more successful calls, an equal share from each client.
    ///
    /// # Panics
    ///
    /// If a client does not make its share within a minute.
    pub async fn go_on_for(&self, calls: usize) {
        let share = calls.div_ceil(self.successes.len());
        let counts = || self.successes.iter().map(|count| count.load(Ordering::SeqCst)).collect::<Vec<_>>();
        let (before, started) = (counts(), Instant::now());
        while counts().iter().zip(&before).any(|(count, before)| *count < before + share) {
            assert!(started.elapsed() < LIMIT, "a client does not recover: {before:?}, now {:?}", counts());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
