//! Who may do what: users, nodes, nobody, and boards that want to join.

use std::sync::Arc;
use std::time::Duration;

use edge_agent::identity::Identity;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use wire::topic::{Channel, down_filter};

use crate::harness::World;
use crate::harness::api::Api;
use crate::harness::network::HUB;
use crate::harness::process::read_lossy;
use crate::harness::wait::{block_on, check, until};

#[test]
fn without_a_certificate_only_health_is_told() {
    let world = World::master_only();
    let nobody = Api::nobody(&world.master.kubeconfig());
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(nobody.get(path).status, 200, "{path}");
    }
    for path in ["/api/v1/namespaces", "/api/v1/namespaces/kube-system/secrets", "/api/v1/nodes"] {
        let answer = nobody.get(path);
        assert!([401, 403].contains(&answer.status), "{path}: {} {}", answer.status, answer.text);
        assert_eq!(answer.body["kind"], "Status", "{}", answer.text);
    }
    let backup = nobody.get("/pinnace/v1/backup");
    assert!([401, 403].contains(&backup.status), "{} {}", backup.status, backup.text);
}

#[test]
fn a_certificate_of_another_authority_is_refused_whatever_it_says() {
    let world = World::master_only();
    let (certificate, key) = forged("admin", "system:masters");
    let stranger = Api::holder(&world.master.kubeconfig(), &certificate, &key);
    match stranger.send(http::Method::GET, "/api/v1/namespaces", "", String::new()) {
        Err(_) => (),
        Ok(answer) => assert_eq!(answer.status, 401, "{}", answer.text),
    }
}

/// A certificate for `name` in `group`, of an authority of its own.
fn forged(name: &str, group: &str) -> (String, String) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "pinnace-ca");
    let issuer = Issuer::new(authority, KeyPair::generate().unwrap());
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name.push(DnType::CommonName, name);
    leaf.distinguished_name.push(DnType::OrganizationName, group);
    let key = KeyPair::generate().unwrap();
    (leaf.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_node_s_certificate_opens_nothing_but_discovery_on_the_api_port() {
    let world = World::with_nodes(1);
    let identity = world.agents[0].state_dir().join("identity");
    let read = |file: &str| read_lossy(&identity.join(file));
    let node = Api::holder(&world.master.kubeconfig(), &read("certificate.pem"), &read("key.pem"));
    for path in ["/version", "/api", "/apis", "/api/v1", "/apis/apps/v1"] {
        assert_eq!(node.get(path).status, 200, "{path}");
    }
    for path in [
        "/api/v1/secrets",
        "/api/v1/namespaces/kube-system/secrets",
        "/api/v1/pods",
        "/apis/apps/v1/deployments",
    ] {
        let message = node.get(path).refused(403, "Forbidden");
        assert!(message.contains("system:node:node-1") || message.contains("node-1"), "{message}");
    }
    let message = node.delete("/api/v1/nodes/node-1").refused(403, "Forbidden");
    assert!(message.contains("nodes"), "{message}");
}

#[test]
fn the_key_of_a_board_is_its_own_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::with_nodes(1);
    let identity = world.agents[0].state_dir().join("identity");
    let mode =
        |file: &str| std::fs::metadata(identity.join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("key.pem")), (0o700, 0o600));
}

#[test]
fn tokens_that_are_wrong_used_or_expired_are_refused_in_both_logs() {
    let mut world = World::with_nodes(0);
    let at = world.add_board("board");
    let join = |world: &World, token: &str| world.agents[at].join(&world.network, token).failed();
    let both_say = |world: &World, agent_said: &str, needle: &str| {
        assert!(agent_said.contains(needle), "the board: {agent_said}");
        let log = world.master.log();
        assert!(log.contains(needle), "the master: {log}");
        assert!(!world.agents[at].state_dir().join("identity").exists());
    };

    // Expired.
    let token = world.token_with(|token| token.expires_s = 1_000_000_000);
    let said = join(&world, &token);
    both_say(&world, &said, "has expired");

    // Deleted.
    let token = world.token();
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    for secret in world.api.list(secrets) {
        let name = secret["metadata"]["name"].as_str().unwrap();
        world.api.delete(&format!("{secrets}/{name}")).ok();
    }
    let said = join(&world, &token);
    both_say(&world, &said, "is unknown");

    // A wrong secret, under an id that exists.
    let token = world.token_with(|token| token.secret = [7; 20]);
    let said = join(&world, &token);
    both_say(&world, &said, "the proof does not fit");

    // For another name.
    let token = world.token_with(|token| token.node_names = vec!["other".to_owned()]);
    let said = join(&world, &token);
    both_say(&world, &said, "is not for a node named");

    // Damaged: no need to ask the master.
    let good = world.token();
    let said = join(&world, &good[..good.len() - 3]);
    assert!(said.contains("pinnace token create"), "{said}");
    assert!(!said.contains(&good[4..20]), "a token is secret: {said}");

    // Used up.
    world.agents[at].join(&world.network, &good).ok();
    let second = world.add_board("second");
    let said = world.agents[second].join(&world.network, &good).failed();
    assert!(said.contains("is used up"), "{said}");
    assert!(world.master.log().contains("is used up"));

    // No secret of any of them is in a log.
    let log = world.master.log();
    assert!(!log.contains(&good[4..]), "{log}");
}

#[test]
fn a_token_of_another_cluster_is_refused_by_the_board() {
    let mut world = World::with_nodes(0);
    let at = world.add_board("board");
    let mut token = wire::enrol::TokenV1::from_text(&world.token()).unwrap();
    token.ca_sha256 = [9; 32];
    let said = world.agents[at].join(&world.network, &token.to_text()).failed();
    assert!(said.to_lowercase().contains("certificate") || said.contains("CA"), "{said}");
    assert!(!world.agents[at].state_dir().join("identity").exists());
}

#[test]
fn a_token_from_the_command_line_enrols_a_board_with_labels() {
    let mut world = World::with_nodes(0);
    let at = world.add_board("board");
    let token = world.pinnace("token create --ttl 10m --node-name board --labels site=north").ok();
    assert_eq!(token.lines().count(), 1, "only the token is on standard output: {token}");
    let listed = world.pinnace("token list").ok();
    assert!(!listed.contains(token.trim()), "{listed}");
    world.agents[at].join(&world.network, token.trim()).ok();
    world.start_agent(at);
    world.node_becomes_ready("board");
    let node = world.api.get("/api/v1/nodes/board").ok();
    assert_eq!(node["metadata"]["labels"]["site"], "north");
    let nodes = world.pinnace("get nodes").ok();
    assert!(nodes.lines().any(|l| l.contains("board") && l.contains("Ready")), "{nodes}");
}

#[test]
fn a_node_that_publishes_for_another_is_refused_and_reported() {
    let mut world = World::with_nodes(2);
    // Its identity, without its agent: a board that was broken into.
    world.agents[0].kill();
    let identity = Identity::load(&world.agents[0].state_dir()).unwrap();
    let (_, port) = world
        .master
        .node_endpoint()
        .rsplit_once(':')
        .map(|(h, p)| (h.to_owned(), p.to_owned()))
        .unwrap();
    let mut roots = RootCertStore::empty();
    for ca in &identity.cas {
        roots.add(CertificateDer::from(ca.to_vec())).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .unwrap();
    tls.alpn_protocols = vec![wire::ALPN_MQTT.to_vec()];
    let tls = Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls)));

    // Under another's name it does not even connect.
    let told = converse("node-2", &port, &tls, "pinnace/1/n/node-2/u/r");
    assert!(!told.contains("connected"), "{told}");
    // Under its own it may not publish for another, nor listen to it.
    let told = converse("node-1", &port, &tls, &Channel::Report.of("node-2"));
    assert!(told.contains("connected"), "{told}");
    assert!(told.contains("subscription refused"), "{told}");
    assert!(told.contains("publication refused") || told.contains("closed"), "{told}");

    until("the master's log names it", || {
        let log = world.master.log();
        let line = log.lines().find(|l| {
            l.contains("WARN") && l.contains("node-1") && l.contains("pinnace/1/n/node-2/u/r")
        });
        check(line.is_some(), || log.clone())
    });
    world.event_appears("node-1", &["pinnace/1/n/node-2"]);
    // The one it spoke for has noticed nothing.
    assert_eq!(world.readiness("node-2"), "True");
}

/// Connects, subscribes to node-2's topics, publishes on `topic`; tells what came of it.
fn converse(client_id: &str, port: &str, tls: &Transport, topic: &str) -> String {
    let mut options = MqttOptions::new(client_id, HUB, port.parse().unwrap());
    options.set_transport(tls.clone()).set_keep_alive(Duration::from_secs(30));
    options.set_clean_start(true);
    let talk = async {
        let (client, mut events) = AsyncClient::new(options, 10);
        let mut told = String::new();
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    told.push_str("connected\n");
                    client.subscribe(down_filter("node-2"), QoS::AtLeastOnce).await.unwrap();
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    let granted = format!("{:?}", ack.return_codes).contains("Success");
                    told.push_str(if granted { "subscribed\n" } else { "subscription refused\n" });
                    client.publish(topic, QoS::AtLeastOnce, false, "x").await.unwrap();
                }
                Ok(Event::Incoming(Packet::PubAck(ack))) => {
                    let taken = format!("{:?}", ack.reason) == "Success";
                    told.push_str(if taken { "published\n" } else { "publication refused\n" });
                    return told;
                }
                Ok(_) => (),
                Err(error) => {
                    told.push_str(&format!("closed: {error}\n"));
                    return told;
                }
            }
        }
    };
    block_on(async { tokio::time::timeout(Duration::from_secs(30), talk).await })
        .unwrap_or_else(|_| "nothing happened".to_owned())
}
