//! URLs: one server, a cluster, or a primary that Sentinels know.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};

use crate::error::Error;

const SENTINEL_PORT: u16 = 26_379;

/// What a URL says.
#[derive(Clone)]
pub(crate) enum Address {
    /// `redis://…`, `rediss://…`, `redis+unix://…`
    Server(ConnectionInfo),
    /// `redis+cluster://…`, or `redis://…?cluster`: nodes by which the others are found.
    Cluster(Vec<ConnectionInfo>),
    /// `redis+sentinel://…/service`
    Sentinel(SentinelAddress),
}

#[derive(Clone)]
pub(crate) struct SentinelAddress {
    /// The name under which the Sentinels know the primary.
    pub(crate) service: String,
    pub(crate) sentinels: Vec<ConnectionInfo>,
    /// How to log in to the primary and its replicas.
    pub(crate) login: RedisConnectionInfo,
}

impl Address {
    /// Reads a URL. Hosts are separated by commas.
    ///
    /// # Errors
    ///
    /// [`Error::Settings`]. It does not show the URL, which may hold a password.
    pub(crate) fn parse(url: &str) -> Result<Self, Error> {
        let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
        let (scheme, kind) = match scheme.rsplit_once('+') {
            Some((scheme, kind @ ("cluster" | "sentinel"))) => (scheme, Some(kind)),
            _ => (scheme, None),
        };
        let parts = Parts::of(rest);
        let is_cluster =
            kind == Some("cluster") || parts.options.iter().any(|option| is_yes(option, "cluster"));
        if kind == Some("sentinel") {
            return sentinel(scheme, &parts).map(Self::Sentinel);
        }
        if !is_cluster {
            return parse_one(url).map(Self::Server);
        }
        let nodes: Vec<_> = parts
            .hosts
            .iter()
            .map(|host| parse_one(&parts.url(scheme, host, parts.path)))
            .collect::<Result<_, _>>()?;
        if nodes.iter().any(|node| node.redis_settings().db() != 0) {
            return Err(Error::Settings("URL: a cluster has database 0 only".to_owned()));
        }
        if nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::Unix(_))) {
            return Err(Error::Settings("URL: the nodes of a cluster have hosts and ports".to_owned()));
        }
        Ok(Self::Cluster(nodes))
    }
}

/// A URL behind its `://`, cut where it means something.
struct Parts<'u> {
    /// `user:password@`, or nothing.
    login: &'u str,
    hosts: Vec<&'u str>,
    /// With no slash before it.
    path: &'u str,
    /// What follows the question mark, but for what only this crate understands.
    options: Vec<&'u str>,
}

impl<'u> Parts<'u> {
    fn of(rest: &'u str) -> Self {
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let hosts_at = authority.rfind('@').map_or(0, |at| at.saturating_add(1));
        let (login, hosts) = authority.split_at(hosts_at);
        let options = options.split('&').filter(|option| !option.is_empty()).collect();
        Self { login, hosts: hosts.split(',').collect(), path, options }
    }

    /// The URL of one host.
    fn url(&self, scheme: &str, host: &str, path: &str) -> String {
        let known = |option: &&&str| !is_yes(option, "cluster");
        let options = self.options.iter().filter(known).copied().collect::<Vec<_>>().join("&");
        format!("{scheme}://{}{host}/{path}?{options}", self.login)
    }
}

/// `name`, `name=true`, `name=yes` or `name=1`.
fn is_yes(option: &str, name: &str) -> bool {
    let (key, value) = option.split_once('=').unwrap_or((option, "yes"));
    key == name && matches!(value, "true" | "yes" | "1")
}

/// Reads a URL as the redis crate has it, which does not show it in its errors.
fn parse_one(url: &str) -> Result<ConnectionInfo, Error> {
    let info = url.into_connection_info().map_err(|error| Error::Settings(format!("URL: {error}")))?;
    if url.contains("protocol=") {
        return Ok(info);
    }
    // With RESP3, a lost connection is noticed, and replaced, before the next call needs it.
    let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(info.set_redis_settings(redis))
}

fn sentinel(scheme: &str, parts: &Parts<'_>) -> Result<SentinelAddress, Error> {
    let (service, database) = parts.path.split_once('/').unwrap_or((parts.path, ""));
    if service.is_empty() {
        let expected = "URL: expected redis+sentinel://host:port,…/service, came no service";
        return Err(Error::Settings(expected.to_owned()));
    }
    // The login is the primary's; a Sentinel has its own, or none.
    let login = parse_one(&parts.url(scheme, "primary", database))?.redis_settings().clone();
    let sentinels = parts.hosts.iter().map(|host| {
        let sentinel = parse_one(&format!("{scheme}://{host}"))?;
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

/// The same way to connect, to another host.
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

/// The host, if there is one: a socket's path has none.
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
            let Address::Cluster(nodes) = Address::parse(url).unwrap() else { panic!("{url}") };
            assert_eq!(shown(&nodes), ["a:7000", "b:6379", "::1:7002"], "{url}");
            assert!(nodes.iter().all(|node| node.redis_settings().password() == Some("p@,x")), "{url}");
        }
    }

    #[test]
    fn sentinels_have_their_port_and_the_primary_has_the_login() {
        let url = "redis+sentinel://user:secret@one,two:5000,[::1]/my-service/3";
        let Address::Sentinel(address) = Address::parse(url).unwrap() else { panic!("{url}") };
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
            assert!(matches!(Address::parse(url).unwrap(), Address::Server(_)), "{url}");
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
            "secret",
        ] {
            let error = Address::parse(url).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| !error.contains("secret")), "{url}: {error:?}");
        }
    }
}
