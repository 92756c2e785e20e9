//! The commands that a backend sends, recorded from the server. So the Lua scripts are those of
//! `pmcp-tasks` itself.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use pmcp_tasks::store::backend::StorageBackend;

/// The owner of the recorded tasks.
pub(crate) const OWNER: &str = "watched";

// Placeholders for what differs between calls. No other part of the commands looks like them.
const TASK: &str = "task-to-be-replaced";
const VERSION: &str = "777777777";

/// A recorded command, with placeholders for the task's id and the expected version.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    words: Vec<Vec<u8>>,
}

impl Template {
    /// The command for a task of [`OWNER`].
    pub(crate) fn fill(&self, task: &str, version: u64) -> Vec<Vec<u8>> {
        self.fill_for(OWNER, task, version)
    }

    /// The command for a task of any owner.
    pub(crate) fn fill_for(&self, owner: &str, task: &str, version: u64) -> Vec<Vec<u8>> {
        let filled = |word: &Vec<u8>| match word.as_slice() {
            word if word == VERSION.as_bytes() => version.to_string().into_bytes(),
            // Not in the record, which contains its owner too.
            word if word.len() < 200 && (contains(word, TASK) || contains(word, OWNER)) => {
                String::from_utf8_lossy(word).replace(TASK, task).replace(OWNER, owner).into_bytes()
            }
            word => word.to_vec(),
        };
        self.words.iter().map(filled).collect()
    }

    /// The same command without the options after the record, so that the module has to read the record.
    pub(crate) fn without_options(&self, record: &[u8]) -> Self {
        let end = self.words.iter().position(|word| word == record).map_or(self.words.len(), |at| at + 1);
        Self { words: self.words[..end].to_vec() }
    }
}

fn contains(word: &[u8], part: &str) -> bool {
    word.windows(part.len()).any(|window| window == part.as_bytes())
}

/// A backend's commands for one record.
pub(crate) struct Commands {
    pub(crate) put: Template,
    pub(crate) put_if_version: Template,
    pub(crate) get: Template,
    pub(crate) delete: Template,
}

impl Commands {
    /// Calls a backend once for each command and records what arrives at the server on this port.
    ///
    /// # Errors
    ///
    /// If the recording connection fails.
    pub(crate) async fn of(backend: &impl StorageBackend, port: u16, record: &[u8]) -> std::io::Result<Self> {
        let key = format!("{OWNER}:{TASK}");
        // The first calls load the scripts, so that the recorded calls are like all later ones.
        let _ = (backend.put(&key, record).await, backend.put_if_version(&key, record, 1).await);
        let _ = (backend.get(&key).await, backend.delete(&key).await);

        let mut watching = BufReader::new(TcpStream::connect(("127.0.0.1", port))?);
        watching.get_mut().write_all(b"MONITOR\r\n")?;
        watching.read_line(&mut String::new())?;
        let mut next = || -> std::io::Result<Template> {
            loop {
                let mut line = String::new();
                watching.read_line(&mut line)?;
                // `time [database address] "WORD" …`; commands inside a script have the address `lua`.
                if let Some((head, words)) = line.split_once("] ")
                    && !head.ends_with("lua")
                {
                    return Ok(Template { words: words_of(words.trim_end()) });
                }
            }
        };
        let _ = backend.put(&key, record).await;
        let put = next()?;
        let _ = backend.put_if_version(&key, record, VERSION.parse().unwrap_or(0)).await;
        let put_if_version = next()?;
        let _ = backend.get(&key).await;
        let get = next()?;
        let _ = backend.delete(&key).await;
        let delete = next()?;
        Ok(Self { put, put_if_version, get, delete })
    }
}

/// Unquotes and unescapes the words of a line of MONITOR.
fn words_of(line: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut letters = line.bytes();
    while letters.any(|byte| byte == b'"') {
        let mut word = Vec::new();
        while let Some(byte) = letters.next() {
            match byte {
                b'"' => break,
                b'\\' => word.push(unescaped(&mut letters)),
                byte => word.push(byte),
            }
        }
        words.push(word);
    }
    words
}

fn unescaped(letters: &mut impl Iterator<Item = u8>) -> u8 {
    match letters.next() {
        Some(b'x') => {
            let digits: String = letters.take(2).map(char::from).collect();
            u8::from_str_radix(&digits, 16).unwrap_or(b'?')
        }
        Some(b'n') => b'\n',
        Some(b'r') => b'\r',
        Some(b't') => b'\t',
        Some(b'a') => 7,
        Some(b'b') => 8,
        Some(other) => other,
        None => b'?',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_out_of_their_quotes() {
        let words = words_of(r#""EVALSHA" "a b" "q\"\\\n\x00" """#);
        assert_eq!(words, [&b"EVALSHA"[..], b"a b", b"q\"\\\n\0", b""]);
    }

    #[test]
    fn template_is_filled_where_it_differs() {
        let words = ["PUT", "p:watched:task-to-be-replaced", "{}", "777777777", "60"];
        let template = Template { words: words.map(|word| word.as_bytes().to_vec()).into() };
        assert_eq!(template.fill("t1", 5), [&b"PUT"[..], b"p:watched:t1", b"{}", b"5", b"60"]);
        assert_eq!(template.without_options(b"{}").fill("t1", 5), [&b"PUT"[..], b"p:watched:t1", b"{}"]);
    }
}
