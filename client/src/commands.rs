//! The module's commands as they are sent.

use pmcptask_schema::{Envelope, ExpiryError};
use redis::{Cmd, cmd};

/// `PMCPTASK.GET`
pub(crate) fn get(task_key: &str) -> Cmd {
    let mut get = cmd("PMCPTASK.GET");
    get.arg(task_key);
    get
}

/// `PMCPTASK.PUT`
pub(crate) fn put(task_key: &str, index_key: &str, data: &[u8], moments: Moments) -> Cmd {
    let mut put = cmd("PMCPTASK.PUT");
    put.arg(task_key).arg(index_key).arg(data);
    moments.add_to(&mut put);
    put
}

/// `PMCPTASK.CAS`
pub(crate) fn cas(
    task_key: &str,
    index_key: &str,
    expected_version: u64,
    data: &[u8],
    moments: Moments,
) -> Cmd {
    // No task is ever at a version beyond the server's range, nor at 0.
    let expected_version = i64::try_from(expected_version).unwrap_or(0);
    let mut cas = cmd("PMCPTASK.CAS");
    cas.arg(task_key).arg(index_key).arg(expected_version).arg(data);
    moments.add_to(&mut cas);
    cas
}

/// `PMCPTASK.DEL`
pub(crate) fn del(task_key: &str, index_key: &str) -> Cmd {
    let mut del = cmd("PMCPTASK.DEL");
    del.arg(task_key).arg(index_key);
    del
}

/// `PMCPTASK.LIST` of all tasks
pub(crate) fn list(index_key: &str) -> Cmd {
    let mut list = cmd("PMCPTASK.LIST");
    list.arg(index_key);
    list
}

/// When a record's task expires and was created. It goes out with the record, so that the server need not
/// look into it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moments {
    expires_at_ms: Option<i64>,
    created_at_ms: Option<i64>,
}

impl Moments {
    /// Reads them from the record.
    pub(crate) fn of(record: &[u8]) -> Result<Self, ExpiryError> {
        let Envelope { expires_at_ms, created_at_ms } = Envelope::read(record);
        Ok(Self { expires_at_ms: expires_at_ms?, created_at_ms })
    }

    fn add_to(self, command: &mut Cmd) {
        match self.expires_at_ms {
            // The server knows no time before the epoch; 0 is as past.
            Some(at_ms) => command.arg("PXAT").arg(at_ms.max(0)),
            None => command.arg("PERSIST"),
        };
        if let Some(created_ms) = self.created_at_ms {
            command.arg("CREATED").arg(created_ms);
        }
    }
}
