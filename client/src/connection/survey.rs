//! Asks all Sentinels at once, and decides which answer counts.
//!
//! The answer with the latest configuration counts, as soon as a majority has answered: a Sentinel that was
//! cut off from the others does not know of the last failover. If fewer answer in time, their latest answer
//! counts: the other Sentinels may be gone for good.

use std::time::Duration;

use redis::ErrorKind;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::live::Live;
use crate::error::Error;

pub(super) type HostAndPort = (String, u16);

/// What a Sentinel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// The number of the configuration, which grows with each failover.
    pub(super) epoch: u64,
    pub(super) location: HostAndPort,
    /// The Sentinel.
    pub(super) from: String,
}

/// Why a Sentinel has no answer. A later variant explains more than an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NoAnswer {
    Silence(String),
    /// The URL does not fit the Sentinel: only one of them has TLS.
    Settings(String),
    UnknownService,
    NoHealthyReplica,
    NoSentinel,
    Refusal(String),
}

impl NoAnswer {
    pub(super) fn too_late() -> Self {
        Self::Silence("no reply in time".to_owned())
    }

    /// The error for the service and its Sentinels.
    pub(super) fn into_error(self, address: String) -> Error {
        let kind = ErrorKind::MasterNameNotFoundBySentinel;
        let cause = match self {
            Self::Settings(why) => return Error::Settings(why),
            Self::Silence(why) => (kind, "no Sentinel answers", why).into(),
            Self::UnknownService => (kind, "the Sentinels know no service of this name").into(),
            Self::NoHealthyReplica => (kind, "the Sentinels know no healthy replica").into(),
            Self::NoSentinel => {
                (kind, "this is not a Sentinel: connect to the server itself with redis://host:port").into()
            }
            Self::Refusal(reply) => (kind, "a Sentinel refuses to answer, see sentinel_login", reply).into(),
        };
        Error::NoPrimary { address, cause }
    }
}

/// Asks Sentinels round by round. Sentinels are numbers here.
pub(super) struct Survey {
    sentinels: Vec<Surveyed>,
    /// Sentinels that have not answered yet. A Sentinel that still owes an answer to an earlier round is not
    /// asked twice.
    asking: JoinSet<Asked>,
    round: u64,
}

#[derive(Clone, Default)]
struct Surveyed {
    /// The connection to ask the Sentinel again.
    connection: Option<Live>,
    is_asked: bool,
}

/// The outcome of asking one Sentinel.
struct Asked {
    number: usize,
    round: u64,
    connection: Option<Live>,
    answer: Result<Answer, NoAnswer>,
}

impl Survey {
    pub(super) fn of(count: usize) -> Self {
        Self { sentinels: vec![Surveyed::default(); count], asking: JoinSet::new(), round: 0 }
    }

    /// Asks all Sentinels with `ask`, which gets a Sentinel's number and connection, and waits for a
    /// majority, but no longer than `limit`.
    pub(super) async fn run<A>(
        &mut self,
        limit: Duration,
        ask: impl Fn(usize, Option<Live>) -> A,
    ) -> Result<Answer, NoAnswer>
    where
        A: Future<Output = (Option<Live>, Result<Answer, NoAnswer>)> + Send + 'static,
    {
        self.round = self.round.wrapping_add(1);
        if self.asking.is_empty() {
            // A task that has panicked does not report that it has ended.
            self.sentinels.iter_mut().for_each(|sentinel| sentinel.is_asked = false);
        }
        for number in 0..self.sentinels.len() {
            self.ask(number, &ask);
        }
        let started = Instant::now();
        let (mut latest, mut answers, mut why_not) = (None, 0_usize, None);
        while let Ok(Some(asked)) =
            timeout(limit.saturating_sub(started.elapsed()), self.asking.join_next()).await
        {
            let Ok(Asked { number, round, connection, answer }) = asked else { continue };
            if let Some(sentinel) = self.sentinels.get_mut(number) {
                (sentinel.connection, sentinel.is_asked) = (connection, false);
            }
            match answer {
                // The answer is from before this round, and may be stale.
                _ if round != self.round => self.ask(number, &ask),
                Err(why) => why_not = why_not.max(Some(why)),
                Ok(answer) => {
                    answers = answers.saturating_add(1);
                    if latest.as_ref().is_none_or(|latest: &Answer| latest.epoch < answer.epoch) {
                        latest = Some(answer);
                    }
                }
            }
            if answers > self.sentinels.len() / 2 {
                break;
            }
        }
        latest.ok_or_else(|| why_not.unwrap_or_else(NoAnswer::too_late))
    }

    /// Asks a Sentinel, unless it still owes an answer.
    fn ask<A>(&mut self, number: usize, ask: impl Fn(usize, Option<Live>) -> A)
    where
        A: Future<Output = (Option<Live>, Result<Answer, NoAnswer>)> + Send + 'static,
    {
        let Some(sentinel) = self.sentinels.get_mut(number).filter(|sentinel| !sentinel.is_asked) else {
            return;
        };
        sentinel.is_asked = true;
        let (round, asked) = (self.round, ask(number, sentinel.connection.clone()));
        self.asking.spawn(async move {
            let (connection, answer) = asked.await;
            Asked { number, round, connection, answer }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);
    const NEVER: u64 = 3_600_000;

    fn answer(number: usize, epoch: u64) -> Answer {
        Answer { epoch, location: ("h".to_owned(), 1), from: number.to_string() }
    }

    /// Sentinels that answer after so many ms each, with these epochs.
    async fn survey(
        survey: &mut Survey,
        sentinels: Vec<(u64, Result<u64, NoAnswer>)>,
    ) -> (Result<Answer, NoAnswer>, u64) {
        let started = Instant::now();
        let asked = survey
            .run(LIMIT, |number, _| {
                let (after, epoch) = sentinels[number].clone();
                async move {
                    sleep(Duration::from_millis(after)).await;
                    (None, epoch.map(|epoch| answer(number, epoch)))
                }
            })
            .await;
        (asked, u64::try_from(started.elapsed().as_millis()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn latest_answer_of_the_first_majority_counts_and_nobody_waits_for_the_rest() {
        let sentinels = vec![(10, Ok(4)), (20, Ok(7)), (30, Ok(5)), (NEVER, Ok(9)), (NEVER, Ok(9))];
        assert_eq!(survey(&mut Survey::of(5), sentinels).await, (Ok(answer(1, 7)), 30));
    }

    #[tokio::test(start_paused = true)]
    async fn latest_answer_of_a_minority_counts_once_the_time_is_over() {
        let sentinels = vec![(10, Ok(4)), (NEVER, Ok(9)), (NEVER, Ok(9))];
        assert_eq!(survey(&mut Survey::of(3), sentinels).await, (Ok(answer(0, 4)), 1_000));
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_the_error_is_the_one_that_explains_most_and_comes_when_all_have_answered() {
        let refusal = || NoAnswer::Refusal("NOPERM".to_owned());
        let sentinels =
            vec![(10, Err(refusal())), (20, Err(NoAnswer::UnknownService)), (30, Err(NoAnswer::too_late()))];
        assert_eq!(survey(&mut Survey::of(3), sentinels).await, (Err(refusal()), 30));
        let sentinels = vec![(NEVER, Ok(1)), (10, Err(NoAnswer::UnknownService))];
        assert_eq!(survey(&mut Survey::of(2), sentinels).await, (Err(NoAnswer::UnknownService), 1_000));
        assert_eq!(
            survey(&mut Survey::of(1), vec![(NEVER, Ok(1))]).await,
            (Err(NoAnswer::too_late()), 1_000)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn sentinel_that_owes_an_answer_is_not_asked_twice_and_a_stale_answer_does_not_count() {
        let mut survey = Survey::of(1);
        let times_asked = Arc::new(AtomicU64::new(0));
        let ask = |_, _| {
            let epoch = times_asked.fetch_add(1, Ordering::Relaxed);
            async move {
                sleep(LIMIT + Duration::from_millis(500)).await;
                (None, Ok(answer(0, epoch)))
            }
        };
        assert_eq!(survey.run(LIMIT, ask).await, Err(NoAnswer::too_late()));
        // The answer to the first round comes in the second one.
        assert_eq!(survey.run(LIMIT, ask).await, Err(NoAnswer::too_late()));
        assert_eq!(times_asked.load(Ordering::Relaxed), 2);
        assert_eq!(survey.run(3 * LIMIT, ask).await, Ok(answer(0, 2)));
    }
}
