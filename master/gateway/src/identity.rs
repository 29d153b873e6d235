//! Who a client certificate names. Its chain was verified by TLS already.

use rustls::pki_types::CertificateDer;
use wire::topic::check_node_name;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Peer;

/// The organisation of nodes, as Kubernetes names it.
const NODES: &str = "system:nodes";

/// The node a certificate names, or why it names none.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Result<Peer, String> {
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("it does not read: {error}"))?;
    let subject = certificate.subject();
    let names: Vec<&str> =
        subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    let is_node = subject.iter_organization().any(|name| name.as_str() == Ok(NODES));
    let [name] = names.as_slice() else {
        return Err(format!("it has {} common names", names.len()));
    };
    if !is_node {
        let shown: String = name.chars().take(80).collect();
        return Err(format!("\"{shown}\" is not of the organisation {NODES}"));
    }
    check_node_name(name).map_err(|error| error.to_string())?;
    Ok(Peer {
        node: String::from(*name),
        serial: certificate.tbs_certificate.raw_serial().to_vec(),
    })
}
