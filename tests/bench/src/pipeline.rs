//! Commands on one plain connection, several sent before their replies are read.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// One command: its words.
pub(crate) type Words = Vec<Vec<u8>>;

/// The words of a command that are text.
pub(crate) fn words(line: &[&str]) -> Words {
    line.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// A connection that reads replies only to check for errors.
pub(crate) struct Pipeline {
    stream: BufReader<TcpStream>,
}

impl Pipeline {
    /// # Errors
    ///
    /// If the connection fails.
    pub(crate) fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(1 << 16, stream) })
    }

    /// Sends encoded batches one after another, each once all replies to the one before are there.
    ///
    /// # Errors
    ///
    /// If the connection fails, or a reply is an error.
    pub(crate) fn run(&mut self, batches: &[Batch]) -> io::Result<()> {
        for batch in batches {
            self.stream.get_mut().write_all(&batch.bytes)?;
            for _ in 0..batch.commands {
                self.skip_reply()?;
            }
        }
        Ok(())
    }

    fn skip_reply(&mut self) -> io::Result<()> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        let text = String::from_utf8_lossy(&line);
        let length = text.get(1..).and_then(|length| length.trim().parse::<i64>().ok()).unwrap_or(-1);
        match line.first() {
            Some(b'$') if length >= 0 => {
                let bytes = length.unsigned_abs() + 2;
                io::copy(&mut self.stream.by_ref().take(bytes), &mut io::sink())?;
                Ok(())
            }
            Some(b'*') => (0..length.max(0)).try_for_each(|_| self.skip_reply()),
            Some(b'-') | None => Err(io::Error::other(text.trim().to_owned())),
            _ => Ok(()),
        }
    }
}

/// Encoded commands.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    commands: usize,
}

/// Encodes commands in batches of `depth`.
pub(crate) fn batches(commands: &[Words], depth: usize) -> Vec<Batch> {
    let encode =
        |part: &[Words]| Batch { bytes: part.iter().flat_map(encoded).collect(), commands: part.len() };
    commands.chunks(depth).map(encode).collect()
}

fn encoded(command: &Words) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_encoded_in_batches() {
        let commands = vec![words(&["PING"]), words(&["GET", "a"]), words(&["PING"])];
        let batches = batches(&commands, 2);
        assert_eq!(batches.iter().map(|batch| batch.commands).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(batches[0].bytes, b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n");
    }
}
