//! The bytes of every message, frozen: a program of last year and one of next
//! year read each other's messages. `UPDATE_EXPECT=1` writes the bytes of a
//! *new* kind to `golden.txt`; from the first release on, a line that is there
//! never changes.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by where it panics")]

use expect_test::expect_file;
use pinnace_wire::account::{PodTokensV1, TokenV1, TokensV1, TokensWantedV1};
use pinnace_wire::command::{CommandEnvelopeV1, CommandV1, LogsV1, StreamV1};
use pinnace_wire::encoded::{EncodedItem, encoded_delta, encoded_snapshot};
use pinnace_wire::enrol::{JoinRequestV1, JoinResponseV1};
use pinnace_wire::envelope::{
    BLOCK_BYTES_MAX, Decoded, Envelope, EnvelopeError, Kind, Limit, Message, decode,
    decode_assembled, encode,
};
use pinnace_wire::network::{
    ClusterV1, DistributionV1, EndpointPortV1, EndpointV1, EndpointsV1, OperatorV1, PeerV1,
    PolicyPeerV1, PolicyPortV1, PolicyRuleV1, PolicyV1, PortsV1, RequirementV1, SelectorV1,
    ServicePortV1, ServiceV1, TargetV1,
};
use pinnace_wire::node::{
    AppliedV1, GoneV1, HeartbeatV1, HelloV1, NodeImageV1, NodeInfoV1, PartAckV1, StaticPodV1,
    UpToDateV1, WasmTargetV1,
};
use pinnace_wire::pod::{
    ContainerV1, DnsV1, DownwardItemV1, EnvFromV1, EnvV1, EnvValueV1, HandlerV1, HostAliasV1,
    HostPathKindV1, KeyPathV1, KeysV1, LifecycleV1, MountV1, NamespacesV1, PodSecurityV1, PodV1,
    PortV1, ProbeV1, ProbesV1, ProjectionV1, ProtocolV1, PullPolicyV1, ResourcesV1,
    RestartPolicyV1, RuntimeV1, SeccompV1, SecurityV1, SourceV1, StdioV1, TerminationMessageV1,
    VolumeSourceV1, VolumeV1,
};
use pinnace_wire::set::{
    BodyV1, DeltaV1, ImagePolicyV1, ImageRuleV1, ItemV1, NodeConfigV1, PartV1, PrepullV1,
    SnapshotV1,
};
use pinnace_wire::status::{
    ContainerStatusV1, EventV1, PhaseV1, PodStatusV1, ReportAckV1, ReportV1, StateV1, TerminatedV1,
};
use proptest::prelude::*;

const EPOCH: u128 = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff;
const BOOT: [u8; 16] = [0xb0; 16];

fn pod() -> PodV1 {
    PodV1 {
        uid: [1; 16],
        namespace: "default".into(),
        name: "web".into(),
        labels: vec![("app".into(), "web".into())],
        annotations: vec![],
        hostname: "web".into(),
        fqdn: String::new(),
        service_account: "default".into(),
        init_containers: vec![ContainerV1 {
            restart_policy: Some(RestartPolicyV1::Always),
            ..ContainerV1::new("proxy", "registry/proxy:1")
        }],
        ephemeral_containers: vec![ContainerV1 {
            target: "main".into(),
            ..ContainerV1::new("debug", "registry/busybox:1")
        }],
        containers: vec![ContainerV1 {
            name: "main".into(),
            image: "registry/web:1".into(),
            digest: "sha256:00".into(),
            runtime: RuntimeV1::Wasm,
            pull_policy: PullPolicyV1::IfNotPresent,
            command: vec!["/bin/web".into()],
            args: vec!["-v".into()],
            working_dir: "/".into(),
            env_from: vec![EnvFromV1 {
                prefix: "P_".into(),
                source: SourceV1::ConfigMap("settings".into()),
                optional: true,
            }],
            env: vec![
                EnvV1 { name: "A".into(), value: EnvValueV1::Literal("1".into()) },
                EnvV1 {
                    name: "B".into(),
                    value: EnvValueV1::Key {
                        source: SourceV1::Secret("s".into()),
                        key: "k".into(),
                        optional: false,
                    },
                },
                EnvV1 { name: "C".into(), value: EnvValueV1::Field("metadata.name".into()) },
                EnvV1 {
                    name: "D".into(),
                    value: EnvValueV1::Resource {
                        container: String::new(),
                        resource: "limits.memory".into(),
                        divisor_millis: 1000,
                    },
                },
            ],
            mounts: vec![MountV1 { read_only: true, ..MountV1::new("keys", "/etc/keys") }],
            resources: ResourcesV1 {
                cpu_request_millis: 10,
                cpu_limit_millis: 500,
                memory_request_bytes: 1 << 20,
                memory_limit_bytes: 64 << 20,
                disk_request_bytes: 1 << 10,
                disk_limit_bytes: 1 << 30,
            },
            devices: vec![("pinnace.io/gpio".into(), 1)],
            restart_policy: Some(RestartPolicyV1::Never),
            target: String::new(),
            probes: ProbesV1 {
                startup: None,
                liveness: Some(probe(HandlerV1::Exec(vec!["/bin/ok".into()]))),
                readiness: Some(probe(HandlerV1::Http {
                    host: String::new(),
                    port: 80,
                    path: "/ready".into(),
                    https: true,
                    headers: vec![("a".into(), "b".into())],
                })),
            },
            lifecycle: LifecycleV1 {
                post_start: Some(HandlerV1::Tcp { host: String::new(), port: 80 }),
                pre_stop: Some(HandlerV1::Sleep(3)),
                stop_signal: Some(2),
            },
            stdio: StdioV1 { stdin: true, stdin_once: false, tty: true },
            termination_message: TerminationMessageV1 { path: "/end".into(), or_logs: true },
            security: SecurityV1 {
                run_as_user: Some(1000),
                run_as_group: None,
                run_as_non_root: true,
                read_only_root: true,
                no_new_privileges: true,
                capabilities_add: vec!["NET_BIND_SERVICE".into()],
                capabilities_drop: vec!["ALL".into()],
                privileged: false,
                seccomp: SeccompV1::Localhost("a.json".into()),
                unmasked_proc: false,
            },
            ports: vec![PortV1 {
                name: "http".into(),
                port: 80,
                protocol: ProtocolV1::Tcp,
                host_port: 8080,
                host_ip: "192.0.2.1".into(),
            }],
            ext: vec![],
        }],
        volumes: vec![
            VolumeV1 {
                name: "keys".into(),
                source: VolumeSourceV1::Keys {
                    source: SourceV1::Secret("s".into()),
                    items: vec![KeyPathV1 { key: "k".into(), path: "k".into(), mode: Some(0o400) }],
                    default_mode: 0o644,
                    optional: false,
                },
            },
            VolumeV1 {
                name: "tmp".into(),
                source: VolumeSourceV1::EmptyDir { memory: true, limit_bytes: 1 << 20 },
            },
            VolumeV1 {
                name: "host".into(),
                source: VolumeSourceV1::HostPath {
                    path: "/dev/ttyS0".into(),
                    kind: HostPathKindV1::CharDevice,
                },
            },
            VolumeV1 {
                name: "made".into(),
                source: VolumeSourceV1::Made { volume: "pvc-1".into(), read_only: true },
            },
            VolumeV1 { name: "open".into(), source: VolumeSourceV1::Waits("why".into()) },
            VolumeV1 {
                name: "all".into(),
                source: VolumeSourceV1::Projected {
                    sources: vec![
                        ProjectionV1::Token {
                            audience: String::new(),
                            expiration_s: 3600,
                            path: "token".into(),
                        },
                        ProjectionV1::Downward(vec![DownwardItemV1 {
                            path: "labels".into(),
                            mode: None,
                            value: EnvValueV1::Field("metadata.labels".into()),
                        }]),
                    ],
                    default_mode: 0o444,
                },
            },
        ],
        namespaces: NamespacesV1 { host_pid: true, ..NamespacesV1::default() },
        security: PodSecurityV1 {
            fs_group: Some(2000),
            fs_group_on_root_mismatch: true,
            supplemental_groups: vec![20],
            sysctls: vec![("net.core.somaxconn".into(), "64".into())],
        },
        host_aliases: vec![HostAliasV1 { ip: "10.0.0.1".into(), names: vec!["db".into()] }],
        dns: DnsV1 { nameservers: vec!["10.0.0.2".into()], ..DnsV1::default() },
        is_gated: false,
        service_links: true,
        pull_secrets: vec!["registry".into()],
        priority: 1000,
        active_deadline_s: Some(600),
        restart_policy: RestartPolicyV1::OnFailure,
        termination_grace_s: 30,
        ended: Some(PhaseV1::Failed),
        deletion_grace_s: Some(5),
        ext: vec![(7, vec![1, 2])],
    }
}

fn probe(handler: HandlerV1) -> ProbeV1 {
    ProbeV1 {
        handler,
        initial_delay_s: 0,
        timeout_s: 1,
        period_s: 10,
        success_threshold: 1,
        failure_threshold: 3,
        termination_grace_s: None,
    }
}

fn status() -> PodStatusV1 {
    let ended = TerminatedV1 {
        exit_code: 137,
        reason: "OOMKilled".into(),
        message: String::new(),
        started_ms: 1,
        finished_ms: 2,
        container_id: "c0".into(),
    };
    let container = |state| ContainerStatusV1 {
        name: "main".into(),
        image: "registry/web:1".into(),
        image_id: "sha256:00".into(),
        runtime: RuntimeV1::Oci,
        container_id: "c1".into(),
        restarts: 1,
        started: true,
        ready: true,
        state,
        last: Some(ended.clone()),
    };
    PodStatusV1 {
        uid: [1; 16],
        namespace: "default".into(),
        name: "web".into(),
        generation: 42,
        phase: PhaseV1::Running,
        reason: String::new(),
        message: String::new(),
        pod_ip: "10.42.0.2".into(),
        started_ms: 1_700_000_000_000,
        init_containers: vec![],
        ephemeral_containers: vec![],
        containers: vec![
            container(StateV1::Running { started_ms: 3 }),
            container(StateV1::Waiting { reason: "ErrImagePull".into(), message: "no".into() }),
            container(StateV1::Terminated(ended.clone())),
        ],
        terminated: false,
    }
}

fn service() -> ServiceV1 {
    ServiceV1 {
        namespace: "default".into(),
        name: "web".into(),
        cluster_ips: vec![[10, 43, 0, 7].into(), "fd43::7".parse().unwrap()],
        external_name: String::new(),
        external_ips: vec![[192, 0, 2, 7].into()],
        ports: vec![ServicePortV1 {
            name: "http".into(),
            protocol: ProtocolV1::Tcp,
            port: 80,
            target: TargetV1::Name("http".into()),
            node_port: 30080,
        }],
        selector: vec![("app".into(), "web".into())],
        affinity_s: 10800,
        internal_local: false,
        external_local: true,
        health_port: 30500,
        publish_not_ready: false,
        distribution: DistributionV1::Node,
        is_api: false,
        ext: vec![],
    }
}

fn endpoints() -> EndpointsV1 {
    EndpointsV1 {
        namespace: "default".into(),
        service: "web".into(),
        ports: vec![EndpointPortV1 { name: "http".into(), protocol: ProtocolV1::Udp, port: 8080 }],
        endpoints: vec![EndpointV1 {
            addresses: vec![[10, 42, 0, 2].into()],
            hostname: "web-0".into(),
            node: "pi".into(),
            zone: "barn".into(),
            pod: [1; 16],
            ready: true,
            serving: true,
            terminating: false,
        }],
        ext: vec![],
    }
}

fn peer() -> PeerV1 {
    PeerV1 {
        node: "pi".into(),
        pod_cidrs: vec!["10.42.0.0/24".into()],
        addresses: vec![[192, 0, 2, 8].into()],
        port: 7443,
        zone: "barn".into(),
        ext: vec![],
    }
}

fn policy() -> PolicyV1 {
    let pods = SelectorV1 {
        requirements: vec![RequirementV1 {
            key: "app".into(),
            operator: OperatorV1::NotIn,
            values: vec!["web".into()],
        }],
    };
    let rule = PolicyRuleV1 {
        peers: Some(vec![
            PolicyPeerV1::Pods {
                namespaces: vec!["default".into()],
                pods: pods.clone(),
                addresses: vec![[10, 42, 0, 3].into()],
            },
            PolicyPeerV1::Block {
                cidr: "192.0.2.0/24".into(),
                except: vec!["192.0.2.1/32".into()],
            },
        ]),
        ports: Some(vec![
            PolicyPortV1 { protocol: ProtocolV1::Tcp, ports: PortsV1::Any },
            PolicyPortV1 { protocol: ProtocolV1::Tcp, ports: PortsV1::Range(80, 90) },
            PolicyPortV1 {
                protocol: ProtocolV1::Tcp,
                ports: PortsV1::Named("http".into(), vec![([10, 42, 0, 3].into(), 80)]),
            },
        ]),
    };
    PolicyV1 {
        namespace: "default".into(),
        name: "in".into(),
        pods,
        ingress: Some(vec![rule]),
        egress: None,
        ext: vec![],
    }
}

fn samples() -> Vec<Message> {
    let config = NodeConfigV1 {
        pod_cidr: "10.42.3.0/24".into(),
        heartbeat_s: 60,
        artifact_key: [5; 32],
        hold_unknown: false,
        image_policies: vec![ImagePolicyV1 {
            namespace: "default".into(),
            rule: ImageRuleV1::Signature("key".into()),
        }],
        prepull: vec![PrepullV1 {
            namespace: "default".into(),
            image: "registry/web:1".into(),
            pull_secrets: vec!["registry".into()],
        }],
        remove_volumes: vec!["pvc-2".into()],
        cluster: ClusterV1 {
            pod_cidrs: vec!["10.42.0.0/16".into()],
            service_cidrs: vec!["10.43.0.0/16".into()],
            dns: vec![[10, 43, 0, 10].into()],
            domain: "cluster.local".into(),
            more_pod_cidrs: vec!["fd42::3:0/112".into()],
            zone: "barn".into(),
        },
        ext: vec![],
    };
    let keys = KeysV1 {
        namespace: "default".into(),
        source: SourceV1::ConfigMap("settings".into()),
        data: vec![("k".into(), vec![1, 2, 3])],
        ext: vec![],
    };
    let item = |uid, body| ItemV1 { uid: [uid; 16], generation: 42, body };
    let items = vec![
        item(0, BodyV1::Node(config)),
        item(1, BodyV1::Pod(Box::new(pod()))),
        item(2, BodyV1::Keys(keys)),
        item(3, BodyV1::Service(Box::new(service()))),
        item(4, BodyV1::Endpoints(endpoints())),
        item(5, BodyV1::Peer(peer())),
        item(6, BodyV1::Policy(policy())),
    ];
    let command = |command| CommandEnvelopeV1 { epoch: EPOCH, boot_id: BOOT, counter: 3, command };
    let logs = LogsV1 {
        uid: [1; 16],
        container: "main".into(),
        follow: true,
        previous: false,
        timestamps: true,
        tail_lines: Some(10),
        since_ms: None,
        limit_bytes: Some(1 << 20),
    };
    vec![
        Message::Snapshot(SnapshotV1 { epoch: EPOCH, revision: 300, items: items.clone() }),
        Message::Delta(DeltaV1 {
            epoch: EPOCH,
            base_revision: 299,
            revision: 300,
            upsert: items[..1].to_vec(),
            remove: vec![[9; 16]],
        }),
        Message::Part(PartV1 { sha256: [3; 32], index: 1, n_parts: 2, bytes: vec![1, 2, 3] }),
        Message::UpToDate(UpToDateV1 { epoch: EPOCH, revision: 300 }),
        Message::Command(command(CommandV1::Resync)),
        Message::Command(command(CommandV1::ReportAll)),
        Message::Command(command(CommandV1::OpenStream {
            ticket: [4; 16],
            stream: StreamV1::Logs(logs),
        })),
        Message::Command(command(CommandV1::RefreshTokens)),
        Message::ReportAck(ReportAckV1 { boot_id: BOOT, seq: 8 }),
        Message::Tokens(TokensV1 {
            boot_id: BOOT,
            pods: vec![
                PodTokensV1 {
                    pod: [1; 16],
                    tokens: vec![TokenV1 {
                        audience: String::new(),
                        expiration_s: 3607,
                        lifetime_s: 3607,
                        token: "a.b.c".into(),
                    }],
                    problem: String::new(),
                },
                PodTokensV1 { pod: [2; 16], tokens: vec![], problem: "no account".into() },
            ],
        }),
        Message::TokensWanted(TokensWantedV1 { boot_id: BOOT, pods: vec![[1; 16], [2; 16]] }),
        Message::Hello(HelloV1 {
            boot_id: BOOT,
            conn_seq: 2,
            hello_seq: 4,
            epoch: EPOCH,
            have_revision: 300,
            set_digest: [6; 16],
            report_acked: 7,
            command_counter: 9,
            proto_min: 1,
            proto_max: 1,
            caps: 0,
            info: NodeInfoV1 {
                agent_version: "0.1.0".into(),
                arch: "arm".into(),
                arch_variant: "v7".into(),
                kernel: "6.1".into(),
                os_image: "Debian".into(),
                machine_id: "m".into(),
                kernel_boot_id: "k".into(),
                hostname: "board".into(),
                address: "192.0.2.1".into(),
                more_addresses: vec![[192, 0, 2, 9].into()],
                tunnel_port: 7443,
                cpu_millis: 4000,
                memory_bytes: 1 << 30,
                disk_bytes: 1 << 34,
                pods_max: 110,
                resources: vec![("pinnace.io/gpio".into(), 1)],
                oci: true,
                wasm: Some(WasmTargetV1 {
                    engine: "48".into(),
                    target: "pulley32".into(),
                    profile: 1,
                }),
                board: "rpi3".into(),
                findings: vec![("MemoryCgroup".into(), "off".into())],
                images: vec![NodeImageV1 { names: vec!["registry/web:1".into()], size_bytes: 9 }],
                labels: vec![("zone".into(), "a".into())],
                static_pods: vec![StaticPodV1 { uid: [9; 16], manifest: "{}".into() }],
                storage_folder: "/var/lib/pinnace/storage".into(),
                removed_volumes: vec!["pvc-1".into()],
                ext: vec![],
            },
            running: vec![([1; 16], 42)],
        }),
        Message::Heartbeat(HeartbeatV1 {
            boot_id: BOOT,
            conn_seq: 2,
            epoch: EPOCH,
            revision: 300,
            report_seq: 8,
        }),
        Message::Applied(AppliedV1 { epoch: EPOCH, revision: 300, boot_id: BOOT }),
        Message::Report(ReportV1 {
            boot_id: BOOT,
            seq: 8,
            full: true,
            pods: vec![status()],
            events: vec![EventV1 {
                uid: [1; 16],
                namespace: "default".into(),
                name: "web".into(),
                container: "main".into(),
                warning: true,
                reason: "BackOff".into(),
                message: "back-off".into(),
                at_ms: 5,
            }],
            ext: vec![],
        }),
        Message::Gone(GoneV1 { boot_id: BOOT, conn_seq: 2 }),
        Message::PartAck(PartAckV1 { sha256: [3; 32], n_have: 1 }),
        Message::JoinRequest(JoinRequestV1 {
            token_id: "a1b2".into(),
            node: "board".into(),
            nonce: [2; 16],
            csr: vec![0x30, 0x00],
            mac: [8; 32],
        }),
        Message::JoinResponse(JoinResponseV1::Issued {
            certificate: vec![0x30, 0x01],
            ca: vec![0x30, 0x02],
            artifact_key: [5; 32],
            labels: vec![("zone".into(), "a".into())],
            mac: [8; 32],
        }),
        Message::JoinResponse(JoinResponseV1::Denied("token used up".into())),
    ]
}

fn bytes_of(message: &Message) -> Vec<u8> {
    match message {
        Message::Snapshot(body) => encode(body),
        Message::Delta(body) => encode(body),
        Message::Part(body) => encode(body),
        Message::UpToDate(body) => encode(body),
        Message::Command(body) => encode(body),
        Message::ReportAck(body) => encode(body),
        Message::Tokens(body) => encode(body),
        Message::TokensWanted(body) => encode(body),
        Message::Hello(body) => encode(body),
        Message::Heartbeat(body) => encode(body),
        Message::Applied(body) => encode(body),
        Message::Report(body) => encode(body),
        Message::Gone(body) => encode(body),
        Message::PartAck(body) => encode(body),
        Message::JoinRequest(body) => encode(body),
        Message::JoinResponse(body) => encode(body),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn the_bytes_of_every_message_are_frozen() {
    let lines: String = samples()
        .iter()
        .map(|message| format!("{:?} {}\n", message.kind(), hex(&bytes_of(message))))
        .collect();
    expect_file!["golden.txt"].assert_eq(&lines);
}

#[test]
fn frozen_bytes_read_as_the_message_they_were_made_from() {
    let golden = include_str!("golden.txt");
    assert_eq!(golden.lines().count(), samples().len());
    for (line, message) in golden.lines().zip(samples()) {
        let (name, hex) = line.split_once(' ').unwrap();
        assert_eq!(decode(&unhex(hex)), Ok(Decoded::Message(message)), "{name}");
    }
}

#[test]
fn items_encoded_one_by_one_make_the_same_bytes() {
    let Message::Snapshot(set) = samples().remove(0) else { panic!("the first sample") };
    for n_items in [0, 1, 3, 300] {
        let mut set = set.clone();
        set.items = set.items.iter().cycle().take(n_items).cloned().collect();
        let encoded: Vec<EncodedItem> = set.items.iter().map(EncodedItem::new).collect();
        assert_eq!(encoded_snapshot(set.epoch, set.revision, &encoded), encode(&set));
        let delta = DeltaV1 {
            epoch: EPOCH,
            base_revision: 299,
            revision: 300,
            upsert: set.items,
            remove: vec![[9; 16]; n_items],
        };
        assert_eq!(
            encoded_delta(EPOCH, 299, 300, &encoded, &delta.remove),
            encode(&delta),
            "{n_items}"
        );
    }
}

#[test]
fn every_kind_has_a_sample() {
    for kind in Kind::ALL {
        assert!(samples().iter().any(|message| message.kind() == *kind), "{kind:?}");
    }
}

#[test]
fn every_truncation_and_every_added_byte_is_an_error() {
    for message in samples() {
        let bytes = bytes_of(&message);
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_err(), "{:?} cut at {end}", message.kind());
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decode(&longer), Err(EnvelopeError::Trailing(message.kind(), 1)));
    }
}

#[test]
fn headers_are_checked_one_by_one() {
    let good = encode(&UpToDateV1 { epoch: 1, revision: 1 });
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        decode(&bytes)
    };
    assert_eq!(decode(&[]), Err(EnvelopeError::Truncated(0)));
    assert_eq!(decode(b"{}"), Err(EnvelopeError::Magic(b'{')));
    assert_eq!(with(1, 2), Err(EnvelopeError::Major(2)));
    assert_eq!(with(2, 0xfe), Ok(Decoded::Ignored { kind: 0xfe }));
    for flags in 8..=255 {
        assert_eq!(with(3, flags), Err(EnvelopeError::Flags(flags)), "{flags}");
    }
    let huge = vec![0xe7; pinnace_wire::PACKET_BYTES_MAX + 1];
    assert!(matches!(decode(&huge), Err(EnvelopeError::TooLarge(..))));
}

#[test]
fn seal_and_signature_have_their_place() {
    let plain = Envelope::of(&UpToDateV1 { epoch: 1, revision: 300 });
    let signed = Envelope { signature: Some(vec![0xaa; 65].into()), ..plain.clone() };
    let bytes = signed.to_bytes();
    assert_eq!(
        hex(&bytes[..8]),
        "e7010402" /* header */
            .to_owned()
            + "4100aaaa"
    );
    let parsed = Envelope::parse(&bytes, Limit::Packet).unwrap();
    assert_eq!(parsed, signed);
    // What is signed does not change with the signature.
    assert_eq!(parsed.signed_bytes(), signed.signed_bytes());
    assert_ne!(parsed.signed_bytes(), plain.to_bytes());
    assert_eq!(
        decode(&bytes),
        Ok(Decoded::Message(Message::UpToDate(UpToDateV1 { epoch: 1, revision: 300 })))
    );

    let sealed = Envelope { seal: Some(vec![1, 2, 3].into()), ..signed };
    let bytes = sealed.to_bytes();
    assert_eq!(Envelope::parse(&bytes, Limit::Packet), Ok(sealed));
    assert_eq!(decode(&bytes), Err(EnvelopeError::Sealed));

    for flags in [1, 2, 3] {
        assert!(matches!(decode(&[0xe7, 1, 4, flags, 9]), Err(EnvelopeError::Truncated(5))));
        let [low, high] = u16::try_from(BLOCK_BYTES_MAX + 1).unwrap().to_le_bytes();
        let long = [&[0xe7, 1, 4, flags, low, high][..], &[0; 600]].concat();
        assert_eq!(decode(&long), Err(EnvelopeError::Block(BLOCK_BYTES_MAX + 1)));
    }
}

#[test]
fn a_large_body_is_deflated_and_a_bomb_is_refused() {
    let item = |at: u8| ItemV1 { uid: [at; 16], generation: 1, body: BodyV1::Pod(Box::new(pod())) };
    let set = SnapshotV1 { epoch: EPOCH, revision: 1, items: (0..50).map(item).collect() };
    let bytes = encode(&set);
    assert_eq!(bytes[3], 4);
    assert!(bytes.len() < 5_000, "{} bytes", bytes.len());
    assert_eq!(decode(&bytes), Ok(Decoded::Message(Message::Snapshot(set))));

    let zeros = |n_bytes| KeysV1 {
        namespace: String::new(),
        source: SourceV1::Secret(String::new()),
        data: vec![("k".into(), vec![0; n_bytes])],
        ext: vec![],
    };
    let bomb = |n_bytes| {
        let body = BodyV1::Keys(zeros(n_bytes));
        encode(&SnapshotV1 {
            epoch: 1,
            revision: 1,
            items: vec![ItemV1 { uid: [1; 16], generation: 1, body }],
        })
    };
    let two_mib = bomb(2 << 20);
    assert!(matches!(decode(&two_mib), Err(EnvelopeError::Inflate(Kind::Snapshot, _))));
    decode_assembled(&two_mib).unwrap();
    assert!(matches!(decode_assembled(&bomb(17 << 20)), Err(EnvelopeError::Inflate(..))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode(&bytes);
        let _ = decode_assembled(&bytes);
    }

    #[test]
    fn garbage_behind_a_good_header_never_panics(
        kind in 0u8..0x40,
        flags in 0u8..8,
        body in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let _ = decode(&[&[0xe7, 1, kind, flags][..], &body].concat());
    }

    #[test]
    fn a_message_with_changed_bytes_never_panics(
        which in 0usize..17,
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = bytes_of(&samples()[which]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(&bytes);
    }

    #[test]
    fn garbage_is_no_token(text in "(pn1\\.)?[A-Za-z0-9_-]{0,200}") {
        let _ = pinnace_wire::enrol::TokenV1::from_text(&text);
    }

    #[test]
    fn garbage_is_no_topic(text in "(pinnace/1/)?(n|boot)?/?[a-z/+#]{0,80}") {
        let _ = pinnace_wire::topic::Topic::parse(&text);
    }
}
