//! States of agents: messages with made-up words. The words are as unequally frequent as those of a language, so
//! that compression gains about as much as on text.

use adk_graph::state::State;
use pmcptask_tests::Dice;
use serde_json::{Value, json};

const WORDS: u32 = 4_000;
const SYLLABLES: [&str; 24] = [
    "ta", "ri", "en", "so", "lo", "per", "mi", "an", "ke", "du", "st", "ion", "ver", "al", "co", "in", "re",
    "th", "ou", "be", "ma", "ng", "le", "ic",
];
/// Of the texts of messages, in bytes.
const LENGTHS: [usize; 4] = [50, 150, 400, 1_300];

/// A state whose JSON has about this many bytes, the same in each run.
pub(crate) fn of_text(bytes: usize) -> State {
    let mut dice = Dice::new(1);
    let words: Vec<String> = (0..WORDS).map(|rank| word(rank, &mut dice)).collect();
    let (mut messages, mut length) = (Vec::new(), 0);
    while length < bytes {
        let wanted = (*dice.pick(&LENGTHS)).min(bytes - length);
        let message = message(messages.len(), &text(wanted, &words, &mut dice), &mut dice);
        length += message.to_string().len() + 1;
        messages.push(message);
    }
    State::from([("messages".to_owned(), messages.into())])
}

/// Frequent words are short.
fn word(rank: u32, dice: &mut Dice) -> String {
    let syllables = 1 + u64::from(rank > 20) + dice.roll(2);
    (0..syllables).map(|_| *dice.pick(&SYLLABLES)).collect()
}

/// A question, or the call of a tool.
fn message(number: usize, text: &str, dice: &mut Dice) -> Value {
    let id = format!("msg_{:016x}", dice.roll(u64::MAX));
    if number.is_multiple_of(2) {
        return json!({ "id": id, "role": "user", "content": text });
    }
    let arguments = json!({ "query": text, "limit": dice.roll(100) });
    json!({ "id": id, "role": "assistant", "content": null,
            "tool_calls": [{ "name": "search", "arguments": arguments }],
            "usage": { "input_tokens": dice.roll(9_000), "output_tokens": dice.roll(900) } })
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn text(bytes: usize, words: &[String], dice: &mut Dice) -> String {
    const ONE: u64 = 1 << 20;
    let mut text = String::new();
    while text.len() < bytes {
        // The second word is half as frequent as the first, the third a third as frequent, and so on.
        let rank = (words.len() as f64).powf(dice.roll(ONE) as f64 / ONE as f64) as usize;
        text.push_str(&words[rank.saturating_sub(1)]);
        text.push_str(if dice.roll(12) == 0 { ". " } else { " " });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_has_about_the_size_asked_for_and_is_the_same_in_each_run() {
        for bytes in [1_000, 10_000, 1_000_000] {
            let json = json!(of_text(bytes)).to_string();
            assert!(json.len().abs_diff(bytes) <= bytes / 5, "{} instead of {bytes}", json.len());
            assert_eq!(json, json!(of_text(bytes)).to_string());
        }
    }
}
