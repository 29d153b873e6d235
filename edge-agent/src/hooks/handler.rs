//! Asks probes and runs hooks: the same handlers, with different bounds.

use std::time::Duration;

use wire::pod::{HandlerV1, RuntimeV1};

use super::{Context, Hooks};
use crate::pods::{Answer, Question};
use crate::probes::{self, Reply};
use crate::{hooks, id};

/// Most time for a hook after a start, which upstream does not bound.
const POST_START_MAX: Duration = Duration::from_secs(3600);

/// Bytes of a command's output that are shown.
const OUTPUT_BYTES_MAX: usize = 1024;

impl Hooks {
    /// Asks a probe of a container.
    pub async fn ask(&self, context: &Context, question: &Question) -> Answer {
        let wanted = context.desired.container(&question.container);
        let Some(probe) = wanted.and_then(|wanted| question.kind.of(wanted)) else {
            return Answer::Unknown("the container has no such probe".to_owned());
        };
        // Time is counted from when it is asked, not while others are.
        let _asking = self.asking.acquire().await.expect("the semaphore is never closed");
        let limit = Duration::from_secs(u64::from(probe.timeout_s.max(1)));
        match self.reply(context, question, &probe.handler, limit).await {
            Ok(Reply::Well) => Answer::Success,
            Ok(Reply::Unwell(why)) => Answer::Failure(why),
            Err(why) => Answer::Unknown(why),
        }
    }

    pub(super) async fn post_start(
        &self,
        context: &Context,
        name: &str,
        attempt: u32,
    ) -> Result<(), String> {
        let wanted = context.desired.container(name);
        match wanted.and_then(|wanted| wanted.lifecycle.post_start.as_ref()) {
            Some(handler) => self.hook(context, name, attempt, handler, POST_START_MAX).await,
            None => Ok(()),
        }
    }

    pub(super) async fn pre_stop(
        &self,
        context: &Context,
        name: &str,
        attempt: u32,
        limit: Duration,
    ) -> Result<(), String> {
        let wanted = context.desired.container(name);
        match wanted.and_then(|wanted| wanted.lifecycle.pre_stop.as_ref()) {
            Some(handler) => self.hook(context, name, attempt, handler, limit).await,
            None => Ok(()),
        }
    }

    async fn hook(
        &self,
        context: &Context,
        name: &str,
        attempt: u32,
        handler: &HandlerV1,
        limit: Duration,
    ) -> Result<(), String> {
        let address = context.state.ip();
        match handler {
            HandlerV1::Sleep(seconds) => {
                tokio::time::sleep(Duration::from_secs(u64::from(*seconds)).min(limit)).await;
                Ok(())
            }
            // A hook has been heard when there is an answer, whatever it says.
            HandlerV1::Http { .. } => probes::http(handler, address, limit).await.map(|_| ()),
            HandlerV1::Exec(command) => {
                match self.exec(context, name, attempt, command, limit).await? {
                    Reply::Well => Ok(()),
                    Reply::Unwell(why) => Err(why),
                }
            }
            HandlerV1::Tcp { .. } | HandlerV1::Grpc { .. } => {
                match probes::ask(handler, address, limit).await {
                    Reply::Well => Ok(()),
                    Reply::Unwell(why) => Err(why),
                }
            }
        }
    }

    async fn reply(
        &self,
        context: &Context,
        question: &Question,
        handler: &HandlerV1,
        limit: Duration,
    ) -> Result<Reply, String> {
        match handler {
            HandlerV1::Exec(command) => {
                let Question { container, attempt, .. } = question;
                self.exec(context, container, *attempt, command, limit).await
            }
            _ => Ok(probes::ask(handler, context.state.ip(), limit).await),
        }
    }

    /// Runs a command in a container. An error is one of ours: it says nothing of
    /// the container's health.
    async fn exec(
        &self,
        context: &Context,
        name: &str,
        attempt: u32,
        command: &[String],
        limit: Duration,
    ) -> Result<Reply, String> {
        let wanted = context.desired.container(name);
        if wanted.is_some_and(|wanted| wanted.runtime == RuntimeV1::Wasm) {
            return Err(
                "a WebAssembly container has no commands to execute; use httpGet, tcpSocket or grpc"
                    .to_owned(),
            );
        }
        let run = id::container_id(&context.desired.pod.uid, name, attempt);
        let done =
            runtime::exec_output(&*self.runtime, &run, command.to_vec(), limit, OUTPUT_BYTES_MAX)
                .await;
        match done {
            Ok(done) => Ok(match done.code {
                Some(0) => Reply::Well,
                Some(_) if !done.output.is_empty() => {
                    Reply::Unwell(String::from_utf8_lossy(&done.output).into_owned())
                }
                Some(code) => Reply::Unwell(format!("command exited with {code}")),
                None => Reply::Unwell(format!(
                    "command timed out: {command:?} timed out after {}s",
                    limit.as_secs()
                )),
            }),
            Err(error) => Err(hooks::chain(&error)),
        }
    }
}
