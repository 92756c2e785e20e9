//! What the module does with a command's bytes before it touches a key: it reads the record's envelope and
//! the options.
#![allow(missing_docs, clippy::expect_used, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pmcp_tasks::TaskRecord;
use pmcptask_schema::arguments::{ListOptions, WriteOptions};
use pmcptask_schema::{Envelope, IndexKey, TaskKey};

fn envelope(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record envelope");
    for bytes in [500, 10_000, 100_000] {
        let mut record = TaskRecord::new("alice".to_owned(), "tools/call".to_owned(), Some(60_000));
        record.variables.insert("text".to_owned(), "x".repeat(bytes).into());
        let record = serde_json::to_vec(&record).expect("a record is JSON");
        group.throughput(Throughput::Bytes(record.len() as u64));
        group.bench_with_input(BenchmarkId::from_parameter(bytes), &record, |bencher, record| {
            bencher.iter(|| Envelope::read(black_box(record)));
        });
    }
    group.finish();
}

fn grammar(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("argument grammar");
    let put: [&[u8]; 6] = [b"PXAT", b"1795258800000", b"CREATED", b"1795255200123", b"MAXTASKS", b"100"];
    group.bench_function("options of PUT", |bencher| {
        bencher.iter(|| WriteOptions::of_put(black_box(put).into_iter()));
    });
    let list: [&[u8]; 6] = [b"REV", b"AFTER", b"1795255200123", b"task", b"COUNT", b"50"];
    group.bench_function("options of LIST", |bencher| {
        bencher.iter(|| ListOptions::parse(black_box(list).into_iter()));
    });
    group.bench_function("key names", |bencher| {
        bencher.iter(|| {
            let task = TaskKey::parse(black_box(b"pmcp:tasks:tenant:alice:0192f3c4"));
            let index = IndexKey::parse(black_box(b"pmcp:idx:tenant:alice"));
            index.unwrap().check_holds(&task.unwrap())
        });
    });
    group.finish();
}

criterion_group!(benches, envelope, grammar);
criterion_main!(benches);
