//! Arbitrary words parse as options or fail, and arbitrary bytes parse as a key or fail. Whatever parses can
//! be written back and parses to the same value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pmcptask_schema::arguments::{
    Created, Expiry, ListOptions, TrimOptions, WriteOptions, deleted_version, expected_version, new_expiry,
    seen_version, timeout_ms,
};
use pmcptask_schema::{IndexKey, TaskKey};

fuzz_target!(|line: &[u8]| {
    let words = || line.split(|byte| *byte == b' ');
    if let Ok(read) = WriteOptions::of_put(words()) {
        let mut again = Vec::new();
        match read.expiry {
            Expiry::FromRecord => {}
            Expiry::Never => again.push("PERSIST".to_owned()),
            Expiry::At(at) => again.extend(["PXAT".to_owned(), at.value.to_string()]),
        }
        match read.created {
            Created::FromRecord => {}
            Created::At(at) => again.extend(["CREATED".to_owned(), at.value.to_string()]),
            Created::Newest => again.extend(["created".to_owned(), "Newest".to_owned()]),
        }
        again.extend(read.max_tasks.iter().flat_map(|n| ["MAXTASKS".to_owned(), n.to_string()]));
        again.extend(read.only_new.then(|| "nx".to_owned()));
        let mut again: Vec<&[u8]> = again.iter().map(String::as_bytes).collect();
        again.extend(read.held.iter().flat_map(|key| [&b"held"[..], key]));
        assert_eq!(WriteOptions::of_put(again.into_iter()), Ok(read));
        let is_of_cas = read.max_tasks.is_none() && !read.only_new && read.held.is_none();
        assert_eq!(WriteOptions::of_cas(words()).is_ok(), is_of_cas);
    }
    if let Ok(read @ ListOptions { newest_first, after, count, without_data }) = ListOptions::parse(words()) {
        let mut again: Vec<Vec<u8>> = Vec::new();
        again.extend(newest_first.then(|| b"rev".to_vec()));
        if let Some((ms, task_id)) = after {
            again.extend([b"After".to_vec(), ms.to_string().into_bytes(), task_id.to_vec()]);
        }
        again.extend(count.iter().flat_map(|n| [b"COUNT".to_vec(), n.to_string().into_bytes()]));
        again.extend(without_data.then(|| b"NoData".to_vec()));
        assert_eq!(ListOptions::parse(again.iter().map(Vec::as_slice)), Ok(read));
    }
    if let Ok(read @ TrimOptions { keep, count }) = TrimOptions::parse(words()) {
        let again = format!("count {count} keep {keep}");
        assert_eq!(TrimOptions::parse(again.as_bytes().split(|byte| *byte == b' ')), Ok(read));
    }
    if let Ok(expiry) = new_expiry(words()) {
        let again = match expiry {
            Some(at) => format!("pxat {}", at.value),
            None => "persist".to_owned(),
        };
        assert_eq!(new_expiry(again.as_bytes().split(|byte| *byte == b' ')), Ok(expiry));
    }
    if let Ok(Some(version)) = deleted_version(words()) {
        assert_eq!(deleted_version(["version".as_bytes(), version.to_string().as_bytes()].into_iter()), Ok(Some(version)));
    }
    for read in [expected_version, seen_version, timeout_ms] {
        if let Ok(number) = read(line) {
            assert_eq!(number.to_string().as_bytes(), line);
        }
    }
    if let Ok(key) = TaskKey::parse(line) {
        let index = IndexKey::of(&key);
        assert_eq!(index.task_keys().of_task(key.task_id), Some(line));
        let mut name = Vec::new();
        index.write(&mut name);
        assert_eq!(IndexKey::parse(&name).map(|index| index.check_holds(&key)), Ok(Ok(())));
    }
});
