//! A server's clock that a test sets.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::ServerOptions;

/// Wraps the function that servers take the time from. A file says how many seconds the clock is ahead of the machine's.
const WRAPPER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

int gettimeofday(struct timeval *now, void *zone) {
  int (*wrapped)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
  int result = wrapped(now, zone);
  const char *path = getenv("PMCPTASK_SECONDS_AHEAD");
  FILE *file = path ? fopen(path, "r") : NULL;
  long seconds = 0;
  if (file) {
    if (fscanf(file, "%ld", &seconds) == 1) now->tv_sec += seconds;
    fclose(file);
  }
  return result;
}
"#;

/// The clock of one server.
pub struct Clock {
    folder: TempDir,
}

impl Clock {
    /// A clock that goes right.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "compiles a program")]
    pub fn new() -> Self {
        let clock = Self { folder: TempDir::new().unwrap() };
        std::fs::write(clock.file("clock.c"), WRAPPER).unwrap();
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([clock.file("clock.so"), clock.file("clock.c")])
            .arg("-ldl")
            .output()
            .expect("cannot run cc");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        clock
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a server go by this clock.
    #[must_use]
    pub fn of(&self, server: ServerOptions) -> ServerOptions {
        server
            .variable("LD_PRELOAD", self.file("clock.so"))
            .variable("PMCPTASK_SECONDS_AHEAD", self.file("seconds"))
    }

    /// Sets the clock this many seconds ahead of the machine's, or behind it, all at once.
    ///
    /// # Panics
    ///
    /// If the clock's file cannot be written.
    pub fn set_ahead(&self, seconds: i64) {
        std::fs::write(self.file("new"), seconds.to_string()).unwrap();
        std::fs::rename(self.file("new"), self.file("seconds")).unwrap();
    }
}
