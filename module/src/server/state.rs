//! State of the module that only the server's thread touches.

use std::cell::{RefCell, RefMut};

use super::context::Context;

/// A value that can be reached only during a call of the server, so it needs no lock.
pub(crate) struct ServerThread<T>(RefCell<T>);

// SAFETY: the value is only reached with a `Context`, which cannot leave the thread that the server
// called, and the server runs at most one call into its modules at a time.
unsafe impl<T: Send> Sync for ServerThread<T> {}

impl<T> ServerThread<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// None if the value is already borrowed, by an event that arrives while another is being handled.
    pub(crate) fn borrow_mut(&self, _: &Context) -> Option<RefMut<'_, T>> {
        self.0.try_borrow_mut().ok()
    }
}
