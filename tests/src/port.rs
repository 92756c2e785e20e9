//! Ports that nobody else gets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A port of 127.0.0.1 on which nothing listens until a server of the same test does.
///
/// Its socket is bound and never listens. So the OS gives the port neither to another socket nor to an
/// outgoing connection, however often a server stops and restarts there, and a client that reconnects to it
/// cannot connect to itself. Servers set `SO_REUSEADDR` like this socket, so they may listen here.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _socket: TcpSocket,
}

impl Port {
    /// A port from the OS.
    ///
    /// # Errors
    ///
    /// If the OS has none.
    pub fn free() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        // Only from here on, or the OS may choose a port that another test keeps.
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        socket.set_reuseaddr(true)?;
        Ok(Self { number: socket.local_addr()?.port(), _socket: socket })
    }

    /// The number of the port.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Host and port.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}
