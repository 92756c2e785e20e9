//! What spans, events, counters and histograms report about calls and connections. They contain no data.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used)]
#![allow(clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use pmcp_tasks::StorageError;
use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::RedisBackend;
use pmcptask_tests::{Server, ServerOptions};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

const SECRET: &[u8] = b"data that nobody is to see";

/// Calls with every outcome, with a restart between them.
async fn make_calls(mut server: Server) {
    let builder = RedisBackend::builder(server.url()).connect_timeout(Duration::from_millis(500));
    let backend = builder.connect().await.unwrap();
    assert_eq!(backend.put("owner:t", SECRET).await.unwrap(), 1);
    assert_eq!(backend.put_if_version("owner:t", SECRET, 1).await.unwrap(), 2);
    backend.put_if_version("owner:t", SECRET, 1).await.unwrap_err();
    backend.get("owner:t").await.unwrap();
    backend.get("owner:none").await.unwrap_err();
    backend.put("owner:long", &SECRET.repeat(10)).await.unwrap_err();
    assert_eq!(backend.list_by_prefix("owner:").await.unwrap().len(), 1);
    assert!(backend.delete("owner:t").await.unwrap());
    server.kill();
    // This call fails whether the client notices the loss before the call or through it.
    backend.put("owner:t", SECRET).await.unwrap_err();
    server.restart();
    let started = Instant::now();
    while !matches!(backend.get("owner:none").await, Err(StorageError::NotFound { .. })) {
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}

fn server() -> Server {
    Server::start_with(&ServerOptions::default().set("pmcptask.max-record-bytes", "100"))
}

/// Everything that was reported, one line for each span and event.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn contains(&self, part: &str) -> bool {
        self.0.lock().unwrap().iter().any(|line| line.contains(part))
    }
}

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Told {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let mut words = Words(span.name().to_owned());
        attributes.record(&mut words);
        span.extensions_mut().insert(words);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        values.record(context.span(id).unwrap().extensions_mut().get_mut::<Words>().unwrap());
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut words = Words(event.metadata().level().to_string());
        event.record(&mut words);
        self.0.lock().unwrap().push(words.0);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let words = context.span(&id).unwrap().extensions_mut().remove::<Words>().unwrap();
        self.0.lock().unwrap().push(words.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_has_a_span_and_every_loss_of_a_connection_an_event() {
    let told = Told::default();
    // For the whole process: whether a span has a subscriber is decided once, by the first test that makes
    // the span.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(told.clone())).unwrap();
    let server = server();
    let address = format!("127.0.0.1:{}", server.port());
    make_calls(server).await;
    for (command, key, outcome) in [
        ("PMCPTASK.PUT", "owner:t", "ok"),
        ("PMCPTASK.PUT", "owner:long", "capacity"),
        ("PMCPTASK.CAS", "owner:t", "ok"),
        ("PMCPTASK.CAS", "owner:t", "conflict"),
        ("PMCPTASK.GET", "owner:t", "ok"),
        ("PMCPTASK.GET", "owner:none", "not_found"),
        ("PMCPTASK.LIST", "owner:", "ok"),
        ("PMCPTASK.DEL", "owner:t", "ok"),
    ] {
        let span = format!(
            "pmcptask db.system.name=\"redis\" db.operation.name={command:?} key={key:?} outcome={outcome:?}"
        );
        assert!(told.contains(&span), "{span} is not in {:#?}", told.0);
    }
    let event = |level, what| format!("{level} message={what} server.address={address:?}");
    for event in [event("WARN", "connection lost"), event("INFO", "connected again")] {
        assert!(told.contains(&event), "{event} is not in {:#?}", told.0);
    }
    assert!(!told.contains(&String::from_utf8_lossy(SECRET)), "{:#?}", told.0);
}

/// Counters, and the number of values in histograms, by name and labels.
fn counts(snapshotter: &Snapshotter) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let labels: Vec<_> =
            key.key().labels().map(|label| format!(" {}={}", label.key(), label.value())).collect();
        let count = match value {
            DebugValue::Counter(count) => usize::try_from(count).unwrap(),
            DebugValue::Histogram(values) => {
                assert!(values.iter().all(|seconds| (0.0..10.0).contains(&seconds.into_inner())));
                values.len()
            }
            DebugValue::Gauge(_) => 1,
        };
        counts.insert(key.key().name().to_owned() + &labels.concat(), count);
    }
    counts
}

/// On one thread, because the recorder sees only what this thread records.
#[tokio::test]
async fn calls_conflicts_latency_losses_and_reconnects_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recorded = metrics::set_default_local_recorder(&recorder);
    make_calls(server()).await;
    let counts = counts(&snapshotter);
    for (name, count) in [
        ("pmcptask_calls_total command=PMCPTASK.PUT outcome=ok", 1),
        ("pmcptask_calls_total command=PMCPTASK.PUT outcome=capacity", 1),
        ("pmcptask_calls_total command=PMCPTASK.CAS outcome=ok", 1),
        ("pmcptask_calls_total command=PMCPTASK.CAS outcome=conflict", 1),
        ("pmcptask_calls_total command=PMCPTASK.GET outcome=ok", 1),
        ("pmcptask_calls_total command=PMCPTASK.LIST outcome=ok", 1),
        ("pmcptask_calls_total command=PMCPTASK.DEL outcome=ok", 1),
        ("pmcptask_call_seconds command=PMCPTASK.PUT", 3),
        ("pmcptask_call_seconds command=PMCPTASK.CAS", 2),
        ("pmcptask_connections_lost_total", 1),
        ("pmcptask_reconnects_total", 1),
    ] {
        assert_eq!(counts.get(name), Some(&count), "{name} in {counts:#?}");
    }
    assert!(counts["pmcptask_calls_total command=PMCPTASK.GET outcome=not_found"] >= 2, "{counts:#?}");
}
