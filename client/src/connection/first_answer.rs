//! Asks several servers the same: the next one as soon as the last one has failed or taken [`HEAD_START`].

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a server may take before the next one is asked as well.
const HEAD_START: Duration = Duration::from_millis(200);

/// The first good answer, or else the last error; `none` if there are no attempts. Attempts that still run
/// are dropped.
pub(super) async fn first_answer<T, E>(
    attempts: impl IntoIterator<Item: Future<Output = Result<T, E>> + Send + 'static>,
    none: E,
) -> Result<T, E>
where
    T: Send + 'static,
    E: Send + 'static,
{
    let (mut attempts, mut running, mut failure) = (attempts.into_iter(), JoinSet::new(), none);
    loop {
        let ended = if let Some(attempt) = attempts.next() {
            running.spawn(attempt);
            match timeout(HEAD_START, running.join_next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            }
        } else {
            running.join_next().await
        };
        match ended {
            Some(Ok(Ok(answer))) => return Ok(answer),
            Some(Ok(Err(error))) => failure = error,
            // The attempt panicked.
            Some(Err(_)) => {}
            None => return Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use tokio::time::{Instant, sleep};

    use super::*;

    async fn after(ms: u64, answer: Result<u8, u8>) -> Result<u8, u8> {
        sleep(Duration::from_millis(ms)).await;
        answer
    }

    #[tokio::test]
    async fn silent_one_holds_nobody_up_and_one_that_fails_even_less() {
        let started = Instant::now();
        let attempts = [after(60_000, Ok(1)), after(0, Err(2)), after(0, Ok(3)), after(0, Ok(4))];
        assert_eq!(first_answer(attempts, 0).await, Ok(3));
        assert!(started.elapsed() >= HEAD_START && started.elapsed() < HEAD_START * 2);
    }

    #[tokio::test]
    async fn first_one_is_enough_however_many_there_are() {
        let unasked =
            std::iter::from_fn(|| -> Option<std::future::Ready<_>> { panic!("the second is asked") });
        let attempts = std::iter::once(std::future::ready(Ok::<u8, u8>(1))).chain(unasked);
        assert_eq!(first_answer(attempts, 0).await, Ok(1));
    }

    #[tokio::test]
    async fn last_failure_tells_why_and_slow_answer_is_waited_for() {
        assert_eq!(first_answer([after(0, Err(1)), after(0, Err(2))], 0).await, Err(2));
        assert_eq!(first_answer([after(400, Ok(1)), after(0, Err(2))], 0).await, Ok(1));
        assert_eq!(first_answer::<u8, u8>(std::iter::empty::<std::future::Ready<_>>(), 9).await, Err(9));
    }
}
