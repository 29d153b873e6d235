//! The variables that name the Services of a pod's namespace, as the kubelet makes
//! them (`pkg/kubelet/envvars`, `getServiceEnvVarMap`). Pure; which of them a
//! container gets beside its own is [`crate::env`]'s.
//!
//! ```text
//! REDIS_PRIMARY_SERVICE_HOST=10.43.0.11        REDIS_PRIMARY_PORT=tcp://10.43.0.11:6379
//! REDIS_PRIMARY_SERVICE_PORT=6379              REDIS_PRIMARY_PORT_6379_TCP=tcp://10.43.0.11:6379
//! REDIS_PRIMARY_SERVICE_PORT_DB=6379           …_TCP_PROTO=tcp, …_TCP_PORT=6379, …_TCP_ADDR=10.43.0.11
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use wire::network::ServiceV1;
use wire::pod::ProtocolV1;

/// Where the Service of the API is.
const MASTER_NAMESPACE: &str = "default";
/// Its name.
const MASTER_SERVICE: &str = "kubernetes";

/// The variables of a container in `namespace`, sorted by name. The API's Service is
/// always among them, the others with `service_links`.
///
/// A Service without an address of its own has none. Where two Services make the
/// same name, that of the later Service counts, in the order of their names.
pub fn variables<'a>(
    services: impl IntoIterator<Item = &'a ServiceV1>,
    namespace: &str,
    service_links: bool,
) -> Vec<(String, String)> {
    let mut named: BTreeMap<&str, (&ServiceV1, IpAddr)> = BTreeMap::new();
    for service in services {
        let Some(address) = service.cluster_ips.first() else { continue };
        let is_own = service.namespace == namespace && service_links;
        let is_master = service.namespace == MASTER_NAMESPACE && service.name == MASTER_SERVICE;
        // A Service of the namespace that has the name, too, counts more.
        if is_own || (is_master && !named.contains_key(MASTER_SERVICE)) {
            named.insert(&service.name, (service, *address));
        }
    }
    let mut all = BTreeMap::new();
    for (service, address) in named.into_values() {
        add(service, address, &mut all);
    }
    all.into_iter().collect()
}

fn add(service: &ServiceV1, address: IpAddr, into: &mut BTreeMap<String, String>) {
    let Some(first) = service.ports.first() else { return };
    let prefix = variable(&service.name);
    let mut set = |name: String, value: String| {
        into.insert(name, value);
    };
    set(format!("{prefix}_SERVICE_HOST"), address.to_string());
    set(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
        set(format!("{prefix}_SERVICE_PORT_{}", variable(&port.name)), port.port.to_string());
    }
    // As Docker's links once were.
    let url = |protocol: &str, port| format!("{protocol}://{}", SocketAddr::new(address, port));
    set(format!("{prefix}_PORT"), url(protocol(first.protocol), first.port));
    for port in &service.ports {
        let protocol = protocol(port.protocol);
        let of_port = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        set(of_port.clone(), url(protocol, port.port));
        set(format!("{of_port}_PROTO"), protocol.to_owned());
        set(format!("{of_port}_PORT"), port.port.to_string());
        set(format!("{of_port}_ADDR"), address.to_string());
    }
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

fn protocol(protocol: ProtocolV1) -> &'static str {
    match protocol {
        ProtocolV1::Tcp => "tcp",
        ProtocolV1::Udp => "udp",
        ProtocolV1::Sctp => "sctp",
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use wire::network::{ServicePortV1, TargetV1};

    use super::*;

    fn service(
        namespace: &str,
        name: &str,
        addresses: &[&str],
        ports: &[(&str, ProtocolV1, u16)],
    ) -> ServiceV1 {
        let port = |(name, protocol, port): &(&str, ProtocolV1, u16)| ServicePortV1 {
            name: (*name).to_owned(),
            protocol: *protocol,
            port: *port,
            target: TargetV1::Number(1),
            node_port: 0,
        };
        ServiceV1 {
            namespace: namespace.into(),
            name: name.into(),
            cluster_ips: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ports: ports.iter().map(port).collect(),
            ..ServiceV1::default()
        }
    }

    fn services() -> Vec<ServiceV1> {
        use ProtocolV1::{Tcp, Udp};
        vec![
            service("default", "kubernetes", &["10.43.0.1"], &[("https", Tcp, 443)]),
            service("default", "redis-primary", &["10.43.0.11"], &[("", Tcp, 6379)]),
            service("prod", "dns", &["10.43.0.12"], &[("dns", Udp, 53), ("dns-tcp", Tcp, 53)]),
            service("prod", "headless", &[], &[("http", Tcp, 80)]),
            service("prod", "six", &["fd43::5", "10.43.0.13"], &[("http", Tcp, 80)]),
        ]
    }

    fn check(services: &[ServiceV1], namespace: &str, service_links: bool, expected: &Expect) {
        let text: String = variables(services, namespace, service_links)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        expected.assert_eq(&text);
    }

    #[test]
    fn the_api_has_the_names_that_every_client_library_reads() {
        let expected = expect![[r#"
            KUBERNETES_PORT=tcp://10.43.0.1:443
            KUBERNETES_PORT_443_TCP=tcp://10.43.0.1:443
            KUBERNETES_PORT_443_TCP_ADDR=10.43.0.1
            KUBERNETES_PORT_443_TCP_PORT=443
            KUBERNETES_PORT_443_TCP_PROTO=tcp
            KUBERNETES_SERVICE_HOST=10.43.0.1
            KUBERNETES_SERVICE_PORT=443
            KUBERNETES_SERVICE_PORT_HTTPS=443
        "#]];
        // Without links, and in a namespace without Services.
        check(&services(), "prod", false, &expected);
        check(&services(), "default", false, &expected);
        check(&services(), "other", true, &expected);
    }

    #[test]
    fn services_of_the_namespace_have_names_in_capitals() {
        check(
            &services()[1..],
            "default",
            true,
            &expect![[r#"
                REDIS_PRIMARY_PORT=tcp://10.43.0.11:6379
                REDIS_PRIMARY_PORT_6379_TCP=tcp://10.43.0.11:6379
                REDIS_PRIMARY_PORT_6379_TCP_ADDR=10.43.0.11
                REDIS_PRIMARY_PORT_6379_TCP_PORT=6379
                REDIS_PRIMARY_PORT_6379_TCP_PROTO=tcp
                REDIS_PRIMARY_SERVICE_HOST=10.43.0.11
                REDIS_PRIMARY_SERVICE_PORT=6379
            "#]],
        );
    }

    #[test]
    fn every_port_has_its_own_and_a_headless_service_has_none() {
        check(
            &services()[1..],
            "prod",
            true,
            &expect![[r#"
                DNS_PORT=udp://10.43.0.12:53
                DNS_PORT_53_TCP=tcp://10.43.0.12:53
                DNS_PORT_53_TCP_ADDR=10.43.0.12
                DNS_PORT_53_TCP_PORT=53
                DNS_PORT_53_TCP_PROTO=tcp
                DNS_PORT_53_UDP=udp://10.43.0.12:53
                DNS_PORT_53_UDP_ADDR=10.43.0.12
                DNS_PORT_53_UDP_PORT=53
                DNS_PORT_53_UDP_PROTO=udp
                DNS_SERVICE_HOST=10.43.0.12
                DNS_SERVICE_PORT=53
                DNS_SERVICE_PORT_DNS=53
                DNS_SERVICE_PORT_DNS_TCP=53
                SIX_PORT=tcp://[fd43::5]:80
                SIX_PORT_80_TCP=tcp://[fd43::5]:80
                SIX_PORT_80_TCP_ADDR=fd43::5
                SIX_PORT_80_TCP_PORT=80
                SIX_PORT_80_TCP_PROTO=tcp
                SIX_SERVICE_HOST=fd43::5
                SIX_SERVICE_PORT=80
                SIX_SERVICE_PORT_HTTP=80
            "#]],
        );
    }

    #[test]
    fn a_service_of_the_namespace_counts_more_than_the_api_of_the_same_name() {
        let own = service("prod", "kubernetes", &["10.43.9.9"], &[("", ProtocolV1::Tcp, 1)]);
        let host = |services: &[ServiceV1], service_links| {
            let found = variables(services, "prod", service_links);
            found.into_iter().find(|(name, _)| name == "KUBERNETES_SERVICE_HOST").unwrap().1
        };
        let mut both = vec![services().remove(0), own];
        assert_eq!(host(&both, true), "10.43.9.9");
        assert_eq!(host(&both, false), "10.43.0.1");
        both.reverse();
        assert_eq!(host(&both, true), "10.43.9.9");
    }
}
