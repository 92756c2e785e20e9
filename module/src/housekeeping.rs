//! What the module does when nobody has sent a command.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::server::{Context, ServerEvent, subscribe_to_server_events};
use crate::{default_user, reclaim, settings};

/// The server's housekeeping has come by, so the load of this module was no failure. No event says so at once: a server
/// tells a module of the loads of others only.
static IS_SETTLED: AtomicBool = AtomicBool::new(false);

/// Starts listening to the server.
pub(crate) fn start(context: &Context) -> bool {
    reclaim::start(context) && subscribe_to_server_events(context, on_event)
}

/// Whether the module may be unloaded: only by the server itself, right after a load that the server takes back.
pub(crate) fn may_unload() -> bool {
    !IS_SETTLED.load(Ordering::Relaxed)
}

fn on_event(context: &Context, event: ServerEvent) {
    IS_SETTLED.store(true, Ordering::Relaxed);
    settings::panic_if_asked();
    default_user::tell(context, event);
    reclaim::tell(context, event);
}
