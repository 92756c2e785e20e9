//! A TCP proxy between client and server that fails on purpose, request by request.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::wire::Wire;

/// What the proxy does wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: everything is forwarded.
    None,
    /// The n-th command of the module from now on (1 is the next one) is forwarded, but its reply is not. The
    /// connection is closed once the server has replied.
    LoseReply(usize),
    /// The next command with this name, in capitals, is forwarded, but its reply is not, nor any after it on the same
    /// connection. The connection is closed once the server has replied.
    LoseReplyTo(&'static str),
    /// The next command of the module is not forwarded. The connection is closed instead.
    LoseRequest,
    /// Every reply is delayed by this time, however many pieces it comes in.
    Delay(Duration),
    /// Requests and replies take the time that they take on a network of this bandwidth, on each connection.
    Bandwidth {
        /// In each direction.
        bytes_per_second: u64,
    },
    /// Replies to commands of the module are held until the fault changes, and everything after them on the
    /// same connection too. New connections are possible.
    Hold,
    /// The next news of a change (an `invalidate` message) is held until the fault changes, and everything after it on the same
    /// connection too.
    HoldNews,
    /// Connections are accepted and stay open, but nothing is forwarded in either direction.
    Silence,
    /// Connections are closed as soon as they are accepted.
    Close,
    /// Before the next command with this name is forwarded, another client's command runs.
    Before {
        /// The command's name, in capitals.
        command: &'static str,
        /// The other client's command.
        other: Vec<String>,
    },
    /// The next command with this name is not forwarded and gets this reply instead. It must be the only one on its way.
    AnswerOne {
        /// The command's name, in capitals.
        command: &'static str,
        /// The reply, byte for byte.
        reply: Vec<u8>,
    },
    /// Commands whose names start with `command` are not forwarded and get this reply instead.
    Answer {
        /// The start of a command's name, in capitals; empty for all commands.
        command: &'static str,
        /// The reply, byte for byte.
        reply: Vec<u8>,
    },
}

/// How a server begins to tell of a change.
const NEWS: &[u8] = b">2\r\n$10\r\ninvalidate\r\n";

/// A proxy on its own port. Its connections end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Forwards to a port of 127.0.0.1.
    ///
    /// # Panics
    ///
    /// If the OS has no port to listen on.
    #[must_use]
    pub fn to(server: u16) -> Self {
        Self::listen(Some(server), Fault::None)
    }

    /// A proxy without a server behind it: every connection gets the fault.
    ///
    /// # Panics
    ///
    /// If the OS has no port to listen on.
    #[must_use]
    pub fn to_nobody(fault: Fault) -> Self {
        Self::listen(None, fault)
    }

    fn listen(server: Option<u16>, fault: Fault) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the OS has a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let shared = Arc::new(Shared {
            server: Mutex::new(server),
            fault: Mutex::new(fault),
            links: Mutex::default(),
            accepted: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        Self { port, shared }
    }

    /// The proxy's port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// How many connections were accepted until now, including those closed at once.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many times clients have sent something until now. What comes in one piece counts once, for example a pipeline.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Sets the fault from now on.
    pub fn set(&self, fault: Fault) {
        *lock(&self.shared.fault) = fault;
    }

    /// Forwards new connections to another port of 127.0.0.1. Those that there are stay where they are.
    pub fn lead_to(&self, server: u16) {
        *lock(&self.shared.server) = Some(server);
    }

    /// Closes all current connections. New ones are accepted.
    pub fn cut(&self) {
        for link in lock(&self.shared.links).drain(..) {
            link.close();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        self.cut();
    }
}

/// What all connections of a proxy share.
#[derive(Debug)]
struct Shared {
    /// None: there is no server behind the proxy.
    server: Mutex<Option<u16>>,
    fault: Mutex<Fault>,
    links: Mutex<Vec<Arc<Link>>>,
    accepted: AtomicUsize,
    sent: AtomicUsize,
    ended: AtomicBool,
}

/// One connection.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: Option<TcpStream>,
    /// The next reply must not be forwarded.
    loses_reply: AtomicBool,
    /// A command of the module was forwarded.
    is_in_use: AtomicBool,
}

impl Link {
    fn close(&self) {
        // The connection may be closed already.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.as_ref().map(|server| server.shutdown(Shutdown::Both));
    }
}

/// What happens to one request.
enum Fate {
    Forwarded,
    ForwardedWithoutReply,
    Swallowed,
    Cut,
    Answered(Vec<u8>),
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            let Ok(client) = client else { continue };
            self.accepted.fetch_add(1, Ordering::SeqCst);
            if *lock(&self.fault) != Fault::Close {
                // If the server is away, the client's connection is closed.
                let _ = self.connect(client);
            }
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        let port = *lock(&self.server);
        let server = port.map(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, port))).transpose()?;
        for stream in server.iter().chain([&client]) {
            stream.set_nodelay(true)?;
        }
        let link = Arc::new(Link {
            client,
            server,
            loses_reply: AtomicBool::new(false),
            is_in_use: AtomicBool::new(false),
        });
        lock(&self.links).push(Arc::clone(&link));
        let pumps: [fn(&Self, &Link) -> io::Result<()>; 2] = [Self::pump_requests, Self::pump_replies];
        // Without a server there are no replies to wait for.
        for pump in pumps.into_iter().take(if link.server.is_some() { 2 } else { 1 }) {
            let (shared, link) = (Arc::clone(self), Arc::clone(&link));
            thread::spawn(move || {
                // Whichever side ends, the other is closed too.
                let _ = pump(&shared, &link);
                link.close();
            });
        }
        Ok(())
    }

    fn pump_requests(&self, link: &Link) -> io::Result<()> {
        let mut requests = BufReader::new(&link.client);
        loop {
            if requests.buffer().is_empty() && !requests.fill_buf()?.is_empty() {
                self.sent.fetch_add(1, Ordering::SeqCst);
            }
            let request = Request::read(&mut requests)?;
            match self.fate_of(&request) {
                Fate::Cut => return Ok(()),
                Fate::Swallowed => continue,
                Fate::Answered(reply) => {
                    (&link.client).write_all(&reply)?;
                    continue;
                }
                Fate::ForwardedWithoutReply => link.loses_reply.store(true, Ordering::SeqCst),
                Fate::Forwarded => {}
            }
            if request.is_of_module() {
                link.is_in_use.store(true, Ordering::SeqCst);
            }
            self.take_time_for(request.bytes.len());
            let mut server = link.server.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            server.write_all(&request.bytes)?;
        }
    }

    fn fate_of(&self, request: &Request) -> Fate {
        let mut fault = lock(&self.fault);
        let of_module = request.is_of_module();
        match &mut *fault {
            Fault::LoseReply(1) if of_module => {
                *fault = Fault::None;
                Fate::ForwardedWithoutReply
            }
            Fault::LoseReply(n) if of_module => {
                *n -= 1;
                Fate::Forwarded
            }
            Fault::LoseReplyTo(name) if request.name == *name => {
                *fault = Fault::None;
                Fate::ForwardedWithoutReply
            }
            Fault::LoseRequest if of_module => {
                *fault = Fault::None;
                Fate::Cut
            }
            Fault::Answer { command, reply } if request.name.starts_with(*command) => {
                Fate::Answered(reply.clone())
            }
            Fault::AnswerOne { command, reply } if request.name == *command => {
                let reply = std::mem::take(reply);
                *fault = Fault::None;
                Fate::Answered(reply)
            }
            Fault::Before { command, other } if request.name == *command => {
                let mut wire =
                    lock(&self.server).map(Wire::open).expect("there is a server").expect("it is there");
                let reply = wire.call(other);
                assert!(!reply.starts_with('-'), "{reply}");
                *fault = Fault::None;
                Fate::Forwarded
            }
            Fault::Silence => Fate::Swallowed,
            _ => Fate::Forwarded,
        }
    }

    /// Waits as long as these bytes take, if the bandwidth is limited.
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn take_time_for(&self, bytes: usize) {
        /// A thread that sleeps may wake up so much too late, which is the time of many a message.
        const LATE: Duration = Duration::from_micros(200);
        let started = Instant::now();
        let Fault::Bandwidth { bytes_per_second } = *lock(&self.fault) else { return };
        let time = Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        thread::sleep(time.saturating_sub(LATE));
        while started.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    fn holds_replies_of(&self, link: &Link) -> bool {
        let is_wanted = !self.ended.load(Ordering::SeqCst) && *lock(&self.fault) == Fault::Hold;
        is_wanted && link.is_in_use.load(Ordering::SeqCst)
    }

    fn pump_replies(&self, link: &Link) -> io::Result<()> {
        // A piece that waits does not keep the next one from being read.
        thread::scope(|scope| {
            let (pieces, due_pieces) = mpsc::channel();
            scope.spawn(move || {
                if deliver(&due_pieces, &link.client).is_err() {
                    link.close();
                }
            });
            self.read_replies(link, &pieces)
        })
    }

    fn read_replies(&self, link: &Link, pieces: &mpsc::Sender<DuePiece>) -> io::Result<()> {
        let mut server = link.server.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut bytes = vec![0; 1 << 16];
        let forward = |delay, piece: &[u8]| {
            let piece = DuePiece { due: Instant::now() + delay, bytes: piece.to_vec() };
            pieces.send(piece).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
        };
        loop {
            let count = server.read(&mut bytes)?;
            if count == 0 || link.loses_reply.load(Ordering::SeqCst) {
                return Ok(());
            }
            while self.holds_replies_of(link) {
                thread::sleep(Duration::from_millis(5));
            }
            let delay = match *lock(&self.fault) {
                Fault::Delay(delay) => delay,
                Fault::Silence => continue,
                _ => Duration::ZERO,
            };
            self.take_time_for(count);
            let mut piece = &bytes[..count];
            if *lock(&self.fault) == Fault::HoldNews
                && let Some(start) = piece.windows(NEWS.len()).position(|window| window == NEWS)
            {
                forward(Duration::ZERO, &piece[..start])?;
                piece = &piece[start..];
                while *lock(&self.fault) == Fault::HoldNews && !self.ended.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            forward(delay, piece)?;
        }
    }
}

/// A part of the replies.
struct DuePiece {
    due: Instant,
    bytes: Vec<u8>,
}

/// Delivers each piece when it is due.
fn deliver(pieces: &mpsc::Receiver<DuePiece>, mut client: &TcpStream) -> io::Result<()> {
    for piece in pieces {
        thread::sleep(piece.due.saturating_duration_since(Instant::now()));
        client.write_all(&piece.bytes)?;
    }
    Ok(())
}

/// One command as a client sends it.
struct Request {
    /// In capitals.
    name: String,
    bytes: Vec<u8>,
}

impl Request {
    fn is_of_module(&self) -> bool {
        self.name.starts_with("PMCPTASK.")
    }

    fn read(stream: &mut impl BufRead) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let mut name = None;
        for _ in 0..read_length(stream, &mut bytes)? {
            let length = read_length(stream, &mut bytes)?;
            let start = bytes.len();
            bytes.resize(start + length + 2, 0);
            stream.read_exact(&mut bytes[start..])?;
            name.get_or_insert_with(|| {
                String::from_utf8_lossy(&bytes[start..start + length]).to_ascii_uppercase()
            });
        }
        Ok(Self { name: name.unwrap_or_default(), bytes })
    }
}

/// Reads a line like `*3` or `$12`, appends it to `bytes` and returns its number.
fn read_length(stream: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<usize> {
    let start = bytes.len();
    stream.read_until(b'\n', bytes)?;
    let line = std::str::from_utf8(&bytes[start..]).unwrap_or_default();
    let number = line.get(1..).and_then(|number| number.trim_end().parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, feature = "redis-tests"))]
mod tests {
    use super::*;
    use crate::Server;

    #[test]
    fn delay_is_that_of_a_reply_and_not_of_each_piece_before_it() {
        const DELAY: Duration = Duration::from_secs(1);
        let server = Server::start();
        let proxy = Proxy::to(server.port());
        let mut wire = Wire::open(proxy.port()).unwrap();
        proxy.set(Fault::Delay(DELAY));
        let started = Instant::now();
        for _ in 0..3 {
            wire.send(&["PING"]).unwrap();
            // By then the server has replied, so each reply is a separate piece.
            thread::sleep(DELAY / 10);
        }
        for _ in 0..3 {
            assert_eq!(wire.receive().unwrap(), "+PONG\r\n");
            assert!(started.elapsed() >= DELAY);
        }
        assert!(started.elapsed() < DELAY * 2, "{:?}", started.elapsed());
    }

    #[test]
    fn requests_and_replies_take_at_least_the_time_of_the_bandwidth() {
        const BYTES: usize = 200_000;
        let server = Server::start();
        let proxy = Proxy::to(server.port());
        let mut wire = Wire::open(proxy.port()).unwrap();
        proxy.set(Fault::Bandwidth { bytes_per_second: 1_000_000 });
        for command in [vec!["SET", "a", &"x".repeat(BYTES)], vec!["GET", "a"]] {
            let started = Instant::now();
            wire.try_call(&command).unwrap();
            assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
        }
    }
}
