//! The stored form of a record: the JSON itself, or compressed behind a tag. Which of the two, each record says
//! for itself, so a change of the setting leaves all records readable.

use std::io::Read as _;

/// Compression of what is stored. Applies to writes; reads understand both forms. It runs on the thread of the call: at level 1 some
/// 3 ms for a state of 1 MB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Records are stored as JSON, which others can read.
    Off,
    /// Zstandard.
    Zstd {
        /// 1 is fastest, 19 compresses most.
        level: i32,
        /// Smaller records stay JSON.
        from_bytes: usize,
    },
}

impl Default for Compression {
    /// Zstandard at level 1, from 1,024 bytes on.
    fn default() -> Self {
        Self::Zstd { level: 1, from_bytes: 1_024 }
    }
}

/// Why stored bytes are not a record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The compressed record ends early, is damaged, or is not what it says.
    #[error("expected a compressed record, got damaged bytes: {0}")]
    Damaged(#[source] std::io::Error),
    /// The record says that it is longer than records may be.
    #[error("expected a record of at most {limit} bytes, got one of {length}")]
    #[non_exhaustive]
    TooLong {
        /// The length in bytes that the record says it has.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The record is not the JSON of a checkpoint. Says where, and nothing of the data, which the error of `serde_json` may
    /// quote.
    #[error(
        "expected the JSON of a checkpoint, got other bytes: {category} error at line {line}, column {column}"
    )]
    #[non_exhaustive]
    Json {
        /// `Data`, `Syntax` or `Eof`, as `serde_json` has them.
        category: String,
        /// From 1 on; 0 if it is not known.
        line: usize,
        /// The same.
        column: usize,
    },
    /// The id of the record is none that this saver writes.
    #[error("expected a record that this saver has written, got another id")]
    ForeignId,
}

impl From<serde_json::Error> for RecordError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json { category: format!("{:?}", error.classify()), line: error.line(), column: error.column() }
    }
}

/// The start of a compressed record. No JSON starts with a zero byte.
const TAG: [u8; 4] = *b"\0zs1";
/// Tag, then the length of the JSON, 8 bytes, little-endian.
const HEADER: usize = TAG.len().saturating_add(size_of::<u64>());

/// Checks that JSON of this length may be a record.
pub(crate) fn check_length(length: usize, limit: u64) -> Result<(), RecordError> {
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    if length > limit { Err(RecordError::TooLong { length, limit }) } else { Ok(()) }
}

/// What a record takes in the server. Never longer than the JSON.
pub(crate) fn encode(json: Vec<u8>, compression: Compression) -> Vec<u8> {
    let Compression::Zstd { level, from_bytes } = compression else { return json };
    if json.len() < from_bytes {
        return json;
    }
    // Compressing fails only without memory, or with a level that the library does not know.
    let Ok(frame) = zstd::bulk::compress(&json, level) else { return json };
    if frame.len().saturating_add(HEADER) >= json.len() {
        return json;
    }
    let length = u64::try_from(json.len()).unwrap_or(u64::MAX);
    [TAG.as_slice(), &length.to_le_bytes(), &frame].concat()
}

/// The JSON of a stored record.
pub(crate) fn decode(stored: Vec<u8>, limit: u64) -> Result<Vec<u8>, RecordError> {
    let Some(behind_tag) = stored.strip_prefix(&TAG) else {
        return check_length(stored.len(), limit).map(|()| stored);
    };
    let Some((length, frame)) = behind_tag.split_first_chunk() else {
        return Err(RecordError::Damaged(std::io::ErrorKind::UnexpectedEof.into()));
    };
    let length = u64::from_le_bytes(*length);
    if length > limit {
        return Err(RecordError::TooLong { length, limit });
    }
    let mut json = Vec::new();
    // One byte more, so that a longer record is seen. Memory grows with what is read, not with what the record says.
    let mut decoder = zstd::stream::Decoder::with_buffer(frame).map_err(RecordError::Damaged)?;
    decoder.window_log_max(window_log(length)).map_err(RecordError::Damaged)?;
    decoder.take(length.saturating_add(1)).read_to_end(&mut json).map_err(RecordError::Damaged)?;
    if u64::try_from(json.len()).ok() != Some(length) {
        return Err(RecordError::Damaged(std::io::ErrorKind::InvalidData.into()));
    }
    Ok(json)
}

/// The window that a record of this length needs at most, as a power of 2. The decoder allocates what the frame asks for, up to
/// this.
fn window_log(length: u64) -> u32 {
    // What the library accepts.
    const SMALLEST: u32 = 10;
    const LARGEST: u32 = 31;
    length.checked_next_power_of_two().map_or(LARGEST, u64::ilog2).clamp(SMALLEST, LARGEST)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
    use std::io::Write as _;

    use super::*;

    const LIMIT: u64 = 1_000_000;

    fn text(length: usize) -> Vec<u8> {
        b"{\"messages\":[\"as before\"]}".iter().copied().cycle().take(length).collect()
    }

    #[test]
    fn both_forms_are_read_back_whatever_the_setting_is() {
        for length in [0, 1, 1_023, 1_024, 100_000] {
            for compression in [Compression::Off, Compression::default()] {
                let stored = encode(text(length), compression);
                assert!(stored.len() <= length);
                assert_eq!(decode(stored, LIMIT).unwrap(), text(length), "{length} {compression:?}");
            }
        }
        assert!(encode(text(100_000), Compression::default()).len() < 1_000);
    }

    #[test]
    fn record_that_compression_would_grow_stays_as_it_is() {
        let mut state = 1_u64;
        let noise: Vec<_> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(10_000)
        .collect();
        assert_eq!(encode(noise.clone(), Compression::default()), noise);
    }

    #[test]
    fn record_that_claims_or_holds_more_than_the_limit_is_refused() {
        let bomb = encode(vec![b' '; 10_000_000], Compression::default());
        assert!(bomb.len() < 10_000);
        let error = decode(bomb.clone(), LIMIT).unwrap_err();
        assert!(matches!(error, RecordError::TooLong { length: 10_000_000, limit: LIMIT }), "{error}");
        let mut lying = bomb;
        lying[4..12].copy_from_slice(&10_u64.to_le_bytes());
        assert!(matches!(decode(lying, LIMIT), Err(RecordError::Damaged(_))));
    }

    #[test]
    fn frame_that_asks_for_more_memory_than_its_record_is_refused() {
        let frame_of = |window_log: u32| {
            let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            encoder.write_all(&text(5_000)).unwrap();
            [TAG.as_slice(), &5_000_u64.to_le_bytes(), &encoder.finish().unwrap()].concat()
        };
        assert_eq!(decode(frame_of(13), LIMIT).unwrap(), text(5_000));
        assert!(matches!(decode(frame_of(27), LIMIT), Err(RecordError::Damaged(_))));
    }

    #[test]
    fn plain_record_beyond_the_limit_is_refused_too() {
        assert!(decode(text(1_000), 1_000).is_ok());
        assert!(matches!(decode(text(1_001), 1_000), Err(RecordError::TooLong { length: 1_001, .. })));
    }

    #[test]
    fn error_of_foreign_json_shows_nothing_of_it() {
        let error = RecordError::from(serde_json::from_str::<u8>(r#""secret""#).unwrap_err());
        assert!(!format!("{error} {error:?}").contains("secret"));
    }

    #[test]
    fn damaged_record_is_an_error_wherever_it_is_cut_or_changed() {
        let stored = encode(text(5_000), Compression::default());
        for end in 4..stored.len() {
            assert!(decode(stored[..end].to_vec(), LIMIT).is_err(), "{end}");
        }
        for place in 4..stored.len() {
            let mut changed = stored.clone();
            changed[place] ^= 0x55;
            // Some changes decode to other text of the same length. None may panic.
            let _ = decode(changed, LIMIT);
        }
    }
}
