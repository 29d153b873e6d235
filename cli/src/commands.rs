//! One module a command.

mod apply;
mod backup;
mod completion;
mod delete;
mod describe;
mod get;
mod image;
mod kubeconfig;
mod logs;
mod node;
mod rollout;
mod scale;
mod token;
mod version;

use crate::arguments::{Arguments, Backup, Command};
use crate::cluster::Cluster;

/// Does what the arguments say.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { global, command } = arguments;
    match &command {
        Command::Completion(arguments) => return completion::run(arguments),
        Command::Kubeconfig(arguments) => return kubeconfig::run(&global, arguments),
        Command::Version(arguments) => return version::run(&global, arguments).await,
        Command::Backup(Backup::Restore { file, data_dir }) => {
            return backup::restore(file, data_dir);
        }
        // Knows itself whether it needs the cluster.
        Command::Image(command) => return image::run(&global, command).await,
        _ => {}
    }
    let cluster = Cluster::connect(&global).await?;
    match command {
        Command::Apply(arguments) => apply::run(&cluster, &arguments).await,
        Command::Get(arguments) => get::run(&cluster, &arguments).await,
        Command::Describe(arguments) => describe::run(&cluster, &arguments).await,
        Command::Delete(arguments) => delete::run(&cluster, &arguments).await,
        Command::Logs(arguments) => logs::run(&cluster, &arguments).await,
        Command::Scale(arguments) => scale::run(&cluster, &arguments).await,
        Command::Rollout(command) => rollout::run(&cluster, &command).await,
        Command::Node(command) => node::run(&cluster, &command).await,
        Command::Token(command) => token::run(&cluster, &command).await,
        Command::Backup(Backup::Create { file, overwrite }) => {
            backup::create(&cluster, &file, overwrite).await
        }
        Command::Completion(_)
        | Command::Image(_)
        | Command::Kubeconfig(_)
        | Command::Version(_)
        | Command::Backup(Backup::Restore { .. }) => Ok(()),
    }
}
