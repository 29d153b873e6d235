//! `pinnace token`: one-time tokens with which boards join.
//!
//! The token goes to standard output and nowhere else; the server gets it in a
//! Secret of [`api::enrolment`].

use anyhow::{Context, anyhow, bail};
use api::enrolment::{self, EnrolmentToken};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;
use std::time::Duration;
use wire::enrol::TokenV1;

use super::apply;
use crate::arguments::Token;
use crate::cluster::Cluster;
use crate::kinds::Kind;
use crate::{console, table, text};

/// The longest life of a token: a year.
const TTL_MAX: Duration = Duration::from_secs(366 * 86_400);

pub(super) async fn run(cluster: &Cluster, command: &Token) -> anyhow::Result<()> {
    match command {
        Token::Create { ttl, uses, node_names, labels } => {
            let request = Request::new(*ttl, *uses, node_names, labels)?;
            create(cluster, &request).await
        }
        Token::List => list(cluster).await,
        Token::Delete { ids } => delete(cluster, ids).await,
    }
}

/// What a token is to be good for.
#[derive(Debug)]
struct Request {
    ttl: Duration,
    uses: u32,
    node_names: Vec<String>,
    labels: Vec<(String, String)>,
}

impl Request {
    fn new(
        ttl: Duration,
        uses: u32,
        node_names: &[String],
        labels: &[String],
    ) -> anyhow::Result<Self> {
        if ttl.is_zero() || ttl > TTL_MAX {
            bail!("--ttl: a token lives for a second at least and a year at most");
        }
        for name in node_names {
            wire::topic::check_node_name(name).context("--node-name")?;
        }
        let labels = labels.iter().map(|pair| label(pair)).collect::<anyhow::Result<_>>()?;
        Ok(Self { ttl, uses, node_names: node_names.to_vec(), labels })
    }
}

/// Reads `key=value` of a label.
fn label(pair: &str) -> anyhow::Result<(String, String)> {
    let (key, value) =
        pair.split_once('=').ok_or_else(|| anyhow!("\"{pair}\" is no label: write KEY=VALUE"))?;
    let mut problems = api::names::qualified_name(key);
    problems.extend(api::names::label_value(value));
    match problems.first() {
        None => Ok((key.to_owned(), value.to_owned())),
        Some(problem) => Err(anyhow!("label \"{pair}\": {problem}")),
    }
}

async fn create(cluster: &Cluster, request: &Request) -> anyhow::Result<()> {
    let authority = authority(&cluster.authorities)?;
    let endpoints = endpoints(cluster).await?;
    let mut random = [0; 24];
    SystemRandom::new().fill(&mut random).map_err(|_| anyhow!("the system has no randomness"))?;
    let now_s = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    let (token, record) = make(request, endpoints, authority, random, now_s)?;
    let secrets = Kind::core("secrets", "Secret", true).collection(Some(enrolment::NAMESPACE));
    apply::create(cluster, &secrets, &record.to_secret())
        .await
        .context("cannot keep the token in the cluster")?;
    console::line(token.to_text())?;
    let boards = text::count(request.uses as usize, "board");
    let seconds = i64::try_from(request.ttl.as_secs()).unwrap_or(i64::MAX);
    console::note(format_args!(
        "Token {} is good for {boards} and {}. On a board, as root:\n  \
         pinnace-agent join TOKEN --state-dir /var/lib/pinnace",
        record.id,
        text::age(seconds)
    ));
    Ok(())
}

/// The token for a board, and what the master keeps of it.
fn make(
    request: &Request,
    endpoints: Vec<String>,
    authority: &[u8],
    random: [u8; 24],
    now_s: u64,
) -> anyhow::Result<(TokenV1, EnrolmentToken)> {
    let (name, secret) = random.split_at(4);
    let digest = ring::digest::digest(&ring::digest::SHA256, authority);
    let token = TokenV1 {
        endpoints,
        ca_sha256: digest.as_ref().try_into().expect("SHA-256 has 32 bytes"),
        id: name.iter().map(|byte| format!("{byte:02x}")).collect(),
        secret: secret.try_into().expect("24 bytes without 4 are 20"),
        ext: Vec::new(),
    };
    // What a board would refuse is not worth making.
    TokenV1::from_text(&token.to_text())?;
    let record = EnrolmentToken {
        id: token.id.clone(),
        secret: token.secret,
        expires_s: now_s.saturating_add(request.ttl.as_secs()),
        uses_left: request.uses,
        node_names: request.node_names.clone(),
        labels: request.labels.clone(),
        issued: Vec::new(),
    };
    Ok((token, record))
}

/// The certificate whose hash the token pins.
fn authority(authorities: &[Vec<u8>]) -> anyhow::Result<&[u8]> {
    match authorities {
        [one] => Ok(one),
        [] => bail!(
            "the kubeconfig has no certificate-authority-data, which boards are told to trust: \
             take the kubeconfig that the master wrote"
        ),
        [_, ..] => bail!(
            "the kubeconfig trusts several authorities, and boards trust one: take the \
             kubeconfig that the master wrote"
        ),
    }
}

/// Where boards connect, as the master says.
async fn endpoints(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let info = cluster_info(cluster).await?;
    let list = info["data"][enrolment::INFO_ENDPOINTS].as_str().unwrap_or_default();
    let endpoints: Vec<String> =
        list.split(',').map(str::trim).filter(|e| !e.is_empty()).map(str::to_owned).collect();
    if endpoints.is_empty() {
        bail!(
            "the master does not say where boards connect (ConfigMap {}/{}, key {}): start it \
             with --advertise",
            enrolment::INFO_NAMESPACE,
            enrolment::INFO_NAME,
            enrolment::INFO_ENDPOINTS
        );
    }
    Ok(endpoints)
}

/// The cluster's description of itself.
pub(super) async fn cluster_info(cluster: &Cluster) -> anyhow::Result<Value> {
    let path = Kind::core("configmaps", "ConfigMap", true)
        .object(enrolment::INFO_NAMESPACE, enrolment::INFO_NAME);
    cluster.find(&path).await?.ok_or_else(|| {
        anyhow!("{} is not a Pinnace master: it does not describe itself", cluster.server)
    })
}

async fn list(cluster: &Cluster) -> anyhow::Result<()> {
    let secrets = Kind::core("secrets", "Secret", true);
    let fields = format!("type={}", enrolment::SECRET_TYPE);
    let secrets =
        super::get::list(cluster, &secrets, Some(enrolment::NAMESPACE), "", &fields).await?;
    let now_s = jiff::Timestamp::now().as_second();
    let mut rows = Vec::new();
    for secret in &secrets {
        match EnrolmentToken::from_secret(secret) {
            Ok(token) => rows.push(row(&token, now_s)),
            Err(error) => console::warning(&error.to_string()),
        }
    }
    if rows.is_empty() {
        console::note("No tokens found");
        return Ok(());
    }
    console::write(table::simple(
        ["ID", "EXPIRES", "USES LEFT", "NODE NAMES", "LABELS", "JOINED"],
        rows,
    ))
}

fn row(token: &EnrolmentToken, now_s: i64) -> [String; 6] {
    let or_none = |text: String| if text.is_empty() { "<any>".to_owned() } else { text };
    let left = i64::try_from(token.expires_s).unwrap_or(i64::MAX).saturating_sub(now_s);
    let labels: Vec<String> = token.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let joined: Vec<&str> = token.issued.iter().map(|one| one.node.as_str()).collect();
    let none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
    [
        token.id.clone(),
        if left > 0 { text::age(left) } else { "expired".to_owned() },
        token.uses_left.to_string(),
        or_none(token.node_names.join(",")),
        none(labels.join(",")),
        none(joined.join(",")),
    ]
}

async fn delete(cluster: &Cluster, ids: &[String]) -> anyhow::Result<()> {
    let secrets = Kind::core("secrets", "Secret", true);
    let mut failures = Vec::new();
    for id in ids {
        let path = secrets.object(enrolment::NAMESPACE, &enrolment::secret_name(id));
        match apply::remove(cluster, &path).await {
            Ok(true) => console::line(format_args!("token {id} deleted"))?,
            Ok(false) => {
                failures.push(anyhow!("there is no token {id}: see `pinnace token list`"));
            }
            Err(error) => failures.push(error),
        }
    }
    console::all(failures)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn request() -> Request {
        let labels = ["site=north".to_owned()];
        Request::new(Duration::from_secs(3600), 2, &["pi-1".to_owned()], &labels).unwrap()
    }

    #[test]
    fn the_board_and_the_master_get_two_halves_of_one_token() {
        let endpoints = vec!["10.0.0.1:8883".to_owned()];
        let random = std::array::from_fn(|n| u8::try_from(n).unwrap());
        let (token, record) = make(&request(), endpoints, b"the CA", random, 1000).unwrap();
        assert_eq!(token.id, "00010203");
        assert_eq!(token.secret[0], 4);
        assert_eq!((record.id.as_str(), record.secret), (token.id.as_str(), token.secret));
        assert_eq!((record.expires_s, record.uses_left), (4600, 2));
        assert_eq!(record.labels, [("site".to_owned(), "north".to_owned())]);
        let digest = ring::digest::digest(&ring::digest::SHA256, b"the CA");
        assert_eq!(token.ca_sha256, digest.as_ref());
        assert_eq!(TokenV1::from_text(&token.to_text()), Ok(token.clone()));
        let secret = record.to_secret();
        assert_eq!(secret["metadata"]["name"], "pinnace-token-00010203");
        assert_eq!(EnrolmentToken::from_secret(&secret), Ok(record));
        make(&request(), vec!["nonsense".to_owned()], b"", random, 0).unwrap_err();
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_it_is_made() {
        let check = |ttl: u64, name: &str, label: &str| {
            let names = [name.to_owned()];
            Request::new(Duration::from_secs(ttl), 1, &names, &[label.to_owned()]).is_err()
        };
        assert!(!check(60, "pi", "a=b"));
        assert!(check(0, "pi", "a=b"));
        assert!(check(u64::MAX, "pi", "a=b"));
        assert!(check(60, "Pi/1", "a=b"));
        assert!(check(60, "pi", "ab"));
        assert!(check(60, "pi", "a b=c"));
    }

    #[test]
    fn a_token_needs_one_authority_to_pin() {
        assert_eq!(authority(&[vec![1]]).unwrap(), [1]);
        authority(&[]).unwrap_err();
        authority(&[vec![1], vec![2]]).unwrap_err();
    }

    #[test]
    fn a_list_of_tokens_shows_nothing_secret() {
        let (_, record) = make(&request(), vec!["a:1".to_owned()], b"", [0xab; 24], 1000).unwrap();
        let header = ["ID", "EXPIRES", "USES LEFT", "NODE NAMES", "LABELS", "JOINED"];
        expect![[r#"
            ID         EXPIRES   USES LEFT   NODE NAMES   LABELS       JOINED
            abababab   60m       2           pi-1         site=north   <none>
            abababab   expired   2           pi-1         site=north   <none>
        "#]]
        .assert_eq(&table::simple(header, vec![row(&record, 1000), row(&record, 9999)]));
    }
}
