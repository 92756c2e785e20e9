//! The protocol itself: commands as words, replies as the bytes that the server sent.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// The reply to a GET of a task that does not exist.
pub const NIL: &str = "$-1\r\n";
/// The reply to a LIST without tasks.
pub const EMPTY: &str = "*0\r\n";
/// The reply to a command that has nothing else to say.
pub const OK: &str = "+OK\r\n";

/// The key of a task, for tests that need one task only.
pub const TASK: &str = "pmcp:tasks:o:t";
/// The index key that goes with [`TASK`].
pub const INDEX: &str = "pmcp:idx:o";

/// The number in an integer reply.
///
/// # Panics
///
/// If the reply is not an integer.
#[must_use]
pub fn integer(reply: &str) -> i64 {
    let number = reply.strip_prefix(':').and_then(|rest| rest.trim_end().parse().ok());
    number.unwrap_or_else(|| panic!("not an integer reply: {reply}"))
}

/// The words of a command line: see [`Wire::send_line`].
#[must_use]
pub fn words(line: &str) -> Vec<&str> {
    let word = |word| match word {
        "T" => TASK,
        "I" => INDEX,
        other => other,
    };
    line.split(' ').map(word).collect()
}

fn encoded<A: AsRef<[u8]>>(arguments: &[A]) -> Vec<u8> {
    let mut command = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        let argument = argument.as_ref();
        command.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        command.extend_from_slice(argument);
        command.extend_from_slice(b"\r\n");
    }
    command
}

/// A connection that does not interpret replies.
#[derive(Debug)]
pub struct Wire {
    stream: BufReader<TcpStream>,
}

impl Wire {
    /// Connects to a port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// If the connection fails.
    pub fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        // Much longer than any reply takes: if this time passes, the test has failed.
        stream.set_read_timeout(Some(Duration::from_mins(1)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a command and returns its reply as text. A reply that is not UTF-8 is escaped.
    ///
    /// # Panics
    ///
    /// If no reply comes.
    pub fn call<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> String {
        self.try_call(arguments).expect("the server replies")
    }

    /// Sends a command line and returns its reply: see [`Wire::send_line`].
    ///
    /// # Panics
    ///
    /// If no reply comes.
    pub fn run(&mut self, line: &str) -> String {
        self.send_line(line);
        self.receive().expect("the server replies")
    }

    /// Sends a command line. Words end at spaces; `T` and `I` alone stand for [`TASK`] and [`INDEX`].
    ///
    /// # Panics
    ///
    /// If the connection fails.
    pub fn send_line(&mut self, line: &str) {
        self.send_lines(&[line]);
    }

    /// Sends command lines at once, so that the server runs them one after the other, with nothing in between.
    ///
    /// # Panics
    ///
    /// If the connection fails.
    pub fn send_lines(&mut self, lines: &[&str]) {
        let commands: Vec<u8> = lines.iter().flat_map(|line| encoded(&words(line))).collect();
        self.stream.get_mut().write_all(&commands).expect("the server takes commands");
    }

    /// Makes a key expire in 100 ms. With a time so short that it may be past when the server checks it, the server
    /// would delete the key at once, and there would be no event `expired`.
    pub fn expire_soon(&mut self, key: &str) {
        assert_eq!(self.call(&["PEXPIRE", key, "100"]), ":1\r\n");
    }

    /// One field of a section of `INFO`.
    ///
    /// # Panics
    ///
    /// If the section has no such field.
    pub fn info(&mut self, section: &str, field: &str) -> String {
        let info = self.call(&["INFO", section]);
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {field} in {info}")).to_owned()
    }

    /// One field of a section of `INFO`, which is a number.
    ///
    /// # Panics
    ///
    /// If the section has no such field, or the field is not a number.
    pub fn info_number(&mut self, section: &str, field: &str) -> u64 {
        self.info(section, field).parse().expect("the field is a number")
    }

    /// How often a command was called. `command` is its name in `INFO commandstats`, with `|` before
    /// a subcommand.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    pub fn calls_of(&mut self, command: &str) -> u64 {
        let statistics = self.call(&["INFO", "commandstats"]);
        let of_command = format!("cmdstat_{command}:calls=");
        let calls = statistics.lines().find_map(|line| line.strip_prefix(&of_command)?.split(',').next());
        calls.map_or(0, |calls| calls.parse().expect("a count is a number"))
    }

    /// Whether a key exists.
    pub fn exists(&mut self, key: &str) -> bool {
        self.call(&["EXISTS", key]) == ":1\r\n"
    }

    /// Sends a command and returns its reply.
    ///
    /// # Errors
    ///
    /// If the connection fails.
    pub fn try_call<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> io::Result<String> {
        self.send(arguments)?;
        self.receive()
    }

    /// Sends a command.
    ///
    /// # Errors
    ///
    /// If the connection fails.
    pub fn send<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> io::Result<()> {
        self.stream.get_mut().write_all(&encoded(arguments))
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    ///
    /// If the connection fails.
    pub fn receive(&mut self) -> io::Result<String> {
        let mut reply = Vec::new();
        self.read_value(&mut reply)?;
        Ok(String::from_utf8(reply).unwrap_or_else(|error| error.as_bytes().escape_ascii().to_string()))
    }

    /// The next reply, if it has arrived.
    ///
    /// # Errors
    ///
    /// If the connection fails.
    pub fn received(&mut self) -> io::Result<Option<String>> {
        self.stream.get_ref().set_nonblocking(true)?;
        let arrived = self.stream.fill_buf().map(|bytes| !bytes.is_empty());
        self.stream.get_ref().set_nonblocking(false)?;
        match arrived {
            Ok(true) => self.receive().map(Some),
            Ok(false) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Appends one value with all that it contains.
    fn read_value(&mut self, reply: &mut Vec<u8>) -> io::Result<()> {
        let start = reply.len();
        if self.stream.read_until(b'\n', reply)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let kind = reply[start];
        let length = std::str::from_utf8(&reply[start + 1..]).ok().and_then(|line| line.trim().parse().ok());
        match (kind, length) {
            (b'$' | b'=' | b'!', Some(bytes @ 0..)) => {
                let end = reply.len();
                reply.resize(end + usize::try_from(bytes).unwrap_or(0) + 2, 0);
                self.stream.read_exact(&mut reply[end..])
            }
            (b'*' | b'~' | b'>', Some(elements)) => (0..elements).try_for_each(|_| self.read_value(reply)),
            (b'%' | b'|', Some(pairs)) => (0..2 * pairs).try_for_each(|_| self.read_value(reply)),
            (_, _) => Ok(()),
        }
    }
}
