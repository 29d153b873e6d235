//! What each kind of name means, one table of Services for all.

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::dns::fixture::{self, number, table};
use crate::dns::message::Rcode;

fn index() -> Index {
    Index::new(Arc::new(table()))
}

/// `name KIND` a line; what is answered, sorted as it is said.
fn check(questions: &str, expected: Expect) {
    let index = index();
    let mut text = String::new();
    for question in questions.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (name, kind) = question.split_once(' ').unwrap();
        let found = index.lookup(&Name::from_text(name).unwrap(), number(kind), 0);
        let Some(answer) = found else {
            writeln!(text, "{question}: asked elsewhere").unwrap();
            continue;
        };
        let what = match answer.rcode {
            Rcode::OK => "",
            Rcode::NO_NAME => " no such name",
            Rcode::SERVER_FAILED => " failed",
            other => panic!("{other:?}"),
        };
        writeln!(text, "{question}:{what}").unwrap();
        for (mark, records) in [("", &answer.answers), ("+ ", &answer.additional)] {
            for Record { owner, ttl, data } in records {
                assert_eq!(*ttl, TTL_S);
                let owner = owner.as_ref().map(|owner| format!("{owner} ")).unwrap_or_default();
                let said = match data {
                    Data::Address(address) => address.to_string(),
                    Data::Name(_, name) => format!("→ {name}"),
                    Data::Srv { weight, port, target } => format!("{weight} {port} {target}"),
                    Data::Txt(text) => format!("{text:?}"),
                    Data::Soa { server, serial, .. } => format!("soa {server} {serial}"),
                    Data::Raw { .. } => unreachable!(),
                };
                writeln!(text, "    {mark}{owner}{said}").unwrap();
            }
        }
        let has_answer = !answer.answers.is_empty() && answer.rcode == Rcode::OK;
        match answer.authority {
            Some(soa) => writeln!(text, "    of {}", soa.owner.unwrap()).unwrap(),
            None => assert!(has_answer || answer.rcode == Rcode::SERVER_FAILED, "{question}"),
        }
        if let Some(elsewhere) = answer.elsewhere {
            writeln!(text, "    then {elsewhere}").unwrap();
        }
    }
    expected.assert_eq(&text);
}

#[test]
fn a_service_has_its_addresses() {
    check(
        "web.default.svc.cluster.local A
        WEB.Default.svc.CLUSTER.local AAAA
        kubernetes.default.svc.cluster.local A
        kubernetes.default.svc.cluster.local AAAA
        web.default.svc.cluster.local MX
        web.default.svc.cluster.local ANY
        web.prod.svc.cluster.local A
        web.nowhere.svc.cluster.local A",
        expect![[r#"
            web.default.svc.cluster.local A:
                10.43.3.4
            WEB.Default.svc.CLUSTER.local AAAA:
                fd43::304
            kubernetes.default.svc.cluster.local A:
                10.43.0.1
            kubernetes.default.svc.cluster.local AAAA:
                of cluster.local.
            web.default.svc.cluster.local MX:
                of cluster.local.
            web.default.svc.cluster.local ANY:
                of cluster.local.
            web.prod.svc.cluster.local A: no such name
                of cluster.local.
            web.nowhere.svc.cluster.local A: no such name
                of cluster.local.
        "#]],
    );
}

#[test]
fn a_headless_service_has_the_addresses_of_its_ready_endpoints() {
    check(
        "db.prod.svc.cluster.local A
        db.prod.svc.cluster.local AAAA
        two-ports.prod.svc.cluster.local A
        bare.prod.svc.cluster.local A
        bare.prod.svc.cluster.local AAAA
        bare.prod.svc.cluster.local SRV
        early.prod.svc.cluster.local A
        none-ready.prod.svc.cluster.local A",
        expect![[r#"
            db.prod.svc.cluster.local A:
                10.42.0.20
                10.42.1.21
            db.prod.svc.cluster.local AAAA:
                fd42::20
            two-ports.prod.svc.cluster.local A:
                10.42.0.7
                10.42.1.9
            bare.prod.svc.cluster.local A:
                10.42.0.30
            bare.prod.svc.cluster.local AAAA:
                of cluster.local.
            bare.prod.svc.cluster.local SRV:
                of cluster.local.
            early.prod.svc.cluster.local A:
                10.42.0.31
            none-ready.prod.svc.cluster.local A: no such name
                of cluster.local.
        "#]],
    );
}

#[test]
fn an_endpoint_has_a_name_of_its_own() {
    check(
        "db-0.db.prod.svc.cluster.local A
        db-0.db.prod.svc.cluster.local AAAA
        db-1.db.prod.svc.cluster.local AAAA
        db-0.db.prod.svc.cluster.local SRV
        db-2.db.prod.svc.cluster.local A
        10-42-0-20.db.prod.svc.cluster.local A
        10-42-0-7.web.default.svc.cluster.local A
        10-42-1-10.web.default.svc.cluster.local A
        x.db-0.db.prod.svc.cluster.local A",
        expect![[r#"
            db-0.db.prod.svc.cluster.local A:
                10.42.0.20
            db-0.db.prod.svc.cluster.local AAAA:
                fd42::20
            db-1.db.prod.svc.cluster.local AAAA:
                of cluster.local.
            db-0.db.prod.svc.cluster.local SRV:
                100 5432 db-0.db.prod.svc.cluster.local.
                + db-0.db.prod.svc.cluster.local. 10.42.0.20
                + db-0.db.prod.svc.cluster.local. fd42::20
            db-2.db.prod.svc.cluster.local A: no such name
                of cluster.local.
            10-42-0-20.db.prod.svc.cluster.local A: no such name
                of cluster.local.
            10-42-0-7.web.default.svc.cluster.local A:
                10.42.0.7
            10-42-1-10.web.default.svc.cluster.local A: no such name
                of cluster.local.
            x.db-0.db.prod.svc.cluster.local A: no such name
                of cluster.local.
        "#]],
    );
}

#[test]
fn ports_have_srv_records() {
    check(
        "_http._tcp.web.default.svc.cluster.local SRV
        _dns._udp.web.default.svc.cluster.local SRV
        _dns._tcp.web.default.svc.cluster.local SRV
        _HTTP._TCP.web.default.svc.cluster.local A
        _http._tcp.web.default.svc.cluster.local TXT
        web.default.svc.cluster.local SRV
        _pg._tcp.db.prod.svc.cluster.local SRV
        _b._tcp.two-ports.prod.svc.cluster.local SRV
        two-ports.prod.svc.cluster.local SRV
        _x._tcp.none-ready.prod.svc.cluster.local SRV
        _tcp.web.default.svc.cluster.local SRV
        _udp.db.prod.svc.cluster.local SRV
        _._tcp.web.default.svc.cluster.local SRV
        _http._sctp.web.default.svc.cluster.local SRV",
        expect![[r#"
            _http._tcp.web.default.svc.cluster.local SRV:
                100 80 web.default.svc.cluster.local.
                + web.default.svc.cluster.local. 10.43.3.4
                + web.default.svc.cluster.local. fd43::304
            _dns._udp.web.default.svc.cluster.local SRV:
                100 53 web.default.svc.cluster.local.
                + web.default.svc.cluster.local. 10.43.3.4
                + web.default.svc.cluster.local. fd43::304
            _dns._tcp.web.default.svc.cluster.local SRV: no such name
                of cluster.local.
            _HTTP._TCP.web.default.svc.cluster.local A:
                10.43.3.4
            _http._tcp.web.default.svc.cluster.local TXT:
                of cluster.local.
            web.default.svc.cluster.local SRV:
                50 53 web.default.svc.cluster.local.
                50 80 web.default.svc.cluster.local.
                + web.default.svc.cluster.local. 10.43.3.4
                + web.default.svc.cluster.local. fd43::304
            _pg._tcp.db.prod.svc.cluster.local SRV:
                50 5432 db-0.db.prod.svc.cluster.local.
                50 5432 db-1.db.prod.svc.cluster.local.
                + db-0.db.prod.svc.cluster.local. 10.42.0.20
                + db-0.db.prod.svc.cluster.local. fd42::20
                + db-1.db.prod.svc.cluster.local. 10.42.1.21
            _b._tcp.two-ports.prod.svc.cluster.local SRV:
                50 2 10-42-0-7.two-ports.prod.svc.cluster.local.
                50 2 10-42-1-9.two-ports.prod.svc.cluster.local.
                + 10-42-0-7.two-ports.prod.svc.cluster.local. 10.42.0.7
                + 10-42-1-9.two-ports.prod.svc.cluster.local. 10.42.1.9
            two-ports.prod.svc.cluster.local SRV:
                25 1 10-42-0-7.two-ports.prod.svc.cluster.local.
                25 2 10-42-0-7.two-ports.prod.svc.cluster.local.
                25 1 10-42-1-9.two-ports.prod.svc.cluster.local.
                25 2 10-42-1-9.two-ports.prod.svc.cluster.local.
                + 10-42-0-7.two-ports.prod.svc.cluster.local. 10.42.0.7
                + 10-42-1-9.two-ports.prod.svc.cluster.local. 10.42.1.9
            _x._tcp.none-ready.prod.svc.cluster.local SRV: no such name
                of cluster.local.
            _tcp.web.default.svc.cluster.local SRV:
                of cluster.local.
            _udp.db.prod.svc.cluster.local SRV: no such name
                of cluster.local.
            _._tcp.web.default.svc.cluster.local SRV: no such name
                of cluster.local.
            _http._sctp.web.default.svc.cluster.local SRV: no such name
                of cluster.local.
        "#]],
    );
}

#[test]
fn an_external_name_is_another_name() {
    check(
        "second.default.svc.cluster.local A
        second.default.svc.cluster.local CNAME
        second.default.svc.cluster.local MX
        outside.default.svc.cluster.local A
        outside.default.svc.cluster.local CNAME
        x.outside.default.svc.cluster.local A
        number.default.svc.cluster.local A
        loop-a.default.svc.cluster.local A",
        expect![[r#"
            second.default.svc.cluster.local A:
                → web.default.svc.cluster.local.
                web.default.svc.cluster.local. 10.43.3.4
            second.default.svc.cluster.local CNAME:
                → web.default.svc.cluster.local.
            second.default.svc.cluster.local MX:
                → web.default.svc.cluster.local.
                of cluster.local.
            outside.default.svc.cluster.local A:
                → www.example.com.
                then www.example.com.
            outside.default.svc.cluster.local CNAME:
                → www.example.com.
            x.outside.default.svc.cluster.local A: no such name
                of cluster.local.
            number.default.svc.cluster.local A:
                of cluster.local.
            loop-a.default.svc.cluster.local A: failed
                → loop-b.default.svc.cluster.local.
                loop-b.default.svc.cluster.local. → loop-a.default.svc.cluster.local.
                loop-a.default.svc.cluster.local. → loop-b.default.svc.cluster.local.
                loop-b.default.svc.cluster.local. → loop-a.default.svc.cluster.local.
                loop-a.default.svc.cluster.local. → loop-b.default.svc.cluster.local.
                loop-b.default.svc.cluster.local. → loop-a.default.svc.cluster.local.
                loop-a.default.svc.cluster.local. → loop-b.default.svc.cluster.local.
                loop-b.default.svc.cluster.local. → loop-a.default.svc.cluster.local.
        "#]],
    );
}

#[test]
fn addresses_have_names() {
    check(
        "4.3.43.10.in-addr.arpa PTR
        4.0.3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.d.f.ip6.arpa PTR
        7.0.42.10.in-addr.arpa PTR
        20.0.42.10.in-addr.arpa PTR
        0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.4.d.f.ip6.arpa PTR
        22.1.42.10.in-addr.arpa PTR
        99.0.42.10.in-addr.arpa PTR
        99.0.42.10.in-addr.arpa A
        2.7.168.192.in-addr.arpa PTR
        9.7.168.192.in-addr.arpa PTR",
        expect![[r#"
            4.3.43.10.in-addr.arpa PTR:
                → web.default.svc.cluster.local.
            4.0.3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.d.f.ip6.arpa PTR:
                → web.default.svc.cluster.local.
            7.0.42.10.in-addr.arpa PTR:
                → 10-42-0-7.web.default.svc.cluster.local.
                → 10-42-0-7.two-ports.prod.svc.cluster.local.
            20.0.42.10.in-addr.arpa PTR:
                → db-0.db.prod.svc.cluster.local.
            0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.4.d.f.ip6.arpa PTR:
                → db-0.db.prod.svc.cluster.local.
            22.1.42.10.in-addr.arpa PTR: no such name
                of 42.10.in-addr.arpa.
            99.0.42.10.in-addr.arpa PTR:
                → 10-42-0-99.lonely.pod.cluster.local.
            99.0.42.10.in-addr.arpa A:
                of 99.0.42.10.in-addr.arpa.
            2.7.168.192.in-addr.arpa PTR:
                → 192-168-7-2.kubernetes.default.svc.cluster.local.
            9.7.168.192.in-addr.arpa PTR: asked elsewhere
        "#]],
    );
}

#[test]
fn names_in_the_ranges_of_the_cluster_are_never_asked_elsewhere() {
    check(
        "200.200.43.10.in-addr.arpa PTR
        200.43.10.in-addr.arpa PTR
        43.10.in-addr.arpa NS
        x.43.10.in-addr.arpa PTR
        1.1.1.43.10.in-addr.arpa PTR
        01.1.43.10.in-addr.arpa PTR
        256.1.43.10.in-addr.arpa PTR
        10.in-addr.arpa NS
        44.10.in-addr.arpa NS
        0.0.0.0.2.4.d.f.ip6.arpa PTR
        0.0.0.0.0.0.0.0.2.4.d.f.ip6.arpa PTR
        4.d.f.ip6.arpa NS
        example.com A
        local A
        mycluster.local A",
        expect![[r#"
            200.200.43.10.in-addr.arpa PTR: no such name
                of 43.10.in-addr.arpa.
            200.43.10.in-addr.arpa PTR:
                of 43.10.in-addr.arpa.
            43.10.in-addr.arpa NS:
                of 43.10.in-addr.arpa.
            x.43.10.in-addr.arpa PTR: no such name
                of 43.10.in-addr.arpa.
            1.1.1.43.10.in-addr.arpa PTR: no such name
                of 43.10.in-addr.arpa.
            01.1.43.10.in-addr.arpa PTR: no such name
                of 43.10.in-addr.arpa.
            256.1.43.10.in-addr.arpa PTR: no such name
                of 43.10.in-addr.arpa.
            10.in-addr.arpa NS: asked elsewhere
            44.10.in-addr.arpa NS: asked elsewhere
            0.0.0.0.2.4.d.f.ip6.arpa PTR: asked elsewhere
            0.0.0.0.0.0.0.0.2.4.d.f.ip6.arpa PTR:
                of 0.0.0.0.0.0.0.0.2.4.d.f.ip6.arpa.
            4.d.f.ip6.arpa NS: asked elsewhere
            example.com A: asked elsewhere
            local A: asked elsewhere
            mycluster.local A: asked elsewhere
        "#]],
    );
}

#[test]
fn names_that_only_have_names_below_them_exist() {
    check(
        "cluster.local SOA
        cluster.local NS
        cluster.local A
        svc.cluster.local A
        pod.cluster.local A
        dns.cluster.local A
        ns.dns.cluster.local A
        ns.dns.cluster.local AAAA
        prod.svc.cluster.local A
        lonely.svc.cluster.local A
        nowhere.svc.cluster.local A
        dns-version.cluster.local TXT
        dns-version.cluster.local A
        x.dns-version.cluster.local TXT
        other.cluster.local A
        *.default.svc.cluster.local A",
        expect![[r#"
            cluster.local SOA:
                soa ns.dns.cluster.local. 9
            cluster.local NS:
                → ns.dns.cluster.local.
                + ns.dns.cluster.local. 10.43.0.10
            cluster.local A:
                of cluster.local.
            svc.cluster.local A:
                of cluster.local.
            pod.cluster.local A:
                of cluster.local.
            dns.cluster.local A:
                of cluster.local.
            ns.dns.cluster.local A:
                10.43.0.10
            ns.dns.cluster.local AAAA:
                of cluster.local.
            prod.svc.cluster.local A:
                of cluster.local.
            lonely.svc.cluster.local A:
                of cluster.local.
            nowhere.svc.cluster.local A: no such name
                of cluster.local.
            dns-version.cluster.local TXT:
                "1.1.0"
            dns-version.cluster.local A:
                of cluster.local.
            x.dns-version.cluster.local TXT: no such name
                of cluster.local.
            other.cluster.local A: no such name
                of cluster.local.
            *.default.svc.cluster.local A: no such name
                of cluster.local.
        "#]],
    );
}

#[test]
fn pods_have_names_made_of_their_addresses() {
    check(
        "10-42-5-6.any.pod.cluster.local A
        10-42-5-6.any.pod.cluster.local AAAA
        fd42--9.any.pod.cluster.local AAAA
        192-168-7-3.any.pod.cluster.local A
        8-8-8-8.any.pod.cluster.local A
        10-42-5.any.pod.cluster.local A
        pod-name.any.pod.cluster.local A
        any.pod.cluster.local A",
        expect![[r#"
            10-42-5-6.any.pod.cluster.local A:
                10.42.5.6
            10-42-5-6.any.pod.cluster.local AAAA:
                of cluster.local.
            fd42--9.any.pod.cluster.local AAAA:
                fd42::9
            192-168-7-3.any.pod.cluster.local A:
                192.168.7.3
            8-8-8-8.any.pod.cluster.local A: no such name
                of cluster.local.
            10-42-5.any.pod.cluster.local A: no such name
                of cluster.local.
            pod-name.any.pod.cluster.local A: no such name
                of cluster.local.
            any.pod.cluster.local A:
                of cluster.local.
        "#]],
    );
}

#[test]
fn without_a_domain_only_addresses_are_known() {
    let mut table = table();
    table.node.cluster_domain = String::new();
    let index = Index::new(Arc::new(table));
    let ask = |name| index.lookup(&Name::from_text(name).unwrap(), kind::PTR, 0);
    assert_eq!(ask("web.default.svc.cluster.local"), None);
    assert_eq!(ask("4.3.43.10.in-addr.arpa").map(|answer| answer.rcode), Some(Rcode::NO_NAME));
}

#[test]
fn every_address_is_the_first_in_its_turn() {
    let index = index();
    let name = Name::from_text("two-ports.prod.svc.cluster.local").unwrap();
    let mut firsts: Vec<Data> = (0..2)
        .map(|turn| index.lookup(&name, kind::A, turn).unwrap().answers[0].data.clone())
        .collect();
    firsts.dedup();
    assert_eq!(firsts.len(), 2);
}

#[test]
fn ten_thousand_services_take_little_beside_their_table() {
    let index = Index::new(fixture::large(10_000));
    let n_bytes = index.by_v4.capacity() * size_of::<(Ipv4Addr, u32)>()
        + index.by_v6.capacity() * size_of::<(Ipv6Addr, u32)>();
    assert!(index.by_v4.len() >= 110_000, "{}", index.by_v4.len());
    assert!(n_bytes < 1 << 20, "{n_bytes}");
    let found =
        index.lookup(&Name::from_text("svc-77.ns-042.svc.cluster.local").unwrap(), kind::A, 0);
    let found = found.unwrap().answers;
    assert_eq!(found[0].data, Data::Address([10, 43, 16, 181].into()));
}

proptest! {
    #[test]
    fn every_name_is_answered_or_asked_elsewhere(
        labels in proptest::collection::vec(
            prop_oneof![
                Just("svc".to_owned()), Just("pod".into()), Just("default".into()),
                Just("web".into()), Just("_tcp".into()), Just("_http".into()), Just("db".into()),
                Just("prod".into()), Just("10".into()), Just("42".into()), "[a-z0-9_-]{1,9}",
            ],
            0..7,
        ),
        zone in prop_oneof![Just("cluster.local"), Just("in-addr.arpa"), Just("ip6.arpa"), Just("x")],
        kind: u16,
        rotation: usize,
    ) {
        let text = labels.iter().map(String::as_str).chain([zone]).collect::<Vec<_>>().join(".");
        let name = Name::from_text(&text).unwrap();
        let answer = index().lookup(&name, kind, rotation);
        if zone == "cluster.local" {
            let answer = answer.unwrap();
            prop_assert_eq!(answer.answers.is_empty(), answer.authority.is_some());
            prop_assert!(answer.rcode != Rcode::NO_NAME || answer.answers.is_empty());
            // A name that is there for one type is there for every type.
            let others = [kind::A, kind::AAAA, kind::SRV, kind::TXT]
                .map(|kind| index().lookup(&name, kind, 0).unwrap().rcode);
            prop_assert!(others.iter().all(|rcode| *rcode == answer.rcode));
        }
    }
}
