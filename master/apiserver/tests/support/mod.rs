//! An API server over TLS on a free port, with an authority made for it and
//! thrown away with it. Used by the tests that need real HTTP, and by the
//! example `serve`.

#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]
#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use pinnace_apiserver as apiserver;
use pinnace_apiserver::{
    Api, BoxFuture, HealthCheck, Identity, Limits, LogRequest, LogSource, LogStream, Server,
    ServerOptions, Status, TokenAuthenticator,
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::Value;
use store::Store;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// Every container says one line, and goes on for as long as it is followed.
struct Logs;

impl LogSource for Logs {
    fn open(&self, request: LogRequest) -> BoxFuture<'_, Result<LogStream, Status>> {
        let line = format!("{} on {} says hello\n", request.container, request.node);
        let stream = futures::stream::once(async move { Ok(bytes::Bytes::from(line)) });
        Box::pin(async move { Ok(Box::pin(stream) as LogStream) })
    }
}

/// One token, for tests of bearer tokens.
struct Tokens;

impl TokenAuthenticator for Tokens {
    fn authenticate(&self, token: &str) -> Option<Identity> {
        (token == "open-sesame").then(|| Identity::authenticated("ali", &[apiserver::MASTERS]))
    }
}

struct Gateway;

impl HealthCheck for Gateway {
    fn name(&self) -> &'static str {
        "gateway"
    }

    fn problem(&self) -> Option<String> {
        None
    }
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "throw-away");
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn sign(&self, user: &str, group: Option<&str>, names: &[&str]) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        roots
    }
}

pub struct Running {
    pub api: Api,
    pub port: u16,
    pub authority: Authority,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

/// A store on disk, with Events and Leases kept as the master keeps them.
pub fn on_disk(dir: &Path) -> Arc<dyn Store> {
    let config = store::Config {
        volatile_prefixes: vec!["/core/events/".to_owned()],
        memory_prefixes: vec!["/coordination.k8s.io/leases/".to_owned()],
        ..store::Config::default()
    };
    Arc::new(store::LmdbStore::open(dir, config).unwrap())
}

pub async fn start(store: Arc<dyn Store>) -> Running {
    start_with(store, Limits::default()).await
}

pub async fn start_with(store: Arc<dyn Store>, limits: Limits) -> Running {
    let authority = Authority::new();
    let (certificate, key) = authority.sign("master", None, &["localhost", "127.0.0.1"]);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = Arc::new(authority.roots());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let api = Api::new(store);
    api.set_log_source(Arc::new(Logs));
    api.bootstrap().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = CancellationToken::new();
    let options = ServerOptions {
        tokens: Some(Arc::new(Tokens)),
        checks: vec![Arc::new(Gateway)],
        limits,
        ..ServerOptions::default()
    };
    let server = Server::new(api.clone(), options, shutdown.clone());
    let serving = tokio::spawn(async move { server.serve(listener, Arc::new(tls)).await });
    Running { api, port, authority, shutdown, serving }
}

/// An answer, its body joined.
#[derive(Debug)]
pub struct Reply {
    pub code: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }
}

impl Running {
    /// Ends the server, and waits until every connection has ended.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap();
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Writes what a client needs to sign in as `user`, readable by nobody else.
    pub fn write_kubeconfig(&self, path: &Path, user: &str, group: Option<&str>) {
        let encode = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
        let (certificate, key) = self.authority.sign(user, group, &[]);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\nclusters:\n- name: it\n  cluster:\n    \
             server: {}\n    certificate-authority-data: {}\ncontexts:\n- name: it\n  context: \
             {{cluster: it, user: it}}\nusers:\n- name: it\n  user:\n    client-certificate-data: \
             {}\n    client-key-data: {}\n",
            self.url(),
            encode(self.authority.certificate.pem()),
            encode(certificate.pem()),
            encode(key.serialize_pem())
        );
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.create(true).write(true).truncate(true).mode(0o600).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// A TLS connection, as `user` where one is given.
    pub async fn connect(&self, user: Option<(&str, &str)>) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.authority.roots());
        let config = match user {
            None => builder.with_no_client_auth(),
            Some((user, group)) => {
                let (certificate, key) = self.authority.sign(user, Some(group), &[]);
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
                let certificate: CertificateDer<'static> = certificate.der().clone();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// One request over HTTP/1.1 as a master, and the whole answer.
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        self.ask_as(Some(("admin", apiserver::MASTERS)), method, path, headers, body).await
    }

    pub async fn ask_as(
        &self,
        user: Option<(&str, &str)>,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        let mut stream = self.connect(user).await;
        send(&mut stream, method, path, headers, body).await;
        let mut reader = BufReader::new(stream);
        let (code, headers) = read_head(&mut reader).await;
        let header = |name: &str| {
            headers
                .iter()
                .find(|(k, _): &&(String, String)| k.eq_ignore_ascii_case(name))
                .map(|(_, v)| v.clone())
        };
        let mut body = Vec::new();
        if header("transfer-encoding").is_some() {
            while let Some(chunk) = read_chunk(&mut reader).await {
                body.extend(chunk);
            }
        } else {
            let length: usize = header("content-length").map_or(0, |v| v.parse().unwrap());
            body.resize(length, 0);
            reader.read_exact(&mut body).await.unwrap();
        }
        Reply { code, headers, body }
    }
}

/// Sends a request; the connection is not used again.
pub async fn send(
    stream: &mut TlsStream<TcpStream>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n");
    for (key, value) in headers {
        head.push_str(&format!("{key}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream.flush().await.unwrap();
}

pub async fn read_head<R: AsyncBufReadExt + Unpin>(reader: &mut R) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    reader.read_line(&mut line).await.unwrap();
    let code = line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {line:?}"));
    let code = code.parse().unwrap();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        match line.trim_end().split_once(": ") {
            Some((key, value)) => headers.push((key.to_owned(), value.to_owned())),
            None => return (code, headers),
        }
    }
}

/// The next chunk of a chunked body; `None` at its end, or where the peer went away.
pub async fn read_chunk<R: AsyncBufReadExt + Unpin>(reader: &mut R) -> Option<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line).await.ok()?;
    let length = usize::from_str_radix(line.trim_end(), 16).ok()?;
    let mut chunk = vec![0; length + 2];
    reader.read_exact(&mut chunk).await.ok()?;
    chunk.truncate(length);
    (length > 0).then_some(chunk)
}
