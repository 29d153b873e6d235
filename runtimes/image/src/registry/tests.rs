//! Which way an image is looked for.

use super::*;

fn rule(host: &str) -> HostRule {
    HostRule { host: host.into(), ..HostRule::default() }
}

fn ways(registry: &Registry, image: &str) -> Vec<String> {
    let image: Reference = image.parse().unwrap();
    let text = |route: &Route| match route {
        Route::Http(at) => at.url(&image, "manifests/x"),
        Route::Master(_) => "master".to_owned(),
    };
    registry.routes(&image).iter().map(text).collect()
}

struct Nobody;

impl Origin for Nobody {
    fn manifest<'a>(&'a self, image: &'a Reference) -> BoxFuture<'a, Result<Bytes, ImageError>> {
        Box::pin(async { Err(no_route(image)) })
    }

    fn blob<'a>(
        &'a self,
        image: &'a Reference,
        _: Digest,
        _: u64,
    ) -> BoxFuture<'a, Result<(u64, Box<dyn Pieces>), ImageError>> {
        Box::pin(async { Err(no_route(image)) })
    }
}

#[test]
fn mirrors_go_first_and_the_master_last() {
    let mirror =
        |host: &str, path: &str, http| Mirror { host: host.into(), path: path.into(), http };
    let hosts = vec![
        HostRule {
            mirrors: vec![mirror("m1", "", false), mirror("m2:5000", "hub", true)],
            ..rule("docker.io")
        },
        HostRule { through_master: ThroughMaster::Always, ..rule("far.io") },
        HostRule { through_master: ThroughMaster::Never, ..rule("near.io") },
        HostRule { http: true, ..rule("*.plain.io") },
        HostRule { address: Some("10.0.0.1:6443".into()), ..rule("named.io") },
    ];
    let config =
        RegistryConfig { hosts, insecure_http: vec!["a:1".into()], ..RegistryConfig::default() };
    let registry = Registry::new(config);
    assert_eq!(ways(&registry, "far.io/x"), ["https://far.io/v2/x/manifests/x"]);
    registry.set_master(Arc::new(Nobody));
    let check = |image: &str, expected: &[&str]| assert_eq!(ways(&registry, image), expected);
    check(
        "nginx",
        &[
            "https://m1/v2/library/nginx/manifests/x",
            "http://m2:5000/v2/hub/library/nginx/manifests/x",
            "https://registry-1.docker.io/v2/library/nginx/manifests/x",
            "master",
        ],
    );
    check("far.io/x", &["master"]);
    check("near.io/x", &["https://near.io/v2/x/manifests/x"]);
    check("b.plain.io/x", &["http://b.plain.io/v2/x/manifests/x", "master"]);
    check("a:1/x", &["http://a:1/v2/x/manifests/x", "master"]);
    check("named.io/x", &["https://10.0.0.1:6443/v2/x/manifests/x", "master"]);
    check("pinnace.local/x", &["master"]);

    // One that does not answer is asked last.
    let at = Endpoint {
        http: false,
        host: "m1".into(),
        path: String::new(),
        name: "m1".into(),
        is_mirror: true,
        rule: None,
    };
    let image: Reference = "nginx".parse().unwrap();
    registry.note(&at, Some(&Subject { image: &image }.unreachable("m1", "refused")));
    assert!(ways(&registry, "nginx")[3].starts_with("https://m1/"));
    registry.note(&at, None);
    assert!(ways(&registry, "nginx")[0].starts_with("https://m1/"));
}

#[test]
fn passwords_are_not_printed() {
    let credential = Credential::Basic { user: "user".into(), password: "hunter2".into() };
    let keyring = Keyring::single("a.b", credential);
    let registry = Registry::new(RegistryConfig { keyring, ..RegistryConfig::default() });
    let text = format!("{registry:?}");
    assert!(text.contains("a.b") && !text.contains("hunter2"), "{text}");
}
