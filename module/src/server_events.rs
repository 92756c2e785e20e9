//! Work of the module that no command triggers.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::server::{Context, ServerEvent, subscribe_to_server_events};
use crate::{default_user, reclaim, settings, waiters};

/// Set by the first server event, which shows that the server has kept this module after its load. No event
/// says so directly, because a server tells a module only about the loads of other modules.
static IS_SETTLED: AtomicBool = AtomicBool::new(false);

/// Subscribes to the server's events.
pub(crate) fn start(context: &Context) -> bool {
    reclaim::start(context) && subscribe_to_server_events(context, on_event)
}

/// Whether the module may be unloaded: only right after a load, when the server itself takes the load back.
pub(crate) fn may_unload() -> bool {
    !IS_SETTLED.load(Ordering::Relaxed)
}

fn on_event(context: &Context, event: ServerEvent) {
    IS_SETTLED.store(true, Ordering::Relaxed);
    settings::panic_if_asked();
    default_user::on_server_event(context, event);
    reclaim::on_server_event(context, event);
    waiters::on_server_event(context, event);
}
