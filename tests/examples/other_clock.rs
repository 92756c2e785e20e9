//! A library for `LD_PRELOAD`. It makes the clock of a process differ from the machine's by
//! `PMCPTASK_CLOCK_AHEAD_BY` seconds. Servers ask for the time of day with `gettimeofday` only.
#![allow(missing_docs)]

use std::ffi::{c_int, c_long, c_void};
use std::sync::OnceLock;

#[repr(C)]
pub struct Time {
    seconds: c_long,
    fraction: c_long,
}

const REALTIME: c_int = 0;

unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut Time) -> c_int;
}

fn ahead_by() -> c_long {
    static AHEAD_BY: OnceLock<c_long> = OnceLock::new();
    let read = || std::env::var("PMCPTASK_CLOCK_AHEAD_BY").ok()?.parse().ok();
    *AHEAD_BY.get_or_init(|| read().unwrap_or(0))
}

/// # Safety
///
/// As for the function of libc: `time` points to a time that may be written, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(time: *mut Time, _zone: *mut c_void) -> c_int {
    let mut now = Time { seconds: 0, fraction: 0 };
    // SAFETY: `now` is a time that may be written.
    let outcome = unsafe { clock_gettime(REALTIME, &raw mut now) };
    let told = Time { seconds: now.seconds.wrapping_add(ahead_by()), fraction: now.fraction / 1_000 };
    // SAFETY: the caller passes a time that may be written, or null.
    if let Some(time) = unsafe { time.as_mut() } {
        *time = told;
    }
    outcome
}
