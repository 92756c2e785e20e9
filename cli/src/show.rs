//! `show`: a task with its record. The only subcommand that prints what a record holds.

use pmcp_tasks::store::backend::{StorageBackend as _, make_key};
use serde::Serialize;
use serde_json::Value;

use crate::arguments::TaskName;
use crate::failure::Failure;
use crate::output::{Output, Row};
use crate::printable::in_line;
use crate::record::Summary;
use crate::servers::Servers;
use crate::times::{expiry, now_ms, time, timestamp};

#[derive(Serialize)]
struct ShownTask<'a> {
    owner: &'a str,
    id: &'a str,
    version: u64,
    expires: Option<String>,
    /// The record, if it is JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<Value>,
    /// The record, if it is no JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip)]
    expires_ms: Option<i64>,
}

impl Row for ShownTask<'_> {
    fn header() -> Option<String> {
        None
    }

    fn line(&self) -> String {
        let expires = match self.expires_ms {
            Some(at) => format!("{} ({})", time(at), expiry(Some(at), now_ms())),
            None => "-".to_owned(),
        };
        let record = self.record.as_ref().map(|record| format!("{record:#}")).or_else(|| self.text.clone());
        format!(
            "owner    {}\ntask     {}\nversion  {}\nexpires  {expires}\n{}",
            in_line(self.owner),
            in_line(self.id),
            self.version,
            record.unwrap_or_default()
        )
    }
}

pub(crate) async fn show(servers: &Servers, task: &TaskName, output: &mut Output) -> Result<(), Failure> {
    let found = servers.backend().await?.get(&make_key(&task.owner, &task.id)).await?;
    let record = serde_json::from_slice::<Value>(&found.data).ok();
    let expires_ms = Summary::of(&found.data).expires_ms;
    output.row(&ShownTask {
        owner: &task.owner,
        id: &task.id,
        version: found.version,
        expires: expires_ms.and_then(timestamp),
        text: record.is_none().then(|| String::from_utf8_lossy(&found.data).into_owned()),
        record,
        expires_ms,
    })
}
