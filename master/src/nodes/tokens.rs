//! Makes the tokens that a node asks for: those of its own pods, as their volumes
//! want them, and no others. A node that asks for a stranger's gets no answer.

use std::collections::BTreeSet;

use api::{ObjectKey, Value, meta};
use apiserver::{Api, Identity, Reason, Target, TokenWish};
use tracing::{info, warn};
use wire::Uid;
use wire::account::{ANSWER_BYTES_MAX, PODS_MAX, PodTokensV1, TOKENS_OF_POD_MAX, TokenV1};
use wire::command::CommandV1;
use wire::pod::{PodV1, ProjectionV1, VolumeSourceV1};
use wire::set::BodyV1;

use super::{Done, Nodes, index};
use crate::clock;
use crate::enrol::resource;

/// What a node waits for.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// The boot that asked last, and the pods it asked for.
    boot_id: Uid,
    pods: BTreeSet<Uid>,
    /// Whether tokens are being made.
    at_work: bool,
    /// Its tokens were made by a clock that has jumped since, and it has not asked anew.
    pub(super) are_stale: bool,
}

impl Nodes {
    /// Tokens follow the wall clock: where that jumps, nodes ask for new ones.
    pub(super) fn watch_clock(&mut self) {
        if !self.jumps.jumped(clock::now(), self.now()) {
            return;
        }
        info!("the clock has jumped: nodes get new tokens");
        for (name, state) in &mut self.nodes {
            state.tokens.are_stale = true;
            // One that is away hears it when it says hello.
            let _ = self.dispatcher.command(name, CommandV1::RefreshTokens);
        }
    }

    /// A node asks for tokens. Until all pods are known it asks in vain, and again.
    pub(super) fn tokens_wanted(&mut self, node: &str, boot_id: Uid, pods: Vec<Uid>) {
        let Some(state) = self.nodes.get_mut(node) else { return };
        if !self.unlisted.is_empty() {
            return;
        }
        let wishes = &mut state.tokens;
        wishes.are_stale = false;
        if wishes.boot_id != boot_id {
            wishes.boot_id = boot_id;
            wishes.pods.clear();
        }
        // Its own alone, so that no flood of questions fills the memory.
        wishes.pods.extend(pods.into_iter().filter(|pod| self.index.find(node, pod).is_some()));
        self.make_tokens(node);
    }

    /// Sends what was made, and goes on with what was asked for meanwhile.
    pub(super) fn tokens_made(&mut self, node: &str, boot_id: Uid, pods: Vec<PodTokensV1>) {
        self.dispatcher.tokens_made(node, boot_id, pods);
        if let Some(state) = self.nodes.get_mut(node) {
            state.tokens.at_work = false;
            self.make_tokens(node);
        }
    }

    /// Makes tokens beside the task, for one answer to a node at a time.
    fn make_tokens(&mut self, node: &str) {
        let Some(state) = self.nodes.get_mut(node) else { return };
        let wishes = &mut state.tokens;
        if wishes.at_work {
            return;
        }
        let next = std::iter::from_fn(|| wishes.pods.pop_first()).take(PODS_MAX);
        let pods: Vec<(Uid, ObjectKey)> =
            next.filter_map(|uid| Some((uid, self.index.find(node, &uid)?.clone()))).collect();
        if pods.is_empty() {
            return;
        }
        wishes.at_work = true;
        let boot_id = wishes.boot_id;
        let (api, node, done) = (self.setup.api.clone(), node.to_owned(), self.done.clone());
        tokio::spawn(async move {
            let asks = node.clone();
            let made = tokio::task::spawn_blocking(move || make(&api, &asks, &pods));
            let pods = made.await.unwrap_or_default();
            let _ = done.send(Done::Tokens { node, boot_id, pods }).await;
        });
    }
}

/// The tokens of those of `pods` that are on `node`, as far as one answer goes.
fn make(api: &Api, node: &str, pods: &[(Uid, ObjectKey)]) -> Vec<PodTokensV1> {
    let mut n_bytes = 0;
    let mut all = Vec::new();
    for (uid, key) in pods {
        if ANSWER_BYTES_MAX <= n_bytes {
            // It asks for the others again.
            break;
        }
        let target = Target::object(resource("Pod"), &key.namespace, &key.name);
        let object = match api.get_value(&Identity::master("pinnace:tokens"), &target) {
            Ok(object) => object,
            Err(status) => {
                if status.reason != Reason::NotFound {
                    warn!(pod = %key, error = status.message, "no token: its pod cannot be read");
                }
                continue;
            }
        };
        // As it is now, whatever the index said a moment ago.
        if !is_on(&object, node, uid) {
            continue;
        }
        let (tokens, problem) = match of_pod(api, &object) {
            Ok(tokens) => (tokens, String::new()),
            Err(problem) => (Vec::new(), problem),
        };
        n_bytes += tokens.iter().map(|one| one.token.len() + one.audience.len()).sum::<usize>();
        all.push(PodTokensV1 { pod: *uid, tokens, problem });
    }
    all
}

fn is_on(pod: &Value, node: &str, uid: &Uid) -> bool {
    pod["spec"]["nodeName"] == node
        && index::has_uid(pod, uid)
        && meta::annotation(pod, meta::MIRROR_ANNOTATION).is_none()
}

fn of_pod(api: &Api, object: &Value) -> Result<Vec<TokenV1>, String> {
    let lowered = lower::pod(object).map_err(|error| error.to_string())?;
    let BodyV1::Pod(pod) = lowered.item.body else { return Err("it is no pod".to_owned()) };
    let wanted = wanted(&pod);
    if wanted.len() > TOKENS_OF_POD_MAX {
        return Err(format!(
            "the volumes of the pod show {} different tokens, and at most {TOKENS_OF_POD_MAX} are \
             issued",
            wanted.len()
        ));
    }
    let issue = |(audience, expiration_s): (String, u32)| {
        let audiences = if audience.is_empty() { Vec::new() } else { vec![audience.clone()] };
        let issued = api
            .issue_token(&TokenWish {
                namespace: &pod.namespace,
                account: &pod.service_account,
                audiences: &audiences,
                expiration_s: expiration_s.into(),
                bound: Some(object),
            })
            .map_err(|status| status.message)?;
        let lifetime_s = u32::try_from(issued.lifetime_s).unwrap_or(u32::MAX);
        Ok(TokenV1 { audience, expiration_s, lifetime_s, token: issued.token })
    };
    wanted.into_iter().map(issue).collect()
}

/// What the pod's volumes show, each once: for whom, and for how long.
fn wanted(pod: &PodV1) -> BTreeSet<(String, u32)> {
    let sources = pod.volumes.iter().flat_map(|volume| match &volume.source {
        VolumeSourceV1::Projected { sources, .. } => sources.as_slice(),
        _ => &[],
    });
    sources
        .filter_map(|source| match source {
            ProjectionV1::Token { audience, expiration_s, .. } => {
                Some((audience.clone(), *expiration_s))
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use apiserver::{TokenAuthenticator, TokenIssuer, TokenKey, WriteOptions};
    use serde_json::json;
    use store::MemoryStore;

    use super::*;

    async fn cluster() -> Api {
        let api = Api::new(Arc::new(MemoryStore::new()));
        let key = TokenKey::from_pkcs8(&TokenKey::generate()).unwrap();
        api.set_token_issuer(TokenIssuer::new(key, SystemTime::now));
        api.bootstrap().await.unwrap();
        api
    }

    async fn create(api: &Api, name: &str, node: &str, audiences: &[&str]) -> (Uid, ObjectKey) {
        let sources: Vec<Value> = audiences
            .iter()
            .map(|to| json!({"serviceAccountToken": {"audience": to, "path": format!("of-{to}")}}))
            .collect();
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "main", "image": "x"}],
                "volumes": [{"name": "extra", "projected": {"sources": sources}}],
            },
        });
        let options = WriteOptions::by("test");
        let who = Identity::master("test");
        let pod = api.create(&who, resource("Pod"), "default", pod, &options).await.unwrap();
        let uid = lower::uid(meta::uid(&pod.value())).unwrap();
        (uid, ObjectKey::new("default", name))
    }

    #[tokio::test]
    async fn a_node_gets_tokens_of_its_own_pods_only() {
        let api = cluster().await;
        let mine = create(&api, "mine", "n1", &["vault"]).await;
        let other = create(&api, "other", "n2", &[]).await;
        let unbound = create(&api, "unbound", "", &[]).await;
        let gone = (mine.0, ObjectKey::new("default", "gone"));
        let renamed = (other.0, mine.1.clone());
        let made = make(&api, "n1", &[other, mine.clone(), unbound, gone, renamed]);
        let [pod] = made.as_slice() else { panic!("{made:?}") };
        assert_eq!((pod.pod, pod.problem.as_str()), (mine.0, ""));
        let of: Vec<(&str, u32)> =
            pod.tokens.iter().map(|one| (one.audience.as_str(), one.lifetime_s)).collect();
        assert_eq!(of, [("", 3607), ("vault", 3600)], "admission adds the one for the API server");
        let who = api.authenticate(&pod.tokens[0].token).unwrap();
        assert_eq!(who.user, "system:serviceaccount:default:default");
        assert_eq!(who.extra["authentication.kubernetes.io/pod-name"], ["mine"]);
        assert!(api.authenticate(&pod.tokens[1].token).is_none(), "it is for somebody else");
    }

    #[tokio::test]
    async fn what_stands_in_the_way_is_said() {
        let api = cluster().await;
        let many: Vec<String> = (0..40).map(|n| format!("a{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let greedy = create(&api, "greedy", "n1", &many).await;
        let orphan = create(&api, "orphan", "n1", &[]).await;
        let made = make(&api, "n1", &[greedy]);
        assert!(made[0].tokens.is_empty());
        assert!(made[0].problem.contains("show 41 different tokens"), "{}", made[0].problem);
        let accounts = resource("ServiceAccount");
        let account = Target::object(accounts, "default", "default");
        let options = apiserver::DeleteOptions::default();
        api.delete(&Identity::master("test"), &account, &options).await.unwrap();
        let made = make(&api, "n1", &[orphan]);
        assert_eq!(made[0].problem, "serviceaccounts \"default\" not found");
    }
}
