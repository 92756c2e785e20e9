//! A circuit breaker: calls fail at once while the server is away, instead of waiting for it one by one.

use pmcp_tasks::StorageError;
#[cfg(feature = "circuit-breaker")]
use {crate::Error, recloser::AsyncRecloser, recloser::Recloser, std::time::Duration};

use crate::connection::Settings;

/// When calls fail at once. Only a server that does not answer counts as a failure, or a cluster that is down, and no
/// other refusal does; nor does a call that its caller has given up.
///
/// A backend and its clones have one breaker, also where they talk to many nodes: one shard of three that is away
/// fails a third of the calls.
#[cfg(feature = "circuit-breaker")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CircuitBreaker {
    /// How many of the last calls are looked at, once there were so many, from 1 to 100,000; 20 unless set.
    pub calls: usize,
    /// What share of them has to fail, more than 0 and at most 1; 0.5 unless set.
    pub failure_rate: f32,
    /// For how long calls fail at once then, before they are let through again, at most a day; 1 s unless set.
    pub pause: Duration,
    /// How many calls have to have ended then, from 1 to 100,000, before the next one decides whether the server is
    /// back; 3 unless set.
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
    /// # Errors
    ///
    /// [`Error::Settings`] where a number is out of its range.
    pub(crate) fn check(&self) -> Result<(), Error> {
        // What the library would panic for.
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
        let came = self.failure_rate;
        let expected = "circuit breaker: expected a failure rate of more than 0 and at most 1";
        Err(Error::Settings(format!("{expected}, got {came}")))
    }
}

/// The breaker of a backend, which all its clones share; none unless there is one.
#[derive(Clone, Default)]
pub(crate) struct Breaker {
    #[cfg(feature = "circuit-breaker")]
    recloser: Option<AsyncRecloser>,
}

impl Breaker {
    #[cfg(feature = "circuit-breaker")]
    pub(crate) fn of(settings: &Settings) -> Self {
        let recloser = settings.circuit_breaker.map(|settings| {
            let recloser = Recloser::custom()
                .closed_len(settings.calls)
                .half_open_len(settings.trials)
                .error_rate(settings.failure_rate)
                .open_wait(settings.pause);
            recloser.build().into()
        });
        Self { recloser }
    }

    #[cfg(not(feature = "circuit-breaker"))]
    pub(crate) fn of(_: &Settings) -> Self {
        Self::default()
    }

    /// Makes a call, unless it would most likely fail.
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
