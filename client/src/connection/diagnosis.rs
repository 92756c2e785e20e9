//! Finds out why a server closes new connections: the redis crate drops the error that a server sends first.

use std::io;
use std::time::Duration;

use redis::ConnectionAddr;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Any server that does not speak TLS answers this.
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
/// The start of a TLS connection: a `ClientHello` of TLS 1.2 with two ciphers. A TLS server answers with TLS,
/// even if only with an alert.
const CLIENT_HELLO: &[u8] = &[
    0x16, 3, 1, 0, 47, // a handshake of 47 bytes
    1, 0, 0, 43, 3, 3, // a ClientHello of 43 bytes, TLS 1.2
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, // any 32 bytes
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, //
    0,  // no session
    0, 4, 0xc0, 0x2f, 0xc0, 0x2b, // ciphers
    1, 0, // no compression
];
/// The first byte of a TLS answer: a handshake or an alert.
const OF_TLS: [u8; 2] = [0x16, 0x15];
/// In bytes. No server's refusal is longer.
const LONGEST_REFUSAL: u64 = 1_024;

/// What answers at an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Diagnosis {
    /// A server that refuses connections: code and text of its error reply.
    Refusal(String, String),
    /// A server that answers without TLS.
    Plain,
    /// A server that speaks TLS.
    Tls,
}

/// Asks without the redis crate. `None` if there is no answer in time, or the answer says nothing.
pub(super) async fn diagnose(addr: &ConnectionAddr, limit: Duration) -> Option<Diagnosis> {
    timeout(limit, probe(addr)).await.ok().flatten()
}

async fn probe(addr: &ConnectionAddr) -> Option<Diagnosis> {
    let is_tls = matches!(addr, ConnectionAddr::TcpTls { .. });
    let answer = ask(addr, PING).await.unwrap_or_default();
    match answer.first() {
        Some(b'+' | b'-') if is_tls => Some(Diagnosis::Plain),
        Some(b'-') => refusal(&answer),
        // The server has closed the connection or sent an alert.
        _ if !is_tls => {
            let answer = ask(addr, CLIENT_HELLO).await.ok()?;
            answer.first().filter(|byte| OF_TLS.contains(byte)).map(|_| Diagnosis::Tls)
        }
        _ => None,
    }
}

/// The refusal in an answer. `NOAUTH` and `NOPERM` are none: the server only wants a login first.
fn refusal(answer: &[u8]) -> Option<Diagnosis> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let line = String::from_utf8_lossy(line.get(1..)?).into_owned();
    let (code, words) = line.split_once(' ')?;
    (!matches!(code, "NOAUTH" | "NOPERM")).then(|| Diagnosis::Refusal(code.to_owned(), words.to_owned()))
}

/// The start of an answer, up to the end of its first line.
async fn ask(addr: &ConnectionAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    match addr {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            answer(TcpStream::connect((host.as_str(), *port)).await?, question).await
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => answer(tokio::net::UnixStream::connect(path).await?, question).await,
        _ => Ok(Vec::new()),
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = std::pin::pin!(stream);
    // A server that refuses does so unasked, and may already have closed the connection.
    let _ = stream.write_all(question).await;
    let (mut stream, mut answer) = (stream.take(LONGEST_REFUSAL), Vec::new());
    // If an answer breaks off, its start is enough.
    while !answer.contains(&b'\n') && !answer.first().is_some_and(|byte| OF_TLS.contains(byte)) {
        if !matches!(stream.read_buf(&mut answer).await, Ok(1..)) {
            break;
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_hello_is_as_long_as_it_says() {
        assert_eq!(CLIENT_HELLO.len(), 5 + 47);
        assert_eq!(CLIENT_HELLO.get(9..).map(<[u8]>::len), Some(43));
    }

    #[test]
    fn refusal_has_its_code_and_who_wants_a_password_refuses_nothing() {
        let refused = Diagnosis::Refusal("ERR".to_owned(), "max number of clients reached".to_owned());
        assert_eq!(refusal(b"-ERR max number of clients reached\r\n"), Some(refused));
        assert_eq!(refusal(b"-NOAUTH Authentication required.\r\n"), None);
        assert_eq!(refusal(b"-"), None);
    }
}
