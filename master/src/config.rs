//! What the master is told from outside, checked once, here.

use std::net::SocketAddr;
use std::path::PathBuf;

use api::network::Cidr;
use api::service::Ranges;
use clap::{Parser, ValueEnum};

/// The Pinnace master: serves the Kubernetes API and sends pods to edge nodes.
///
/// Runs alone and in the foreground, as any user. Prints `ready api=… nodes=…`
/// on standard output once it serves; SIGTERM ends it cleanly.
#[derive(Clone, Debug, Parser)]
#[command(name = "pinnace-master", version)]
pub(crate) struct Config {
    /// Folder of the cluster's state and keys; made with mode 0700.
    #[arg(long, value_name = "DIR", env = "PINNACE_DATA_DIR")]
    pub(crate) data_dir: PathBuf,

    /// Where the Kubernetes API listens; port 0 picks a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:6443")]
    pub(crate) api_listen: SocketAddr,

    /// Where nodes connect (MQTT over TLS, artifacts, streams); port 0 picks a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8883")]
    pub(crate) node_listen: SocketAddr,

    /// Address or name under which users and nodes reach this machine, for the
    /// kubeconfig and for tokens. A port stands for the node port, where it is
    /// forwarded. Default: the listening address, or the one of the default route.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) advertise: Option<Advertise>,

    /// Write the administrator's kubeconfig here (mode 0600). It is always kept
    /// in the data folder as admin.kubeconfig.
    #[arg(long, value_name = "FILE")]
    pub(crate) write_kubeconfig: Option<PathBuf>,

    /// How often nodes are heard from, unless a node's label
    /// `pinnace.io/link-profile` says otherwise.
    #[arg(long, value_enum, default_value_t = LinkProfile::Wan)]
    pub(crate) link_profile: LinkProfile,

    /// Addresses for pods, cut into a /24 for each node.
    #[arg(long, value_name = "CIDR", default_value = "10.42.0.0/16")]
    pub(crate) pod_cidr: String,

    /// Addresses for Services. The first one is the API's, the tenth answers DNS.
    #[arg(long, value_name = "CIDR", default_value = "10.43.0.0/16")]
    pub(crate) service_cidr: String,

    /// A registry that is reached over plain HTTP; may be given more than once.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) insecure_registry: Vec<String>,

    /// Certificates (PEM) of registries with a CA of their own.
    #[arg(long, value_name = "FILE")]
    pub(crate) registry_ca: Option<PathBuf>,

    /// How registries are reached: mirrors, certificates, credentials (TOML, see
    /// the documentation).
    #[arg(long, value_name = "FILE")]
    pub(crate) registries: Option<PathBuf>,

    /// Most bytes of images in the master's own registry.
    #[arg(long, value_name = "BYTES", default_value = "10Gi", value_parser = bytes)]
    pub(crate) registry_quota: u64,

    /// Most bytes of other registries' images that are kept for nodes which cannot
    /// reach those.
    #[arg(long, value_name = "BYTES", default_value = "2Gi", value_parser = bytes)]
    pub(crate) image_cache: u64,

    /// Most bytes of compiled modules that are kept.
    #[arg(long, value_name = "BYTES", default_value = "1Gi", value_parser = bytes)]
    pub(crate) artifact_cache: u64,

    /// Least severe log lines on standard error: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "PINNACE_LOG")]
    pub(crate) log: tracing::Level,
}

impl Config {
    /// Where addresses of Services come from.
    ///
    /// # Errors
    /// Where it is no network, or one that shares addresses with the pods'.
    pub(crate) fn service_ranges(&self) -> Result<Ranges, String> {
        let read = |flag: &str, text: &str| {
            text.parse::<Cidr>().map_err(|error| format!("{flag} {text:?}: {error}"))
        };
        let pods = read("--pod-cidr", &self.pod_cidr)?;
        let services = read("--service-cidr", &self.service_cidr)?;
        if pods.overlaps(&services) {
            return Err(format!(
                "--pod-cidr {pods} and --service-cidr {services} overlap: an address would be a \
                 pod's and a Service's; choose two networks that share none"
            ));
        }
        Ranges::new(services).map_err(|error| format!("--service-cidr {services}: {error}"))
    }
}

/// How often a node is heard from, for links of different price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinkProfile {
    /// Every 10 s: a local network.
    Lan,
    /// Every 60 s.
    Wan,
    /// Every 300 s: a metered link.
    Cellular,
}

/// A host, and maybe the port under which nodes reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Advertise {
    pub(crate) host: String,
    pub(crate) node_port: Option<u16>,
}

/// A number of bytes, as Kubernetes writes them: `500Mi`, `2Gi`, `1000000`.
fn bytes(text: &str) -> Result<u64, String> {
    let quantity: api::quantity::Quantity =
        text.parse().map_err(|_| format!("{text:?} is not a number of bytes, such as 10Gi"))?;
    let bytes = u64::try_from(quantity.units()).ok().filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| format!("{text:?} is not a number of bytes above 0"))
}

impl std::str::FromStr for Advertise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = match text.rsplit_once(':') {
            // An IPv6 address without brackets holds more than one colon.
            Some((host, _)) if host.contains(':') && !host.ends_with(']') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_name = |host: &str| {
            host.len() <= 253
                && host.split('.').all(|label| {
                    !label.is_empty()
                        && label.len() <= 63
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                })
        };
        if host.parse::<std::net::IpAddr>().is_err() && !is_name(host) {
            return Err(format!("{text:?} is neither an address nor a host name"));
        }
        let node_port = match port {
            None => None,
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err(format!("{port:?} is not a port")),
                Ok(port) => Some(port),
            },
        };
        Ok(Self { host: host.to_owned(), node_port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_pods_and_services_share_no_address() {
        let check = |pods: &str, services: &str, expected: &str| {
            let config = Config::parse_from([
                "pinnace-master",
                "--data-dir",
                "x",
                "--pod-cidr",
                pods,
                "--service-cidr",
                services,
            ]);
            let ranges = config.service_ranges();
            assert_eq!(ranges.map_or_else(|error| error, |_| String::new()), expected);
        };
        check("10.42.0.0/16", "10.43.0.0/16", "");
        check("10.42.0.0/16", "fd00::/108", "");
        for (pods, services) in [("10.0.0.0/8", "10.43.0.0/16"), ("10.43.128.0/20", "10.43.0.0/16")]
        {
            let expected = format!(
                "--pod-cidr {pods} and --service-cidr {services} overlap: an address would be a \
                 pod's and a Service's; choose two networks that share none"
            );
            check(pods, services, &expected);
        }
        check(
            "10.42.0.0/16",
            "10.43.0.1/16",
            "--service-cidr \"10.43.0.1/16\": \"10.43.0.1/16\" is not the first address of its \
             network: use 10.43.0.0/16",
        );
        check(
            "10.42.0.0/16",
            "10.43.0.0/30",
            "--service-cidr 10.43.0.0/30: 10.43.0.0/30 is too small for Services: use one of at \
             least 16 addresses",
        );
    }

    #[test]
    fn advertised_hosts() {
        let check = |text: &str, expected: Result<(&str, Option<u16>), &str>| {
            let actual = text.parse::<Advertise>();
            let actual = actual.as_ref().map(|a| (a.host.as_str(), a.node_port));
            assert_eq!(actual.map_err(String::as_str), expected, "{text}");
        };
        check("10.0.0.1", Ok(("10.0.0.1", None)));
        check("pi.local:18883", Ok(("pi.local", Some(18883))));
        check("fd00::1", Ok(("fd00::1", None)));
        check("[fd00::1]:8883", Ok(("fd00::1", Some(8883))));
        check("pi:0", Err("\"0\" is not a port"));
        check("pi/x", Err("\"pi/x\" is neither an address nor a host name"));
        check("", Err("\"\" is neither an address nor a host name"));
    }
}
