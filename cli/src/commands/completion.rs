//! `pinnace completion`.

use clap::CommandFactory;
use clap_complete::generate;
use clap_complete::shells::{Bash, Fish, Zsh};

use crate::arguments::{Arguments, Completion, Shell};
use crate::console;

pub(super) fn run(arguments: &Completion) -> anyhow::Result<()> {
    let mut command = Arguments::command();
    let mut script = Vec::new();
    match arguments.shell {
        Shell::Bash => generate(Bash, &mut command, "pinnace", &mut script),
        Shell::Zsh => generate(Zsh, &mut command, "pinnace", &mut script),
        Shell::Fish => generate(Fish, &mut command, "pinnace", &mut script),
    }
    console::write(script)
}
