//! Ids that may hold anything, as parts of keys that may not.

/// Writes an id without colons. Ids without `%` and `:` stay as they are.
pub(crate) fn escaped(id: &str) -> String {
    id.replace('%', "%25").replace(':', "%3A")
}

/// The id that was escaped.
pub(crate) fn unescaped(escaped: &str) -> String {
    escaped.replace("%3A", ":").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_read_back_and_has_no_colon() {
        for id in ["", "a", ":", "%", "%3A", "%253A", "a:b%c", "::%%", "ü\0\n{x}", "%25"] {
            assert!(!escaped(id).contains(':'), "{id}");
            assert_eq!(unescaped(&escaped(id)), id);
        }
        assert_ne!(escaped("%3A"), escaped(":"));
    }
}
