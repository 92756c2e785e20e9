//! URLs of one server, of a cluster, or of a primary that Sentinels monitor.

use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};

use crate::error::Error;
use crate::settings::Settings;

const SENTINEL_PORT: u16 = 26_379;

/// The forms of a URL, for errors.
const FORMS: &str = "expected redis://[user:password@]host[:port][/database], redis+unix:///path, \
                     redis+cluster://[user:password@]host[:port],… or \
                     redis+sentinel://[user:password@]host[:port],…/service, with rediss for TLS, and \
                     special characters in user and password percent-encoded (%40 for @)";
/// The parameters of a URL, for errors.
const PARAMETERS: &str = "expected one of cluster, db, protocol, user, username, pass, password, client_name, \
                          socket_connect_timeout, socket_timeout, socket_keepalive, health_check_interval";

/// The server or servers that a URL names.
#[derive(Clone)]
pub(crate) enum Address {
    /// `redis://…`, `rediss://…`, `redis+unix://…`
    Server(ConnectionInfo),
    /// `redis+cluster://…`, or `redis://…?cluster`: the nodes that the client asks for all others.
    Cluster(Vec<ConnectionInfo>),
    /// `redis+sentinel://…/service`
    Sentinel(SentinelAddress),
}

#[derive(Clone)]
pub(crate) struct SentinelAddress {
    /// The name under which the Sentinels monitor the primary.
    pub(crate) service: String,
    pub(crate) sentinels: Vec<ConnectionInfo>,
    /// How to log in to the primary and its replicas.
    pub(crate) login: RedisConnectionInfo,
}

impl Address {
    /// Reads a URL, whose hosts are separated by commas. Parameters that are settings go to `settings`.
    ///
    /// # Errors
    ///
    /// [`Error::Settings`]. The error does not show the URL, which may hold a password.
    pub(crate) fn parse(url: &str, settings: &mut Settings) -> Result<Self, Error> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| no_url("got no ://"))?;
        if !cfg!(feature = "tls") && matches!(scheme.split('+').next(), Some("rediss" | "valkeys")) {
            let missing = "URL: TLS needs the cargo feature `tls` of pmcptask-client, which is off";
            return Err(Error::Settings(missing.to_owned()));
        }
        let (scheme, kind) = match scheme.rsplit_once('+') {
            Some((scheme, kind @ ("cluster" | "sentinel"))) => (scheme, Some(kind)),
            _ => (scheme, None),
        };
        let parts = Parts::of(rest, settings)?;
        if kind == Some("sentinel") {
            return sentinel(scheme, &parts).map(Self::Sentinel);
        }
        let is_cluster = kind == Some("cluster") || parts.options.is_cluster;
        if !is_cluster && parts.hosts.len() > 1 {
            return Err(no_url("got several hosts that are neither a cluster nor Sentinels"));
        }
        let nodes = parts.hosts.iter().map(|host| parse_one(&parts.url(scheme, host, parts.path)));
        let mut nodes = nodes.map(|node| node.map(|node| parts.options.complete(node)));
        if !is_cluster {
            return nodes.next().unwrap_or_else(|| Err(no_url("got no host"))).map(Self::Server);
        }
        let nodes: Vec<_> = nodes.collect::<Result<_, _>>()?;
        if nodes.iter().any(|node| node.redis_settings().db() != 0) {
            return Err(Error::Settings(
                "URL: expected database 0, which is the only one of a cluster, got another".to_owned(),
            ));
        }
        if nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::Unix(_))) {
            return Err(Error::Settings(
                "URL: expected hosts and ports for a cluster, got a socket".to_owned(),
            ));
        }
        Ok(Self::Cluster(nodes))
    }
}

fn no_url(got: &str) -> Error {
    Error::Settings(format!("URL: {FORMS}, {got}"))
}

/// The parts of a URL after its `://`.
struct Parts<'u> {
    /// `user:password@`, or nothing.
    login: &'u str,
    hosts: Vec<&'u str>,
    /// Without the slash before it.
    path: &'u str,
    /// `#` and what follows it, or nothing.
    fragment: &'u str,
    options: Options,
}

impl<'u> Parts<'u> {
    fn of(rest: &'u str, settings: &mut Settings) -> Result<Self, Error> {
        let (rest, fragment) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        // The error does not show the rest, which is the end of a password.
        if options.contains('@') {
            return Err(no_url("got '?' before '@': write %3F in a user name or password"));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let hosts_at = authority.rfind('@').map_or(0, |at| at.saturating_add(1));
        let (login, hosts) = authority.split_at(hosts_at);
        let options = Options::read(options, settings)?;
        Ok(Self { login, hosts: hosts.split(',').collect(), path, fragment, options })
    }

    /// The URL of one host.
    fn url(&self, scheme: &str, host: &str, path: &str) -> String {
        format!("{scheme}://{}{host}/{path}{}", self.login, self.fragment)
    }
}

/// The parameters that are not settings of this crate, under the names of redis-py and the redis crate.
#[derive(Default)]
struct Options {
    is_cluster: bool,
    database: Option<i64>,
    protocol: Option<ProtocolVersion>,
    user: Option<String>,
    password: Option<String>,
}

impl Options {
    fn read(options: &str, settings: &mut Settings) -> Result<Self, Error> {
        let mut read = Self::default();
        for (name, value) in form_urlencoded::parse(options.as_bytes()) {
            // The value may be a password.
            let bad =
                |expected| Error::Settings(format!("URL: parameter '{name}': {expected}, got another value"));
            let seconds = || {
                let seconds =
                    value.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                seconds.ok_or_else(|| bad("expected seconds"))
            };
            match &*name {
                "cluster" => {
                    read.is_cluster = yes_or_no(&value).ok_or_else(|| bad("expected yes or no"))?;
                }
                "db" => {
                    let database = value.parse().map_err(|_| bad("expected the number of a database"))?;
                    read.database = Some(database);
                }
                "protocol" => {
                    read.protocol = Some(match &*value {
                        "2" | "resp2" => ProtocolVersion::RESP2,
                        "3" | "resp3" => ProtocolVersion::RESP3,
                        _ => return Err(bad("expected 2 or 3")),
                    });
                }
                "user" | "username" => read.user = Some(value.into_owned()),
                "pass" | "password" => read.password = Some(value.into_owned()),
                "client_name" => settings.client_name = Some(value.into_owned()),
                "socket_connect_timeout" => settings.timeouts.connect = seconds()?,
                "socket_timeout" => settings.timeouts.response = seconds()?,
                "health_check_interval" => settings.timeouts.keep_alive = seconds()?,
                // TCP keep-alive is always on.
                "socket_keepalive" if yes_or_no(&value) == Some(true) => {}
                "socket_keepalive" => return Err(bad("expected yes")),
                name if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
                    return Err(Error::Settings(format!("URL: parameters: {PARAMETERS}, got '{name}'")));
                }
                _ => {
                    return Err(Error::Settings(format!(
                        "URL: parameters: {PARAMETERS}, got an unknown parameter"
                    )));
                }
            }
        }
        Ok(read)
    }

    /// Completes what the URL says before the question mark. `db` overrides the database of the path; a login
    /// before the host overrides the parameters.
    fn complete(&self, info: ConnectionInfo) -> ConnectionInfo {
        let login = self.complete_login(info.redis_settings().clone());
        info.set_redis_settings(login)
    }

    fn complete_login(&self, mut login: RedisConnectionInfo) -> RedisConnectionInfo {
        // With RESP3, a lost connection is noticed, and replaced, before the next call needs it.
        login = login.set_protocol(self.protocol.unwrap_or(ProtocolVersion::RESP3));
        if let Some(database) = self.database {
            login = login.set_db(database);
        }
        if let (None, Some(user)) = (login.username(), &self.user) {
            login = login.set_username(user);
        }
        if let (None, Some(password)) = (login.password(), &self.password) {
            login = login.set_password(password);
        }
        login
    }
}

/// Reads a parameter; without a value it means yes.
fn yes_or_no(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "" | "true" | "yes" | "1" => Some(true),
        "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Reads a URL without parameters through the redis crate, whose errors do not show the URL.
fn parse_one(url: &str) -> Result<ConnectionInfo, Error> {
    url.into_connection_info().map_err(|error| no_url(&format!("got an invalid URL ({error})")))
}

fn sentinel(scheme: &str, parts: &Parts<'_>) -> Result<SentinelAddress, Error> {
    let (service, database) = parts.path.split_once('/').unwrap_or((parts.path, ""));
    if service.is_empty() {
        return Err(no_url("got no service"));
    }
    // The URL's login is for the primary and its replicas. Sentinels have their own login, or none.
    let login = parse_one(&parts.url(scheme, "primary", database))?;
    let login = parts.options.complete_login(login.redis_settings().clone());
    let sentinels = parts.hosts.iter().map(|host| {
        let sentinel = parse_one(&format!("{scheme}://{host}/{}", parts.fragment))?;
        Ok(if names_a_port(host) { sentinel } else { at_port(sentinel, SENTINEL_PORT) })
    });
    Ok(SentinelAddress {
        service: service.to_owned(),
        sentinels: sentinels.collect::<Result<_, Error>>()?,
        login,
    })
}

/// `host:port` and `[::1]:port`, but neither `host` nor `[::1]`.
fn names_a_port(host: &str) -> bool {
    host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.contains(']'))
}

fn at_port(info: ConnectionInfo, port: u16) -> ConnectionInfo {
    match info.addr().clone() {
        ConnectionAddr::Unix(_) => info,
        addr => {
            let host = host_of(&addr);
            info.set_addr(at(&addr, &host, port))
        }
    }
}

/// The same transport and TLS settings, for another host.
pub(crate) fn at(like: &ConnectionAddr, host: &str, port: u16) -> ConnectionAddr {
    match like {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host: host.to_owned(),
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host.to_owned(), port),
    }
}

/// The host; empty for a socket.
pub(crate) fn host_of(addr: &ConnectionAddr) -> String {
    match addr {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn parse(url: &str) -> Result<Address, Error> {
        Address::parse(url, &mut Settings::default())
    }

    fn shown(nodes: &[ConnectionInfo]) -> Vec<String> {
        nodes.iter().map(|node| node.addr().to_string()).collect()
    }

    #[test]
    fn cluster_has_as_many_seeds_as_the_url_has_hosts() {
        for url in [
            "redis+cluster://u:p%40,x@a:7000,b,[::1]:7002",
            "redis://u:p%40,x@a:7000,b,[::1]:7002?cluster",
            "valkey://u:p%40,x@a:7000,b,[::1]:7002/0?protocol=resp3&cluster=true",
        ] {
            let Address::Cluster(nodes) = parse(url).unwrap() else { panic!("{url}") };
            assert_eq!(shown(&nodes), ["a:7000", "b:6379", "::1:7002"], "{url}");
            assert!(nodes.iter().all(|node| node.redis_settings().password() == Some("p@,x")), "{url}");
        }
    }

    #[test]
    fn sentinels_have_their_port_and_the_primary_has_the_login() {
        let url = "redis+sentinel://user:secret@one,two:5000,[::1]/my-service/3";
        let Address::Sentinel(address) = parse(url).unwrap() else { panic!("{url}") };
        assert_eq!(address.service, "my-service");
        assert_eq!(shown(&address.sentinels), ["one:26379", "two:5000", "::1:26379"]);
        assert_eq!((address.login.username(), address.login.db()), (Some("user"), 3));
        assert!(address.sentinels.iter().all(|sentinel| sentinel.redis_settings().password().is_none()));
    }

    #[test]
    fn one_server_is_what_the_redis_crate_makes_of_it() {
        for url in
            ["redis://h:1/2", "redis://h:1/2?protocol=resp3", "redis+unix:///s", "redis://h?cluster=no"]
        {
            assert!(matches!(parse(url).unwrap(), Address::Server(_)), "{url}");
        }
    }

    #[test]
    fn url_that_means_nothing_is_refused_and_not_shown() {
        for url in [
            "redis+cluster://u:secret@a,b/2",
            "redis+cluster://",
            "redis+sentinel://u:secret@a,b",
            "redis+sentinel://u:secret@a,b/service/secret",
            "unix:///secret?cluster",
            "redis://u:a?secret@host",
            "redis://host?secret-word=1",
            "secret",
        ] {
            let error = parse(url).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| !error.contains("secret")), "{url}: {error:?}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn url_with_tls_names_the_feature_that_is_off() {
        for scheme in ["rediss", "rediss+cluster", "valkeys", "rediss+sentinel"] {
            let error = parse(&format!("{scheme}://h/service")).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| error.contains("cargo feature `tls`")), "{error:?}");
        }
    }

    #[test]
    fn what_stands_before_the_question_mark_is_completed_by_what_follows() {
        let mut settings = Settings::default();
        let url = "redis://user@h/1?db=2&user=other&password=a%26b&client_name=me&socket_timeout=1.5";
        let Address::Server(info) = Address::parse(url, &mut settings).unwrap() else { panic!("{url}") };
        let login = info.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("user"), Some("a&b"), 2));
        assert_eq!(settings.client_name.as_deref(), Some("me"));
        assert_eq!(settings.timeouts.response, Duration::from_millis(1_500));
        let Address::Sentinel(address) = parse("redis+sentinel://h/s/1?db=2&pass=p").unwrap() else {
            panic!()
        };
        assert_eq!((address.login.db(), address.login.password()), (2, Some("p")));
        let Address::Server(info) = parse("redis+unix:///s?db=2&user=u&pass=p").unwrap() else { panic!() };
        assert_eq!((info.addr().to_string(), info.redis_settings().db()), ("/s".to_owned(), 2));
    }
}
