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
mod net;
mod node;
mod reach;
mod rollout;
mod scale;
mod token;
mod top;
mod version;

use std::process::ExitCode;

use crate::arguments::{Arguments, Backup, Command, Global};
use crate::cluster::Cluster;

/// Does what the arguments say, and how the program is to end.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { global, command } = arguments;
    if !matches!(
        command,
        Command::Exec(_) | Command::Attach(_) | Command::Cp(_) | Command::PortForward(_)
    ) {
        return rest(global, command).await.map(|()| ExitCode::SUCCESS);
    }
    let cluster = Cluster::connect(&global).await?;
    match command {
        Command::Exec(arguments) => reach::exec(&cluster, &arguments).await,
        Command::Attach(arguments) => reach::attach(&cluster, &arguments).await,
        Command::Cp(arguments) => reach::cp(&cluster, &arguments).await,
        Command::PortForward(arguments) => reach::port_forward(&cluster, &arguments).await,
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The commands that end well or do not.
async fn rest(global: Global, command: Command) -> anyhow::Result<()> {
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
        Command::Net(arguments) => net::run(&cluster, &arguments).await,
        Command::Top(command) => top::run(&cluster, &command).await,
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
        | Command::Exec(_)
        | Command::Attach(_)
        | Command::Cp(_)
        | Command::PortForward(_)
        | Command::Backup(Backup::Restore { .. }) => Ok(()),
    }
}
