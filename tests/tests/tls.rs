//! TLS with a private authority, and with client certificates.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs;
use std::time::{Duration, Instant};

use pmcp_tasks::store::backend::StorageBackend;
use pmcptask_client::{Error, RedisBackend, RedisBackendBuilder};
use pmcptask_tests::{Cluster, Server, ServerOptions, StartError, holds_within, reason, skipped};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

/// An authority, and the certificates that it has signed.
struct Authority {
    /// The files that the server reads.
    folder: TempDir,
    root: String,
    client: Certified,
}

/// In PEM.
struct Certified {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        Self::for_server(&["localhost", "127.0.0.1"])
    }

    fn for_server(names: &[&str]) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A different name from the certificates that it signs; with the same name they would
        // look self-signed.
        params.distinguished_name.push(DnType::CommonName, "authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let certify = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
            Certified { certificate: certificate.pem(), key: key.serialize_pem() }
        };
        let (server, client) = (certify(names), certify(&["client"]));
        let folder = tempfile::tempdir().unwrap();
        for (name, pem) in
            [("root.pem", &issuer.pem()), ("server.pem", &server.certificate), ("server.key", &server.key)]
        {
            fs::write(folder.path().join(name), pem).unwrap();
        }
        Self { folder, root: issuer.pem(), client }
    }

    /// A server that also speaks TLS, besides the plain port of the harness, and requires a
    /// client certificate.
    fn certifies(&self, options: ServerOptions) -> ServerOptions {
        let path = |name| self.folder.path().join(name).to_str().unwrap().to_owned();
        options
            .set("tls-cert-file", &path("server.pem"))
            .set("tls-key-file", &path("server.key"))
            .set("tls-ca-cert-file", &path("root.pem"))
            .set("tls-auth-clients", "yes")
    }

    fn trusted_by(&self, url: &str) -> RedisBackendBuilder {
        RedisBackend::builder(url).root_certificates(self.root.as_str())
    }

    fn known_to(&self, url: &str) -> RedisBackendBuilder {
        let Certified { certificate, key } = &self.client;
        self.trusted_by(url).client_certificate(certificate.as_str(), key.as_str())
    }
}

/// None if the server was built without TLS. Such a server says so when it starts.
fn start(test: &str, options: &ServerOptions) -> Option<Server> {
    match Server::try_start_with(options) {
        Ok(server) => Some(server),
        Err(StartError::Ended(log)) if log.contains("tls-cert-file") => {
            skipped(test, "the server was built without TLS");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn url(server: &Server) -> String {
    format!("rediss://localhost:{}", server.tls_port())
}

#[tokio::test(flavor = "multi_thread")]
async fn own_authority_and_client_certificate_let_the_client_in_and_in_again() {
    let authority = Authority::new();
    let options = authority.certifies(ServerOptions::default().set("appendonly", "yes"));
    let Some(mut server) = start("own_authority", &options) else { return };
    let backend = authority.known_to(&url(&server)).connect().await.unwrap();
    assert_eq!(backend.put("owner:t", b"one").await.unwrap(), 1);
    server.kill();
    server.restart();
    assert_eq!(backend.put("owner:t", &vec![b'x'; 1 << 20]).await.unwrap(), 2);
    assert_eq!(backend.list_by_prefix("owner:").await.unwrap().len(), 1);
    backend.check_health().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stranger_is_not_talked_to_in_either_direction() {
    let authority = Authority::new();
    let Some(server) = start("stranger", &authority.certifies(ServerOptions::default())) else { return };
    let stranger = Authority::new();
    let own = &authority.client;
    for (who, builder) in [
        // The operating system does not trust the server's authority.
        ("no authority", RedisBackend::builder(url(&server))),
        ("another authority", stranger.known_to(&url(&server))),
        ("no certificate", authority.trusted_by(&url(&server))),
        (
            "a certificate of another authority",
            authority
                .trusted_by(&url(&server))
                .client_certificate(stranger.client.certificate.as_str(), stranger.client.key.as_str()),
        ),
        ("no TLS", RedisBackend::builder(format!("redis://localhost:{}", server.tls_port()))),
        (
            "another name",
            RedisBackend::builder(format!("rediss://[::ffff:127.0.0.1]:{}", server.tls_port()))
                .root_certificates(authority.root.as_str())
                .client_certificate(own.certificate.as_str(), own.key.as_str()),
        ),
    ] {
        let started = Instant::now();
        let error = builder.connect().await.unwrap_err();
        let is_right = if who == "no TLS" {
            matches!(reason(&error), Error::Settings(_))
        } else {
            matches!(reason(&error), Error::Tls { .. })
        };
        assert!(is_right, "{who}: {error:?}");
        assert!(started.elapsed() < Duration::from_secs(5), "{who}: {:?}", started.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_cannot_be_used_are_refused_and_not_shown() {
    let authority = Authority::new();
    let Certified { certificate, key } = &authority.client;
    for (builder, text) in [
        (RedisBackend::builder("rediss://localhost:1").root_certificates("secret"), "certificate"),
        (
            RedisBackend::builder("rediss://localhost:1").client_certificate(certificate.as_str(), "secret"),
            "key",
        ),
        (authority.trusted_by("redis://localhost:1"), "rediss://"),
    ] {
        assert!(!format!("{builder:?}").contains("secret"));
        let error = builder.connect().await.unwrap_err();
        assert!(matches!(reason(&error), Error::Settings(_)), "{error:?}");
        assert!(error.to_string().contains(text) && !error.to_string().contains("secret"), "{error}");
    }
    assert!(!format!("{:?}", authority.known_to("rediss://localhost")).contains(key.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_cluster_are_found_and_talked_to_by_tls() {
    let authority = Authority::new();
    let options = authority.certifies(Cluster::node_options().set("tls-cluster", "yes"));
    if start("nodes_of_a_cluster", &options).is_none() {
        return;
    }
    let cluster = Cluster::start_with(&options, 3, 0);
    let url = format!("rediss+cluster://127.0.0.1:{}", cluster.servers[0].tls_port());
    let backend = authority.known_to(&url).connect().await.unwrap();
    for owner in 0..20 {
        let key = format!("{owner}:t");
        assert_eq!(backend.put(&key, b"data").await.unwrap(), 1);
        assert_eq!(backend.get(&key).await.unwrap().data, b"data");
    }
    for server in &cluster.servers {
        let held = server.wire().call(&["CLIENT", "LIST"]);
        let port = format!("laddr=127.0.0.1:{}", server.tls_port());
        assert!(held.lines().any(|line| line.contains(&port) && line.contains("resp=3")), "{held}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_and_their_primary_are_talked_to_by_tls() {
    let authority = Authority::new();
    let Some(primary) = start("sentinels", &authority.certifies(ServerOptions::default())) else { return };
    let sentinel = ServerOptions::default()
        .sentinel()
        .set("tls-replication", "yes")
        .set("sentinel monitor", &format!("tasks 127.0.0.1 {} 1", primary.tls_port()));
    let sentinel = Server::start_with(&authority.certifies(sentinel));
    let is_up = || sentinel.wire().call(&["INFO", "sentinel"]).contains("status=ok");
    assert!(holds_within(Duration::from_secs(20), is_up), "{}", sentinel.log());
    let url = format!("rediss+sentinel://127.0.0.1:{}/tasks", sentinel.tls_port());
    let backend = authority.known_to(&url).connect().await.unwrap();
    assert_eq!(backend.put("owner:t", b"one").await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_error_names_the_node_and_the_names_in_its_certificate() {
    const LIMIT: Duration = Duration::from_secs(20);
    let authority = Authority::for_server(&["localhost"]);
    let options = authority.certifies(Cluster::node_options().set("tls-cluster", "yes"));
    if start("tls_error_names_the_node", &options).is_none() {
        return;
    }
    // The node announces its address, which is not in the certificate.
    let cluster = Cluster::start_with(&options, 1, 0);
    let port = cluster.servers[0].tls_port();
    let started = Instant::now();
    let builder = authority.known_to(&format!("rediss+cluster://localhost:{port}"));
    let error = builder.connect_timeout(LIMIT).connect().await.unwrap_err();
    assert!(matches!(reason(&error), Error::Tls { .. }), "{error:?}");
    let text = error.to_string();
    for part in
        [&format!("127.0.0.1:{port}"), &format!("announced by the node localhost:{port}"), "\"localhost\""]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Retrying would not help.
    assert!(started.elapsed() < LIMIT / 2, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn port_with_tls_and_port_without_are_told_apart() {
    let authority = Authority::new();
    let Some(server) = start("told_apart", &authority.certifies(ServerOptions::default())) else { return };
    let monitor = format!("tasks 127.0.0.1 {} 1", server.port());
    let sentinel = ServerOptions::default().sentinel().set("sentinel monitor", &monitor);
    let sentinel = Server::start_with(&authority.certifies(sentinel));
    let (plain, plain_sentinel) = (server.port().to_string(), sentinel.port().to_string());
    let (tls, tls_sentinel) = (server.tls_port(), sentinel.tls_port());
    let [no_tls, has_tls] = ["answers without TLS", "speaks TLS"];
    for (url, port, found) in [
        (format!("rediss://localhost:{plain}"), plain.as_str(), no_tls),
        (format!("redis://localhost:{tls}"), tls, has_tls),
        (format!("redis://localhost:{tls}?protocol=2"), tls, has_tls),
        (format!("redis+cluster://localhost:{tls}"), tls, has_tls),
        (format!("rediss+sentinel://localhost:{plain_sentinel}/tasks"), &plain_sentinel, no_tls),
        (format!("redis+sentinel://localhost:{tls_sentinel}/tasks"), tls_sentinel, has_tls),
    ] {
        let builder =
            if url.starts_with("rediss") { authority.known_to(&url) } else { RedisBackend::builder(&url) };
        let started = Instant::now();
        let error = builder.connect().await.unwrap_err();
        let (expected, got) = if found == no_tls { ("redis", "rediss") } else { ("rediss", "redis") };
        let expected =
            format!("URL: localhost:{port} {found}: expected a URL that starts with {expected}, got {got}");
        assert!(matches!(reason(&error), Error::Settings(_)), "{url}: {error:?}");
        assert!(error.to_string().ends_with(&expected), "{url}: {error}");
        // The client does not wait for the connect timeout.
        assert!(started.elapsed() < Duration::from_secs(2), "{url}: {:?}", started.elapsed());
    }
}
