//! Settings of all connections, and their limits.

use std::time::Duration;

use crate::error::Error;

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    pub(crate) response: Duration,
    /// The time from one `PING` to the next, and the silence before TCP keep-alive probes.
    pub(crate) keep_alive: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            response: Duration::from_secs(10),
            keep_alive: Duration::from_secs(15),
        }
    }
}

/// How many replicas must have a write, and within what time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledgement {
    pub(crate) replicas: u16,
    pub(crate) within: Duration,
}

/// The settings that all connections of a backend share.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    pub(crate) timeouts: Timeouts,
    /// For `CLIENT LIST`.
    pub(crate) client_name: Option<String>,
    pub(crate) acknowledgement: Option<Acknowledgement>,
    pub(crate) reads_from_replicas: bool,
    /// The login of the Sentinels themselves: user, unless it is the default user, and password.
    pub(crate) sentinel_login: Option<(Option<String>, String)>,
    #[cfg(feature = "tls")]
    pub(crate) certificates: Option<redis::TlsCertificates>,
}

impl Settings {
    /// # Errors
    ///
    /// [`Error::Settings`] if a setting is out of range.
    pub(crate) fn check(&self) -> Result<(), Error> {
        // CLIENT SETNAME refuses all others.
        let is_printable = |name: &String| name.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.client_name.iter().all(is_printable) {
            return Err(Error::Settings(
                "client name: expected printable characters without spaces, got others".to_owned(),
            ));
        }
        #[cfg(feature = "tls")]
        self.certificates.iter().try_for_each(check_roots)?;
        let Timeouts { connect, response, keep_alive } = self.timeouts;
        for (name, duration) in
            [("connect timeout", connect), ("response timeout", response), ("keep-alive", keep_alive)]
        {
            if duration.is_zero() {
                return Err(Error::Settings(format!("{name}: expected more than 0, got 0")));
            }
        }
        let Some(acknowledgement) = self.acknowledgement else { return Ok(()) };
        if acknowledgement.within.is_zero() || acknowledgement.within >= self.timeouts.response {
            return Err(Error::Settings(
                "wait_for_replicas: expected more than 0 and less than the response timeout, got another time".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Without a certificate, the redis crate would trust no server and say so only when it connects.
#[cfg(feature = "tls")]
fn check_roots(certificates: &redis::TlsCertificates) -> Result<(), Error> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    let Some(roots) = &certificates.root_cert else { return Ok(()) };
    let mut roots = CertificateDer::pem_slice_iter(roots).peekable();
    if roots.peek().is_some() && roots.all(|root| root.is_ok()) {
        return Ok(());
    }
    Err(Error::Settings("root certificates: expected at least one certificate in PEM, got none".to_owned()))
}
