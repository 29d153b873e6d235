//! The API server alone, over TLS with a throw-away authority, for trying
//! clients by hand: no nodes, no controllers, no scheduler.
//!
//! ```text
//! cargo run --example serve -- DIR    # writes DIR/admin.kubeconfig, DIR/node.kubeconfig and says where it listens
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use apiserver::{Api, LogRequest, LogSource, LogStream, Server, ServerOptions, Status};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use store::MemoryStore;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Logs;

impl LogSource for Logs {
    fn open(&self, request: LogRequest) -> apiserver::BoxFuture<'_, Result<LogStream, Status>> {
        let line = format!("{} on {} says hello\n", request.container, request.node);
        let stream = futures::stream::once(async move { Ok(bytes::Bytes::from(line)) });
        Box::pin(async move { Ok(Box::pin(stream) as LogStream) })
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "throw-away");
        let certificate = params.self_signed(&key)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    fn sign(
        &self,
        user: &str,
        group: Option<&str>,
        names: &[&str],
    ) -> anyhow::Result<(rcgen::Certificate, KeyPair)> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }

    fn kubeconfig(&self, user: &str, group: Option<&str>, url: &str) -> anyhow::Result<String> {
        use base64::Engine as _;
        let encode = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
        let (certificate, key) = self.sign(user, group, &[])?;
        Ok(format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\nclusters:\n- name: it\n  cluster:\n    \
             server: {url}\n    certificate-authority-data: {}\ncontexts:\n- name: it\n  context: \
             {{cluster: it, user: it}}\nusers:\n- name: it\n  user:\n    client-certificate-data: \
             {}\n    client-key-data: {}\n",
            encode(self.certificate.pem()),
            encode(certificate.pem()),
            encode(key.serialize_pem())
        ))
    }
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = PathBuf::from(std::env::args().nth(1).context("usage: serve DIR")?);
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_writer(std::io::stderr)
        .init();
    std::fs::create_dir_all(&dir)?;
    let authority = Authority::new()?;
    let (certificate, key) = authority.sign("master", None, &["localhost", "127.0.0.1"])?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.der().clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], key)?;

    let api = Api::new(Arc::new(MemoryStore::new()));
    api.set_log_source(Arc::new(Logs));
    api.bootstrap().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("https://{}", listener.local_addr()?);
    let masters = Some(apiserver::MASTERS);
    write_private(&dir.join("admin.kubeconfig"), &authority.kubeconfig("admin", masters, &url)?)?;
    let nodes = Some(apiserver::NODES);
    let node = authority.kubeconfig("system:node:n1", nodes, &url)?;
    write_private(&dir.join("node.kubeconfig"), &node)?;
    write_private(&dir.join("nobody.kubeconfig"), &authority.kubeconfig("nobody", None, &url)?)?;
    let shutdown = CancellationToken::new();
    let server = Server::new(api, ServerOptions::default(), shutdown.clone());
    let serving = tokio::spawn(async move { server.serve(listener, Arc::new(tls)).await });
    tracing::info!("ready api={url}");
    tokio::signal::ctrl_c().await?;
    shutdown.cancel();
    serving.await?;
    Ok(())
}
