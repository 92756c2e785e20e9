//! The retry policy: which request is sent again, how long that may take, and the pauses between attempts.
//!
//! A write is sent again only if it was not sent, or if the server said that it did nothing. A read is also
//! sent again once after a lost connection. A second loss may be the fault of the read itself, and costs all
//! callers the connection.

use std::io;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use redis::{RedisError, RedisResult};
use tokio::time::{Instant, sleep, timeout};

use super::request::{Attempt, Request};
use crate::error;

/// The shortest pause between two attempts, without its jitter.
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause, with its jitter.
const LONGEST_PAUSE: Duration = Duration::from_millis(600);

/// Growing pauses, with jitter of up to their own length, so that not all clients reconnect at the same time.
pub(super) fn pauses() -> impl Iterator<Item = Duration> + Send + Sync + 'static {
    pauses_up_to(LONGEST_PAUSE)
}

/// The same, but no pause is longer than `longest`, if that leaves room for the shortest pause and
/// its jitter.
pub(super) fn pauses_up_to(longest: Duration) -> impl Iterator<Item = Duration> + Send + Sync + 'static {
    ExponentialBuilder::default()
        .with_min_delay(SHORTEST_PAUSE)
        .with_max_delay(longest.min(LONGEST_PAUSE).mul_f32(0.5).max(SHORTEST_PAUSE))
        .without_max_times()
        .with_jitter()
        .build()
}

/// Asks again while the server replies that it is not ready, for example because it runs a script. After
/// `limit`, the error is the server's last reply, or a timeout if there was none.
pub(super) async fn until_ready<T, A>(limit: Duration, ask: impl Fn() -> A) -> RedisResult<T>
where
    A: Future<Output = RedisResult<T>>,
{
    let (started, mut pauses) = (Instant::now(), pauses());
    let mut refusal = RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
    let left = || limit.saturating_sub(started.elapsed());
    loop {
        match timeout(left(), ask()).await {
            Ok(Err(error)) if error::is_transient_reply(&error) => {
                refusal = error;
                sleep(pauses.next().unwrap_or(LONGEST_PAUSE).min(left())).await;
            }
            Ok(reply) => return reply,
            Err(_) => return Err(refusal),
        }
    }
}

/// The attempts of one call.
pub(super) struct Retry<P> {
    started: Instant,
    limit: Duration,
    pauses: P,
    has_lost_connection: bool,
    /// The last error reply.
    refusal: Option<Attempt>,
}

/// For a call that started at `started` and may wait for `limit`.
pub(super) fn retry(
    started: Instant,
    limit: Duration,
) -> Retry<impl Iterator<Item = Duration> + Send + Sync> {
    Retry { started, limit, pauses: pauses(), has_lost_connection: false, refusal: None }
}

impl<P: Iterator<Item = Duration>> Retry<P> {
    /// How long the call may still wait for a server.
    pub(super) fn time_left(&self) -> Duration {
        self.limit.saturating_sub(self.started.elapsed())
    }

    /// Whether the request is sent again after this attempt. `may_pass`: the cause of an error reply, or of a
    /// request that was not sent, may soon be over.
    pub(super) fn allows(&mut self, request: &Request<'_>, attempt: &Attempt, may_pass: bool) -> bool {
        let is_allowed = match attempt {
            Attempt::Lost(loss) => {
                request.may_be_sent_again_after(loss)
                    && !std::mem::replace(&mut self.has_lost_connection, true)
            }
            Attempt::Replied(Err(_)) | Attempt::NotSent(_) => may_pass,
            Attempt::Replied(Ok(_)) | Attempt::Refused(_) | Attempt::Outdated => false,
        };
        is_allowed && !self.time_left().is_zero()
    }

    /// The pause before the next attempt.
    pub(super) fn next_pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(LONGEST_PAUSE).min(self.time_left())
    }

    /// Keeps an error reply, in case there is no further connection.
    pub(super) fn keep(&mut self, attempt: Attempt) {
        if matches!(attempt, Attempt::Replied(_)) {
            self.refusal = Some(attempt);
        }
    }

    /// The outcome of the call: the last attempt, or, if the last attempt found no connection, an earlier error reply. That
    /// says more. An earlier loss of the connection says less than the reason why there is no new one.
    pub(super) fn outcome(self, last: Attempt) -> Attempt {
        match (last, self.refusal) {
            (Attempt::NotSent(_), Some(refusal)) => refusal,
            (attempt, _) => attempt,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use redis::{Cmd, make_extension_error};

    use super::*;
    use crate::connection::request::Reply;
    use crate::error::CallKind;

    const LIMIT: Duration = Duration::from_secs(2);

    fn request(command: &Cmd, kind: CallKind) -> Request<'_> {
        Request { command, kind, key: "", routed_by: "" }
    }

    fn lost() -> Attempt {
        Attempt::Lost(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into())
    }

    fn refused(code: &str) -> Attempt {
        Attempt::Replied(Err(make_extension_error(code.to_owned(), None)))
    }

    #[tokio::test(start_paused = true)]
    async fn write_is_sent_again_only_where_nothing_was_done() {
        let command = Cmd::new();
        let write = request(&command, CallKind::Write);
        let mut retry = retry(Instant::now(), LIMIT);
        assert!(!retry.allows(&write, &lost(), true));
        assert!(retry.allows(&write, &refused("LOADING"), true));
        assert!(retry.allows(&write, &Attempt::NotSent(None), true));
        assert!(!retry.allows(&write, &refused("ERR"), false));
        let done = Attempt::Replied(Ok(Reply::of_one_server(redis::Value::Okay)));
        assert!(!retry.allows(&write, &done, true));
    }

    #[tokio::test(start_paused = true)]
    async fn read_is_sent_again_after_one_lost_connection_and_never_after_a_timeout() {
        let command = Cmd::new();
        let read = request(&command, CallKind::Read);
        let mut retry = retry(Instant::now(), LIMIT);
        let timed_out = RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        assert!(!retry.allows(&read, &Attempt::Lost(timed_out), true));
        assert!(retry.allows(&read, &lost(), false));
        assert!(!retry.allows(&read, &lost(), false));
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_with_the_time_of_the_call() {
        let command = Cmd::new();
        let write = request(&command, CallKind::Write);
        let mut retry = retry(Instant::now(), LIMIT);
        let (mut attempts, mut longest) = (0, Duration::ZERO);
        while retry.allows(&write, &refused("LOADING"), true) {
            let pause = retry.next_pause();
            assert!(attempts > 0 || (SHORTEST_PAUSE..=2 * SHORTEST_PAUSE).contains(&pause), "{pause:?}");
            longest = longest.max(pause);
            tokio::time::sleep(pause).await;
            attempts += 1;
        }
        assert!(retry.time_left().is_zero());
        assert!((4..=20).contains(&attempts), "{attempts}");
        assert!(longest <= LONGEST_PAUSE, "{longest:?}");
    }

    #[test]
    fn error_reply_says_more_than_a_missing_connection_and_a_lost_one_says_less() {
        let code = |attempt| match attempt {
            Attempt::Replied(Err(error)) => error.code().map(str::to_owned),
            _ => None,
        };
        let after = |attempt| {
            let mut retry = retry(Instant::now(), LIMIT);
            retry.keep(attempt);
            retry.keep(Attempt::NotSent(None));
            retry
        };
        assert_eq!(code(after(refused("LOADING")).outcome(Attempt::NotSent(None))).unwrap(), "LOADING");
        assert!(matches!(after(lost()).outcome(Attempt::NotSent(None)), Attempt::NotSent(None)));
        assert_eq!(code(after(refused("LOADING")).outcome(refused("BUSY"))).unwrap(), "BUSY");
        assert!(matches!(after(refused("LOADING")).outcome(lost()), Attempt::Lost(_)));
    }

    #[test]
    fn short_pauses_keep_their_jitter_and_are_never_shorter_than_the_shortest() {
        for longest in
            [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(200), LONGEST_PAUSE * 9]
        {
            let last: Vec<_> = (0..20).map(|_| pauses_up_to(longest).nth(20).unwrap()).collect();
            let (least, most) = (last.iter().min().unwrap(), last.iter().max().unwrap());
            assert!(*least >= SHORTEST_PAUSE && least < most, "{longest:?}: {last:?}");
            assert!(*most <= LONGEST_PAUSE.min(longest.max(2 * SHORTEST_PAUSE)), "{longest:?}: {last:?}");
        }
    }
}
