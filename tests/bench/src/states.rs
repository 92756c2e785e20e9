//! States of agents: messages with made-up words. The words are as unequally frequent as those of a language, so that
//! compression gains about as much as on text.

use adk_graph::state::State;
use pmcptask_tests::Dice;
use serde_json::{Value, json};

const WORDS: u32 = 4_000;
const SYLLABLES: [&str; 24] = [
    "ta", "ri", "en", "so", "lo", "per", "mi", "an", "ke", "du", "st", "ion", "ver", "al", "co", "in", "re",
    "th", "ou", "be", "ma", "ng", "le", "ic",
];

/// Of the texts of messages, in bytes.
const LENGTHS: [usize; 5] = [50, 150, 400, 800, 1_300];

/// A state whose JSON has about this many bytes. Equal seeds give equal states.
pub(crate) fn of_text(bytes: usize, seed: u64) -> State {
    let mut dice = Dice::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let words: Vec<String> = (0..WORDS).map(|rank| word(rank, &mut dice)).collect();
    let (mut messages, mut length) = (Vec::new(), 0);
    while length < bytes {
        let message = message(messages.len(), bytes - length, &words, &mut dice);
        length += message.to_string().len() + 1;
        messages.push(message);
    }
    State::from([("messages".to_owned(), messages.into())])
}

/// A state of this many bytes that compression gains little from, like an image in Base64.
pub(crate) fn of_noise(bytes: usize) -> State {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut dice = Dice::new(1);
    let noise: String = (0..bytes).map(|_| char::from(*dice.pick(DIGITS))).collect();
    State::from([("image".to_owned(), noise.into())])
}

/// Frequent words are short.
fn word(rank: u32, dice: &mut Dice) -> String {
    let syllables = 1 + u64::from(rank > 20) + dice.roll(2);
    (0..syllables).map(|_| *dice.pick(&SYLLABLES)).collect()
}

/// A message of at most about `room` bytes of text.
fn message(number: usize, room: usize, words: &[String], dice: &mut Dice) -> Value {
    let id = format!("msg_{:016x}", dice.roll(u64::MAX));
    let text = text(*dice.pick(&LENGTHS), room.saturating_sub(100), words, dice);
    match number % 4 {
        0 => json!({ "id": id, "role": "user", "content": text }),
        1 => {
            let call = format!("call_{:016x}", dice.roll(u64::MAX));
            let arguments = json!({ "query": text, "limit": dice.roll(100) });
            json!({ "id": id, "role": "assistant", "content": null,
                    "tool_calls": [{ "id": call, "name": "search", "arguments": arguments }] })
        }
        2 => {
            let score = dice.roll(1_000_000);
            json!({ "id": id, "role": "tool", "content": { "text": text, "score": score }, "status": "success" })
        }
        _ => {
            let (input, output) = (dice.roll(9_000), dice.roll(900));
            json!({ "id": id, "role": "assistant", "content": text,
                    "usage": { "input_tokens": input, "output_tokens": output } })
        }
    }
}

/// A text of about this many bytes, or as much of it as there is room for.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn text(bytes: usize, room: usize, words: &[String], dice: &mut Dice) -> String {
    let mut text = String::new();
    while text.len() < bytes.min(room) {
        // The second word is half as frequent as the first, the third a third as frequent, and so on.
        let rank = (words.len() as f64).powf(dice.roll(1 << 20) as f64 / f64::from(1 << 20)) as usize;
        text.push_str(&words[rank.saturating_sub(1)]);
        text.push_str(if dice.roll(12) == 0 { ". " } else { " " });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(state: &State) -> Vec<u8> {
        serde_json::to_vec(state).expect("a state is JSON")
    }

    #[test]
    fn state_has_about_the_size_asked_for_and_is_the_same_in_each_run() {
        for bytes in [1_000, 10_000, 1_000_000] {
            let json = json_of(&of_text(bytes, 1));
            assert!(json.len().abs_diff(bytes) <= bytes / 5, "{} instead of {bytes}", json.len());
            assert_eq!(json, json_of(&of_text(bytes, 1)));
            assert_ne!(json, json_of(&of_text(bytes, 2)));
        }
    }

    #[test]
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn compression_gains_as_on_text_but_little_on_noise() {
        let gain = |state: &State| {
            let json = json_of(state);
            json.len() as f64 / zstd::bulk::compress(&json, 1).expect("it is compressed").len() as f64
        };
        let of_text = gain(&of_text(100_000, 1));
        assert!((2.0..4.0).contains(&of_text), "{of_text}");
        let of_noise = gain(&of_noise(100_000));
        assert!(of_noise < 1.4, "{of_noise}");
    }
}
