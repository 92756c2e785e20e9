//! What may be sent to a terminal: no name, record or error can send control characters there.

use std::borrow::Cow;
use std::io::{self, Write as _};

/// Says something beside the output. That nobody reads it is no failure.
pub(crate) fn say(text: &str) {
    drop(writeln!(io::stderr(), "{}", printable(text)));
}

/// The text without the control characters that a terminal would obey. New lines stay.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let is_obeyed = |character: char| character.is_control() && character != '\n';
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let escape = |character: char| {
        if is_obeyed(character) { format!("\\u{:04x}", u32::from(character)) } else { character.to_string() }
    };
    Cow::Owned(text.chars().map(escape).collect())
}

/// A name in one line of a table.
pub(crate) fn in_line(name: &str) -> String {
    printable(name).replace('\n', "\\u000a")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_reaches_the_terminal() {
        assert_eq!(printable("\u{1b}[2Ja\u{9b}b\u{7f}\nö"), "\\u001b[2Ja\\u009bb\\u007f\nö");
        assert_eq!(in_line("a\nb"), "a\\u000ab");
    }
}
