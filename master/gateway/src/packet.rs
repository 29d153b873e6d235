//! MQTT packets, the same for 3.1.1 and 5: what clients may send and what this
//! endpoint sends. Everything else is [`Incoming::Unexpected`].

use std::num::NonZeroU16;

use bytes::{Bytes, BytesMut};
use rmqtt_codec::error::{DecodeError, EncodeError};
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::version::{ProtocolVersion, VersionCodec};
use rmqtt_codec::{v3, v5};
use tokio_util::codec::{Decoder, Encoder};

/// A codec for the version that the client's CONNECT names.
#[derive(Debug)]
pub(crate) enum Codec {
    V3(v3::Codec),
    V5(v5::Codec),
}

#[derive(Debug)]
pub(crate) enum Incoming {
    Connect(Box<Connect>),
    Publish {
        topic: String,
        qos: u8,
        retain: bool,
        id: Option<NonZeroU16>,
        bytes: Bytes,
    },
    Acknowledged(NonZeroU16),
    Subscribe {
        id: NonZeroU16,
        filters: Vec<(String, u8)>,
    },
    Unsubscribe {
        id: NonZeroU16,
        filters: Vec<String>,
    },
    Ping,
    /// `with_will`: the will is to be published all the same.
    Disconnect {
        with_will: bool,
    },
    Unexpected(&'static str),
}

#[derive(Debug)]
pub(crate) struct Connect {
    pub(crate) client_id: String,
    pub(crate) keep_alive_s: u16,
    pub(crate) will: Option<Will>,
    /// Messages the client takes before it acknowledges one.
    pub(crate) receive_max: u16,
    pub(crate) packet_bytes_max: Option<u32>,
    pub(crate) has_auth_method: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Will {
    pub(crate) topic: String,
    pub(crate) bytes: Bytes,
}

#[derive(Debug)]
pub(crate) enum Outgoing {
    Accept {
        packet_bytes_max: u32,
        receive_max: u16,
        keep_alive_s: Option<u16>,
    },
    Refuse(Refusal),
    Publish {
        topic: String,
        id: Option<NonZeroU16>,
        bytes: Bytes,
    },
    /// `false` where the topic is not the client's.
    Acknowledge(NonZeroU16, bool),
    /// For each filter the granted QoS, or `None`.
    Subscribed(NonZeroU16, Vec<Option<u8>>),
    Unsubscribed(NonZeroU16, usize),
    Pong,
    /// Version 5 only: 3.1.1 has no such packet from a server.
    Disconnect(Goodbye),
}

/// Why a CONNECT is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    ClientId,
    NotAuthorized,
    Busy,
    AuthMethod,
}

/// Why a connection is ended, as MQTT 5 names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goodbye {
    TakenOver,
    Quota,
    NotAuthorized,
    ShuttingDown,
    KeepAlive,
    Protocol,
    TooLarge,
    QosNotSupported,
    RetainNotSupported,
    TimeOver,
    Kicked,
}

impl Codec {
    /// Finds the version in the first bytes; `None` while they are too few.
    pub(crate) fn detect(
        first: &mut BytesMut,
        packet_bytes_max: u32,
    ) -> Result<Option<Self>, DecodeError> {
        Ok(VersionCodec.decode(first)?.map(|version| match version {
            ProtocolVersion::MQTT3 => Codec::V3(v3::Codec::new(packet_bytes_max)),
            ProtocolVersion::MQTT5 => Codec::V5(v5::Codec::new(packet_bytes_max, 0)),
        }))
    }

    pub(crate) fn is_v5(&self) -> bool {
        matches!(self, Codec::V5(_))
    }

    pub(crate) fn set_packet_bytes_max(&mut self, packet_bytes_max: u32) {
        match self {
            Codec::V3(codec) => codec.set_max_size(packet_bytes_max),
            Codec::V5(codec) => codec.set_max_inbound_size(packet_bytes_max),
        }
    }

    pub(crate) fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Incoming>, DecodeError> {
        Ok(match self {
            Codec::V3(codec) => codec.decode(bytes)?.map(|(packet, _)| incoming_v3(packet)),
            Codec::V5(codec) => codec.decode(bytes)?.map(|(packet, _)| incoming_v5(packet)),
        })
    }

    pub(crate) fn encode(
        &mut self,
        packet: Outgoing,
        bytes: &mut BytesMut,
    ) -> Result<(), EncodeError> {
        match self {
            Codec::V3(codec) => match outgoing_v3(packet) {
                Some(packet) => codec.encode(packet, bytes),
                None => Ok(()),
            },
            Codec::V5(codec) => codec.encode(outgoing_v5(packet), bytes),
        }
    }
}

fn publish(packet: Publish) -> Incoming {
    if packet.properties.as_ref().is_some_and(|properties| properties.topic_alias.is_some()) {
        return Incoming::Unexpected("a topic alias, though none are allowed");
    }
    Incoming::Publish {
        topic: packet.topic.to_string(),
        qos: packet.qos.value(),
        retain: packet.retain,
        id: packet.packet_id,
        // A copy, so that a small message does not keep a large buffer alive.
        bytes: Bytes::copy_from_slice(&packet.payload),
    }
}

fn incoming_v3(packet: v3::Packet) -> Incoming {
    match packet {
        v3::Packet::Connect(connect) => Incoming::Connect(Box::new(Connect {
            client_id: connect.client_id.to_string(),
            keep_alive_s: connect.keep_alive,
            will: connect
                .last_will
                .map(|will| Will { topic: will.topic.to_string(), bytes: will.message }),
            receive_max: u16::MAX,
            packet_bytes_max: None,
            has_auth_method: false,
        })),
        v3::Packet::Publish(packet) => publish(*packet),
        v3::Packet::PublishAck { packet_id } => Incoming::Acknowledged(packet_id),
        v3::Packet::Subscribe { packet_id, topic_filters } => Incoming::Subscribe {
            id: packet_id,
            filters: topic_filters
                .into_iter()
                .map(|(filter, qos)| (filter.to_string(), qos.value()))
                .collect(),
        },
        v3::Packet::Unsubscribe { packet_id, topic_filters } => Incoming::Unsubscribe {
            id: packet_id,
            filters: topic_filters.into_iter().map(|filter| filter.to_string()).collect(),
        },
        v3::Packet::PingRequest => Incoming::Ping,
        v3::Packet::Disconnect => Incoming::Disconnect { with_will: false },
        _ => Incoming::Unexpected("a packet that only a server sends, or QoS 2"),
    }
}

fn incoming_v5(packet: v5::Packet) -> Incoming {
    match packet {
        v5::Packet::Connect(connect) => Incoming::Connect(Box::new(Connect {
            client_id: connect.client_id.to_string(),
            keep_alive_s: connect.keep_alive,
            will: connect
                .last_will
                .map(|will| Will { topic: will.topic.to_string(), bytes: will.message }),
            receive_max: connect.receive_max.map_or(u16::MAX, NonZeroU16::get),
            packet_bytes_max: connect.max_packet_size.map(std::num::NonZeroU32::get),
            has_auth_method: connect.auth_method.is_some(),
        })),
        v5::Packet::Publish(packet) => publish(*packet),
        v5::Packet::PublishAck(ack) => Incoming::Acknowledged(ack.packet_id),
        v5::Packet::Subscribe(subscribe) => Incoming::Subscribe {
            id: subscribe.packet_id,
            filters: subscribe
                .topic_filters
                .into_iter()
                .map(|(filter, options)| (filter.to_string(), options.qos.value()))
                .collect(),
        },
        v5::Packet::Unsubscribe(unsubscribe) => Incoming::Unsubscribe {
            id: unsubscribe.packet_id,
            filters: unsubscribe
                .topic_filters
                .into_iter()
                .map(|filter| filter.to_string())
                .collect(),
        },
        v5::Packet::PingRequest => Incoming::Ping,
        v5::Packet::Disconnect(disconnect) => Incoming::Disconnect {
            with_will: disconnect.reason_code != v5::DisconnectReasonCode::NormalDisconnection,
        },
        _ => Incoming::Unexpected("a packet that only a server sends, AUTH, or QoS 2"),
    }
}

fn message(topic: &str, id: Option<NonZeroU16>, bytes: Bytes, is_v5: bool) -> Box<Publish> {
    Box::new(Publish {
        dup: false,
        retain: false,
        qos: if id.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce },
        topic: topic.into(),
        packet_id: id,
        payload: bytes,
        properties: is_v5.then(Default::default),
    })
}

/// `None` where 3.1.1 has no such packet.
fn outgoing_v3(packet: Outgoing) -> Option<v3::Packet> {
    let acknowledge = |return_code| {
        v3::Packet::ConnectAck(v3::ConnectAck { return_code, session_present: false })
    };
    Some(match packet {
        Outgoing::Accept { .. } => acknowledge(v3::ConnectAckReason::ConnectionAccepted),
        Outgoing::Refuse(refusal) => acknowledge(match refusal {
            Refusal::ClientId => v3::ConnectAckReason::IdentifierRejected,
            Refusal::NotAuthorized | Refusal::AuthMethod => v3::ConnectAckReason::NotAuthorized,
            Refusal::Busy => v3::ConnectAckReason::ServiceUnavailable,
        }),
        Outgoing::Publish { topic, id, bytes } => {
            v3::Packet::Publish(message(&topic, id, bytes, false))
        }
        Outgoing::Acknowledge(packet_id, _) => v3::Packet::PublishAck { packet_id },
        Outgoing::Subscribed(packet_id, granted) => v3::Packet::SubscribeAck {
            packet_id,
            status: granted
                .into_iter()
                .map(|qos| match qos {
                    None => v3::SubscribeReturnCode::Failure,
                    Some(0) => v3::SubscribeReturnCode::Success(QoS::AtMostOnce),
                    Some(_) => v3::SubscribeReturnCode::Success(QoS::AtLeastOnce),
                })
                .collect(),
        },
        Outgoing::Unsubscribed(packet_id, _) => v3::Packet::UnsubscribeAck { packet_id },
        Outgoing::Pong => v3::Packet::PingResponse,
        Outgoing::Disconnect(_) => return None,
    })
}

fn outgoing_v5(packet: Outgoing) -> v5::Packet {
    match packet {
        Outgoing::Accept { packet_bytes_max, receive_max, keep_alive_s } => {
            v5::Packet::ConnectAck(Box::new(v5::ConnectAck {
                max_packet_size: Some(packet_bytes_max),
                receive_max: NonZeroU16::new(receive_max).unwrap_or(NonZeroU16::MIN),
                server_keepalive_sec: keep_alive_s,
                max_qos: QoS::AtLeastOnce,
                retain_available: false,
                shared_subscription_available: false,
                subscription_identifiers_available: false,
                ..Default::default()
            }))
        }
        Outgoing::Refuse(refusal) => v5::Packet::ConnectAck(Box::new(v5::ConnectAck {
            reason_code: match refusal {
                Refusal::ClientId => v5::ConnectAckReason::ClientIdentifierNotValid,
                Refusal::NotAuthorized => v5::ConnectAckReason::NotAuthorized,
                Refusal::Busy => v5::ConnectAckReason::ServerBusy,
                Refusal::AuthMethod => v5::ConnectAckReason::BadAuthenticationMethod,
            },
            ..Default::default()
        })),
        Outgoing::Publish { topic, id, bytes } => {
            v5::Packet::Publish(message(&topic, id, bytes, true))
        }
        Outgoing::Acknowledge(packet_id, authorized) => v5::Packet::PublishAck(v5::PublishAck {
            packet_id,
            reason_code: if authorized {
                v5::PublishAckReason::Success
            } else {
                v5::PublishAckReason::NotAuthorized
            },
            properties: Vec::new(),
            reason_string: None,
        }),
        Outgoing::Subscribed(packet_id, granted) => v5::Packet::SubscribeAck(v5::SubscribeAck {
            packet_id,
            properties: Vec::new(),
            reason_string: None,
            status: granted
                .into_iter()
                .map(|qos| match qos {
                    None => v5::SubscribeAckReason::NotAuthorized,
                    Some(0) => v5::SubscribeAckReason::GrantedQos0,
                    Some(_) => v5::SubscribeAckReason::GrantedQos1,
                })
                .collect(),
        }),
        Outgoing::Unsubscribed(packet_id, n_filters) => {
            v5::Packet::UnsubscribeAck(v5::UnsubscribeAck {
                packet_id,
                properties: Vec::new(),
                reason_string: None,
                status: vec![v5::UnsubscribeAckReason::Success; n_filters],
            })
        }
        Outgoing::Pong => v5::Packet::PingResponse,
        Outgoing::Disconnect(goodbye) => {
            v5::Packet::Disconnect(v5::Disconnect::new(match goodbye {
                Goodbye::TakenOver => v5::DisconnectReasonCode::SessionTakenOver,
                Goodbye::Quota => v5::DisconnectReasonCode::QuotaExceeded,
                Goodbye::NotAuthorized => v5::DisconnectReasonCode::NotAuthorized,
                Goodbye::ShuttingDown => v5::DisconnectReasonCode::ServerShuttingDown,
                Goodbye::KeepAlive => v5::DisconnectReasonCode::KeepAliveTimeout,
                Goodbye::Protocol => v5::DisconnectReasonCode::ProtocolError,
                Goodbye::TooLarge => v5::DisconnectReasonCode::PacketTooLarge,
                Goodbye::QosNotSupported => v5::DisconnectReasonCode::QosNotSupported,
                Goodbye::RetainNotSupported => v5::DisconnectReasonCode::RetainNotSupported,
                Goodbye::TimeOver => v5::DisconnectReasonCode::MaximumConnectTime,
                Goodbye::Kicked => v5::DisconnectReasonCode::AdministrativeAction,
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(bytes: &[u8]) {
        for first in [
            &b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04node"[..],
            &b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x04node"[..],
        ] {
            let mut start = BytesMut::from(first);
            let mut codec = Codec::detect(&mut start, 65_536).unwrap().unwrap();
            assert!(matches!(codec.decode(&mut start), Ok(Some(Incoming::Connect(_)))));
            let mut rest = BytesMut::from(bytes);
            while let Ok(Some(_)) = codec.decode(&mut rest) {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2000,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn garbage_instead_of_connect_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut bytes = BytesMut::from(&bytes[..]);
            if let Ok(Some(mut codec)) = Codec::detect(&mut bytes, 16_384) {
                let _ = codec.decode(&mut bytes);
            }
        }

        #[test]
        fn a_damaged_connect_never_panics(
            version in 0u8..7,
            name in prop_oneof![Just(&b"\x00\x04MQTT"[..]), Just(&b"\x00\x06MQIsdp"[..])],
            rest in proptest::collection::vec(any::<u8>(), 0..60),
            length in 0u8..80,
        ) {
            let mut bytes = BytesMut::from(&[&[0x10, length][..], name, &[version], &rest].concat()[..]);
            if let Ok(Some(mut codec)) = Codec::detect(&mut bytes, 16_384) {
                let _ = codec.decode(&mut bytes);
            }
        }

        #[test]
        fn garbage_after_connect_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            read_all(&bytes);
        }

        #[test]
        fn a_damaged_packet_never_panics(
            first in any::<u8>(),
            body in proptest::collection::vec(
                prop_oneof![any::<u8>(), Just(0u8), Just(1u8), Just(b'a')], 0..100),
        ) {
            let length = u8::try_from(body.len()).unwrap();
            read_all(&[&[first, length][..], &body].concat());
        }
    }
}
