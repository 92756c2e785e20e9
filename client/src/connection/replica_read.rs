//! Reads from a replica, and what to do where that is of no use.

use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use super::node::Node;
use super::request::{Attempt, Request};

/// Asks a replica that is connected, and the primary where the replica has nothing of worth: what it does not have may
/// be new.
///
/// One that takes longer than a call waits for a connection has the primary asked as well. Where that is faster, the
/// replica may be hanging: its connection is replaced, and it is left alone for a while.
pub(super) async fn read<P: Future<Output = Attempt>>(
    replica: &Node,
    request: &Request<'_>,
    primary: impl FnOnce() -> P,
) -> Attempt {
    let Some(current) = replica.ready() else { return primary().await };
    let mut asked = pin!(replica.attempt(request, false, Duration::ZERO));
    match timeout(replica.settings().timeouts.connect, &mut asked).await {
        Ok(attempt) if attempt.is_worth_something() => return attempt,
        Ok(_) => return primary().await,
        Err(_) => {}
    }
    let mut primary = pin!(primary());
    tokio::select! {
        attempt = &mut asked => if attempt.is_worth_something() { attempt } else { primary.await },
        attempt = &mut primary => {
            if let Attempt::Replied(Ok(_)) = attempt {
                replica.avoid(&current);
                return attempt;
            }
            // The replica is all there is.
            let late = asked.await;
            if late.is_worth_something() { late } else { attempt }
        }
    }
}
