//! `exec`, `attach` and `portforward`: who may, and for how long.
//!
//! Whatever can be found wrong before the upgrade is answered as any other
//! request is; what comes after it is [`front::upgrade`]'s.

use api::resource::Verb;
use front::answer::Answer;
use front::upgrade::{Upgrade, command_request};

use super::resources::Request;
use crate::status::Status;

/// Answers `exec` and `attach`.
pub(super) async fn command(request: &Request<'_>, verb: Verb) -> Result<Answer, Status> {
    let query = &request.asked.query;
    let wanted = command_request(query, request.at.subresource == "exec")?;
    let (who, target) = (&request.asked.who, request.target());
    // Authorised first: who may not, learns nothing else.
    request.state.api.authorize_reach(who, verb, &target)?;
    let upgrade = Upgrade::command(&request.asked.head)?;
    let container = query.get("container").unwrap_or_default();
    let stream =
        request.state.api.open_command(who, verb, &target, container, wanted.clone()).await?;
    let answer = upgrade.answer();
    spawn(request, upgrade.serve_command(wanted, stream));
    Ok(answer)
}

/// Answers `portforward`.
pub(super) async fn forward(request: &Request<'_>, verb: Verb) -> Result<Answer, Status> {
    let (who, target) = (&request.asked.who, request.target());
    request.state.api.authorize_reach(who, verb, &target)?;
    let upgrade = Upgrade::forward(&request.asked.head, &request.asked.query)?;
    let forwarder = request.state.api.open_forward(who, verb, &target).await?;
    let answer = upgrade.answer();
    spawn(request, upgrade.serve_forward(forwarder));
    Ok(answer)
}

/// Serves the connection once the answer is out, until it or the server ends.
fn spawn(
    request: &Request<'_>,
    served: impl Future<Output = std::io::Result<()>> + Send + 'static,
) {
    let state = std::sync::Arc::clone(request.state);
    let tracker = state.streams.clone();
    tracker.spawn(async move {
        let _counted = super::Counted::new(&state, |metrics| &metrics.connections);
        let result = tokio::select! {
            result = served => result,
            () = state.shutdown.cancelled() => return,
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a stream ended early");
        }
    });
}
