//! A circuit breaker: calls fail at once while the server is away, instead of waiting for it one by one.

use pmcp_tasks::StorageError;
#[cfg(feature = "circuit-breaker")]
use {crate::Error, recloser::AsyncRecloser, recloser::Recloser, std::time::Duration};

/// When calls fail at once, without being sent.
///
/// A call counts as failed if the server does not answer, or if the cluster is down. Other errors do not
/// count, and neither does a call that its caller dropped.
///
/// A backend and its clones share one breaker, in a cluster too: if one shard of three does not answer, a
/// third of the calls fail.
///
/// ```
/// use std::time::Duration;
///
/// use pmcptask_client::{CircuitBreaker, RedisBackend};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Some(server) = pmcptask_tests::server_for_example() else { return Ok(()) };
/// # let url = server.url();
/// let breaker = CircuitBreaker { pause: Duration::from_secs(5), ..CircuitBreaker::default() };
/// let backend = RedisBackend::builder(&url).circuit_breaker(breaker).connect().await?;
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "circuit-breaker")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CircuitBreaker {
    /// The breaker looks at this many of the latest calls, from 1 to 100,000, and opens no sooner.
    /// Default: 20.
    pub calls: usize,
    /// The breaker opens when this share of those calls has failed, more than 0 and at most 1. Default: 0.5.
    pub failure_rate: f32,
    /// While open, the breaker fails every call for this long, at most a day. Default: 1 s.
    pub pause: Duration,
    /// After the pause, the breaker lets calls through. Once this many have ended, from 1 to 100,000, the
    /// next one that ends closes the breaker or opens it again. Default: 3.
    pub trials: usize,
}

#[cfg(feature = "circuit-breaker")]
impl Default for CircuitBreaker {
    fn default() -> Self {
        Self { calls: 20, failure_rate: 0.5, pause: Duration::from_secs(1), trials: 3 }
    }
}

#[cfg(feature = "circuit-breaker")]
impl CircuitBreaker {
    fn check(&self) -> Result<(), Error> {
        // The recloser crate panics on these.
        let counts = 1..=100_000;
        if !counts.contains(&self.calls) || !counts.contains(&self.trials) {
            let expected = "circuit breaker: expected from 1 to 100,000 calls and trials";
            return Err(Error::Settings(expected.to_owned()));
        }
        if self.pause > Duration::from_hours(24) {
            return Err(Error::Settings("circuit breaker: expected a pause of at most a day".to_owned()));
        }
        if self.failure_rate > 0.0 && self.failure_rate <= 1.0 {
            return Ok(());
        }
        let got = self.failure_rate;
        let expected = "circuit breaker: expected a failure rate of more than 0 and at most 1";
        Err(Error::Settings(format!("{expected}, got {got}")))
    }
}

/// The breaker that a backend shares with its clones. The default lets every call through.
#[derive(Clone, Default)]
pub(crate) struct Breaker {
    #[cfg(feature = "circuit-breaker")]
    recloser: Option<AsyncRecloser>,
}

impl Breaker {
    /// # Errors
    ///
    /// [`Error::Settings`] where a number is out of its range.
    #[cfg(feature = "circuit-breaker")]
    pub(crate) fn new(settings: CircuitBreaker) -> Result<Self, Error> {
        settings.check()?;
        let recloser = Recloser::custom()
            .closed_len(settings.calls)
            .half_open_len(settings.trials)
            .error_rate(settings.failure_rate)
            .open_wait(settings.pause);
        Ok(Self { recloser: Some(recloser.build().into()) })
    }

    /// Makes a call, unless the breaker is open.
    pub(crate) async fn guard<T, C: Future<Output = Result<T, StorageError>>>(
        &self,
        call: impl FnOnce() -> C,
    ) -> Result<T, StorageError> {
        #[cfg(feature = "circuit-breaker")]
        if let Some(recloser) = &self.recloser {
            let is_away = |error: &StorageError| Error::of(error).is_some_and(Error::says_server_is_away);
            return recloser.call_with(is_away, call()).await.map_err(|error| match error {
                recloser::Error::Inner(error) => error,
                recloser::Error::Rejected => Error::CircuitOpen.into(),
            });
        }
        call().await
    }
}
