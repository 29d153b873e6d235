//! Clients: Kubernetes' for what is watched, and a lean HTTP/2 one that speaks
//! with our API server and with etcd alike, so that neither pays for its client.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::world::{World, image, until};

/// A client with the administrator's rights.
pub(crate) async fn kube(world: &World) -> anyhow::Result<kube::Client> {
    let kubeconfig = Kubeconfig::read_from(world.kubeconfig())?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    Ok(kube::Client::try_from(config)?)
}

pub(crate) fn pods(client: &kube::Client) -> Api<Pod> {
    Api::namespaced(client.clone(), "default")
}

/// Everything that happens to pods from now on.
pub(crate) async fn watch_pods(
    pods: &Api<Pod>,
) -> anyhow::Result<BoxStream<'static, kube::Result<WatchEvent<Pod>>>> {
    let revision = pods.list(&ListParams::default().limit(1)).await?.metadata.resource_version;
    let revision = revision.context("a list has a revision")?;
    Ok(pods.clone().watch(&WatchParams::default(), &revision).await?.boxed())
}

/// A pod of the kind `oci` or `wasm` that runs until it is told to end.
pub(crate) fn pod(kind: &str, name: &str) -> anyhow::Result<Pod> {
    let (command, class) = match kind {
        "oci" => (
            json!(["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"]),
            Value::Null,
        ),
        _ => (json!(["greeter"]), json!("wasm")),
    };
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"kind": kind}},
        "spec": {
            "runtimeClassName": class,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": image(kind), "command": command,
                "resources": {"requests": {"cpu": "10m", "memory": "4Mi"},
                    "limits": {"memory": "32Mi"}},
            }],
        },
    }))?)
}

pub(crate) fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running")
}

/// Creates pods of a kind and waits until all run.
pub(crate) async fn run_pods(
    client: &kube::Client,
    kind: &str,
    n_pods: usize,
) -> anyhow::Result<()> {
    let pods = pods(client);
    for n in 0..n_pods {
        pods.create(&PostParams::default(), &pod(kind, &format!("{kind}-{n}"))?).await?;
    }
    let label = ListParams::default().labels(&format!("kind={kind}"));
    until(&format!("{n_pods} pods of {kind} run"), 60, async || {
        let list = pods.list(&label).await?;
        Ok((list.items.iter().filter(|pod| is_running(pod)).count() == n_pods).then_some(()))
    })
    .await
}

/// Whether a node is Ready: `True`, `False`, `Unknown`, or empty.
pub(crate) fn readiness(node: &Node) -> &str {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|one| one.type_ == "Ready");
    ready.map_or("", |one| one.status.as_str())
}

pub(crate) async fn node_becomes_ready(client: &kube::Client, name: &str) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    until(&format!("node {name} is Ready"), 60, async || {
        let node = nodes.get_opt(name).await?;
        Ok(node.filter(|node| readiness(node) == "True").map(|_| ()))
    })
    .await
}

/// One HTTP/2 connection, with TLS and a client certificate to our API server,
/// in the clear to etcd.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

/// What a connection to our API server needs; read once.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    tls: Arc<rustls::ClientConfig>,
    authority: String,
}

impl Admin {
    pub(crate) fn read(kubeconfig: &Path) -> anyhow::Result<Self> {
        let config: Value = serde_json::from_slice(&std::fs::read(kubeconfig)?)?;
        let text = |at: &str| -> anyhow::Result<Vec<u8>> {
            let value = config.pointer(at).and_then(Value::as_str);
            Ok(STANDARD.decode(value.with_context(|| format!("kubeconfig: no {at}"))?)?)
        };
        let ca = text("/clusters/0/cluster/certificate-authority-data")?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&ca)?)?;
        let chain = text("/users/0/user/client-certificate-data")?;
        let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&text("/users/0/user/client-key-data")?)?;
        let mut tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let server = config.pointer("/clusters/0/cluster/server").and_then(Value::as_str);
        let authority = server.and_then(|url| url.strip_prefix("https://"));
        let authority = authority.context("kubeconfig: no https server")?.to_owned();
        Ok(Self { tls: Arc::new(tls), authority })
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        let tcp = TcpStream::connect(&self.authority).await?;
        tcp.set_nodelay(true)?;
        let host = self.authority.rsplit_once(':').map_or("", |(host, _)| host).to_owned();
        let name = ServerName::try_from(host)?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await?;
        Connection::over(stream, &format!("https://{}", self.authority)).await
    }
}

impl Connection {
    /// To an etcd's client port.
    pub(crate) async fn etcd(address: &str) -> anyhow::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        Self::over(tcp, &format!("http://{address}")).await
    }

    async fn over(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
        authority: &str,
    ) -> anyhow::Result<Self> {
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, authority: authority.to_owned() })
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<(u16, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.authority))
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status().as_u16();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }

    /// Creates an object in our API server.
    pub(crate) async fn create(&mut self, path: &str, object: &Value) -> anyhow::Result<()> {
        let (status, body) = self.send(Method::POST, path, object.to_string().into()).await?;
        ensure!(status == 201, "POST {path}: {status} {}", String::from_utf8_lossy(&body));
        Ok(())
    }

    /// `etcdserverpb.KV/Put` over gRPC.
    pub(crate) async fn etcd_put(&mut self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        let request = Request::post(format!("{}/etcdserverpb.KV/Put", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(put_message(key, value)))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let early = answer.headers().get("grpc-status").cloned();
        let body = answer.into_body().collect().await?;
        let late = body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned());
        match early.or(late) {
            Some(status) if status == "0" => Ok(()),
            status => bail!("etcd refused a put: grpc-status {status:?}"),
        }
    }
}

/// `PutRequest {key = 1, value = 2}` in a gRPC frame.
fn put_message(key: &[u8], value: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    for (tag, field) in [(0x0a, key), (0x12, value)] {
        message.put_u8(tag);
        let mut length = field.len();
        while length >= 0x80 {
            message.put_u8(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
            length >>= 7;
        }
        message.put_u8(u8::try_from(length).expect("seven bits"));
        message.put_slice(field);
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("values are small"));
    frame.unsplit(message);
    frame.freeze()
}
