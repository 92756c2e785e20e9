//! Reads from a replica, and from the primary if the replica does not help.

use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use super::node::Node;
use super::request::{Attempt, Request};

/// Asks a replica, if it is connected. Asks the primary if the replica has nothing: what the replica lacks
/// may be new.
///
/// If the replica takes longer than the connect timeout, the primary is asked as well. If the primary is
/// faster, the replica may be hanging: its connection is replaced, and it is avoided for a while.
pub(super) async fn read<P: Future<Output = Attempt>>(
    replica: &Node,
    request: &Request<'_>,
    primary: impl FnOnce() -> P,
) -> Attempt {
    let Some(current) = replica.ready() else { return primary().await };
    let mut asked = pin!(replica.attempt(request, false, Duration::ZERO));
    match timeout(replica.settings().timeouts.connect, &mut asked).await {
        Ok(attempt) if attempt.has_content() => return attempt,
        Ok(_) => return primary().await,
        Err(_) => {}
    }
    let mut primary = pin!(primary());
    tokio::select! {
        attempt = &mut asked => if attempt.has_content() { attempt } else { primary.await },
        attempt = &mut primary => {
            if let Attempt::Replied(Ok(_)) = attempt {
                replica.avoid(&current);
                return attempt;
            }
            // The primary has failed, so only the replica is left.
            let late = asked.await;
            if late.has_content() { late } else { attempt }
        }
    }
}
