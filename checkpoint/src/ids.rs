//! Ids that may hold anything, as parts of keys that may not.

/// Writes an id without colons. Ids without `%` and `:` stay as they are.
pub(crate) fn escaped(id: &str) -> String {
    id.replace('%', "%25").replace(':', "%3A")
}

/// The id that was escaped.
pub(crate) fn unescaped(escaped: &str) -> String {
    escaped.replace("%3A", ":").replace("%25", "%")
}

/// An id with the time of creation in front, so that the time is known without reading the record.
#[cfg(feature = "adk")]
pub(crate) struct DatedId {
    /// µs since the epoch.
    pub(crate) created_us: i64,
    pub(crate) text: String,
}

#[cfg(feature = "adk")]
impl DatedId {
    pub(crate) fn written(&self) -> String {
        format!("{}-{}", self.created_us, escaped(&self.text))
    }

    /// None if this is no such id.
    pub(crate) fn read(written: &str) -> Option<Self> {
        // The time may be before the epoch.
        let digits = written.strip_prefix('-').unwrap_or(written).find('-')?;
        let end = digits.checked_add(usize::from(written.starts_with('-')))?;
        let (created_us, text) = written.split_at_checked(end)?;
        Some(Self { created_us: created_us.parse().ok()?, text: unescaped(text.strip_prefix('-')?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "adk")]
    #[test]
    fn dated_id_is_read_back_and_other_ids_are_none() {
        for created_us in [i64::MIN, -1, 0, 1_764_000_000_000_000, i64::MAX] {
            for text in ["", "a", "-1-a", "a:b%", "--"] {
                let id = DatedId { created_us, text: text.to_owned() };
                let read = DatedId::read(&id.written()).map(|id| (id.created_us, id.text));
                assert_eq!(read, Some((created_us, text.to_owned())));
            }
        }
        for other in ["", "-", "--", "a", "1", "-1", "a-b", "1.5-b", "99999999999999999999-b"] {
            assert!(DatedId::read(other).is_none(), "{other}");
        }
    }

    #[test]
    fn every_id_is_read_back_and_has_no_colon() {
        for id in ["", "a", ":", "%", "%3A", "%253A", "a:b%c", "::%%", "ü\0\n{x}", "%25"] {
            assert!(!escaped(id).contains(':'), "{id}");
            assert_eq!(unescaped(&escaped(id)), id);
        }
        assert_ne!(escaped("%3A"), escaped(":"));
    }
}
