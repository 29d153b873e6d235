//! The administrator's kubeconfig: everything a client needs, in one file.

use api::Value;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::pki::Pki;

/// The file's text, for a master reached at `server` (`https://host:port`). JSON,
/// which every reader of YAML takes.
pub(crate) fn render(pki: &Pki, server: &str) -> String {
    let text = |pem: &str| STANDARD.encode(pem);
    let name = "pinnace";
    let config: Value = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {
            "server": server,
            "certificate-authority-data": text(&pki.ca_pem),
        }}],
        "users": [{"name": "admin", "user": {
            "client-certificate-data": text(&pki.admin_cert_pem),
            "client-key-data": text(&pki.admin_key_pem),
        }}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "admin"}}],
        "current-context": name,
    });
    let mut text = serde_json::to_string_pretty(&config).expect("texts only");
    text.push('\n');
    text
}
