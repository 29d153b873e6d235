//! The command line: every command, its options and its help.

pub(crate) mod image;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::text::duration;

/// Run containers and WebAssembly on fleets of small boards.
///
/// Speaks to the master through its Kubernetes API, so kubectl works beside it.
#[derive(Debug, Parser)]
#[command(
    name = "pinnace",
    version,
    propagate_version = true,
    after_help = "Exit status: 0 all done, 1 something failed, 2 the arguments make no sense.\n\
                  NO_COLOR turns colours off. `pinnace COMMAND --help` shows examples."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of all commands")]
pub(crate) struct Global {
    /// Kubeconfig to use, alone. Else the files of KUBECONFIG, merged; else ~/.kube/config;
    /// else, for root on a board, that of the board's own API (/run/pinnace/kubeconfig).
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use instead of its current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Namespace to work in. Else the context's, else "default".
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// How long to wait for an answer of the server, such as 30s or 2m; 0 for ever.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "60s")]
    pub(crate) request_timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Apply(Apply),
    Get(Get),
    Describe(Describe),
    Delete(Delete),
    Logs(Logs),
    Exec(Exec),
    Attach(Attach),
    Cp(Copy),
    PortForward(PortForward),
    #[command(subcommand)]
    Top(Top),
    Net(Net),
    Scale(Scale),
    #[command(subcommand)]
    Rollout(Rollout),
    #[command(subcommand)]
    Node(Node),
    #[command(subcommand)]
    Token(Token),
    #[command(subcommand)]
    Image(image::Image),
    #[command(subcommand)]
    Backup(Backup),
    Kubeconfig(KubeconfigCommand),
    Completion(Completion),
    Version(Version),
}

/// Create or change objects so that they are as manifests say.
///
/// Objects are applied by the server (server-side apply), namespaces first. An
/// object that fails stops no other; the exit status tells.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    pinnace apply -f hello.yaml --wait\n  \
    pinnace apply -f manifests/ -R\n  \
    helm template chart | pinnace apply -f -\n  \
    pinnace apply -f hello.yaml --dry-run")]
pub(crate) struct Apply {
    /// File or folder with YAML or JSON, or - for standard input. May be given more than once.
    #[arg(short, long = "filename", required = true, value_name = "FILE|DIR|-")]
    pub(crate) files: Vec<PathBuf>,
    /// Read folders inside folders too.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Let the server check everything and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Take over fields that another manager (kubectl, helm, …) has set.
    #[arg(long)]
    pub(crate) force_conflicts: bool,
    /// Wait until the workloads run.
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait at most.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5m")]
    pub(crate) timeout: Duration,
}

/// Show objects.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    pinnace get pods -o wide\n  \
    pinnace get pods,deployments -A\n  \
    pinnace get pod web-1 -o yaml\n  \
    pinnace get deploy/web pod/web-1\n  \
    pinnace get pods -l app=web -w\n  \
    pinnace get nodes -o jsonpath='{range .items[*]}{.metadata.name}{\"\\n\"}{end}'")]
pub(crate) struct Get {
    /// KIND, KIND NAME…, KIND/NAME… or KIND,KIND.
    #[arg(required = true, value_name = "KIND|KIND/NAME")]
    pub(crate) words: Vec<String>,
    /// Show all namespaces.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Only objects with these labels, such as app=web,tier!=db.
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// Only objects with these fields, such as spec.nodeName=pi-1.
    #[arg(long, value_name = "FIELDS")]
    pub(crate) field_selector: Option<String>,
    /// json, yaml, wide, name or jsonpath=TEMPLATE.
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<String>,
    /// Go on and show every change.
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Leave the line with the names of the columns out.
    #[arg(long)]
    pub(crate) no_headers: bool,
    /// Show the labels as the last column.
    #[arg(long)]
    pub(crate) show_labels: bool,
    /// Ends with success where a named object does not exist.
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

/// Tell all about an object, its events included.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pinnace describe pod web-1\n  pinnace describe node/pi-1")]
pub(crate) struct Describe {
    /// KIND, KIND NAME… or KIND/NAME….
    #[arg(required = true, value_name = "KIND NAME|KIND/NAME")]
    pub(crate) words: Vec<String>,
    /// Only objects with these labels.
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
}

/// Delete objects.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    pinnace delete pod web-1 web-2\n  \
    pinnace delete -f hello.yaml\n  \
    pinnace delete pods -l app=web\n  \
    pinnace delete pod web-1 --force --grace-period 0")]
pub(crate) struct Delete {
    /// KIND NAME… or KIND/NAME….
    #[arg(
        value_name = "KIND NAME|KIND/NAME",
        required_unless_present = "files",
        conflicts_with = "files"
    )]
    pub(crate) words: Vec<String>,
    /// Delete the objects of these manifests.
    #[arg(short, long = "filename", value_name = "FILE|DIR|-")]
    pub(crate) files: Vec<PathBuf>,
    /// Read folders inside folders too.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Delete the objects with these labels.
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// Delete all objects of the kind in the namespace.
    #[arg(long)]
    pub(crate) all: bool,
    /// Do not wait until the objects are gone.
    #[arg(long, value_name = "BOOL", default_value_t = true, default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub(crate) wait: bool,
    /// How long to wait at most.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5m")]
    pub(crate) timeout: Duration,
    /// Seconds that pods get to end.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) grace_period: Option<u32>,
    /// Remove the object at once, without waiting for its node. What runs may go on for a while.
    #[arg(long)]
    pub(crate) force: bool,
    /// An object that does not exist is no failure.
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

/// Show what containers have written.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    pinnace logs web-1 -f\n  \
    pinnace logs deploy/web --tail 20\n  \
    pinnace logs web-1 -c sidecar --previous\n  \
    pinnace logs -l app=web --prefix -f")]
pub(crate) struct Logs {
    /// POD, or KIND/NAME for a pod of a workload.
    #[arg(
        value_name = "POD|KIND/NAME",
        required_unless_present = "selector",
        conflicts_with = "selector"
    )]
    pub(crate) target: Option<String>,
    /// Container, where a pod has several.
    #[arg(value_name = "CONTAINER", conflicts_with = "container")]
    pub(crate) container_word: Option<String>,
    /// Container, where a pod has several.
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// All containers of the pods.
    #[arg(long)]
    pub(crate) all_containers: bool,
    /// Go on as the container writes.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The run before this one.
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// Only the last lines. All of them by default, 10 of each pod with -l.
    #[arg(long, value_name = "LINES", allow_hyphen_values = true)]
    pub(crate) tail: Option<i64>,
    /// Only what is younger, such as 10m.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) since: Option<Duration>,
    /// Show when each line was written.
    #[arg(long)]
    pub(crate) timestamps: bool,
    /// All pods with these labels.
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// Show pod and container before each line.
    #[arg(long)]
    pub(crate) prefix: bool,
}

/// Run a command in a container. Ends with its exit code.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    pinnace exec web-1 -- ls /\n  \
    pinnace exec -it web-1 -- sh\n  \
    cat dump.sql | pinnace exec -i db-1 -- psql")]
pub(crate) struct Exec {
    /// The pod.
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
    /// Container, where a pod has several.
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Send standard input to the command.
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// The command and its arguments, after --.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Show what a container writes from now on, and write to it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pinnace attach web-1\n  pinnace attach -it shell-1")]
pub(crate) struct Attach {
    /// The pod.
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
    /// Container, where a pod has several.
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Send standard input to the container, which must have `stdin: true`.
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// Use the container's terminal; it must have `tty: true`.
    #[arg(short, long)]
    pub(crate) tty: bool,
}

/// Copy files into or out of a container that has `tar`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    pinnace cp site web-1:/srv\n  \
    pinnace cp prod/web-1:/var/log/app.log app.log")]
pub(crate) struct Copy {
    /// What: a path here, or [NAMESPACE/]POD:PATH.
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// Where to: a path here, or [NAMESPACE/]POD:PATH.
    #[arg(value_name = "TO")]
    pub(crate) to: String,
    /// Container, where a pod has several.
    #[arg(short, long)]
    pub(crate) container: Option<String>,
}

/// Reach ports of a pod at ports of this machine, until interrupted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    pinnace port-forward web-1 8080:80\n  \
    pinnace port-forward web-1 :80        (any port here)")]
pub(crate) struct PortForward {
    /// The pod.
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
    /// LOCAL:REMOTE, :REMOTE or PORT.
    #[arg(required = true, value_name = "PORTS")]
    pub(crate) ports: Vec<String>,
    /// Where to listen.
    #[arg(long, value_name = "IP", default_value = "localhost")]
    pub(crate) address: String,
}

/// Show what nodes or pods use now.
#[derive(Debug, Subcommand)]
pub(crate) enum Top {
    /// Processor and memory of nodes, and their share of what the node has.
    #[command(visible_alias = "node", visible_alias = "no")]
    Nodes(TopNodes),
    /// Processor and memory of pods.
    #[command(visible_alias = "pod", visible_alias = "po")]
    Pods(TopPods),
}

/// By what `top` sorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TopOrder {
    Cpu,
    Memory,
}

#[derive(Debug, Args)]
pub(crate) struct TopNodes {
    /// Only this node.
    #[arg(value_name = "NODE", conflicts_with = "selector")]
    pub(crate) name: Option<String>,
    /// Only nodes with these labels.
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// The largest first, instead of by name.
    #[arg(long, value_name = "WHAT")]
    pub(crate) sort_by: Option<TopOrder>,
}

#[derive(Debug, Args)]
pub(crate) struct TopPods {
    /// Only this pod.
    #[arg(value_name = "POD", conflicts_with_all = ["selector", "all_namespaces"])]
    pub(crate) name: Option<String>,
    /// Only pods with these labels.
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Show each container.
    #[arg(long)]
    pub(crate) containers: bool,
    /// The largest first, instead of by name.
    #[arg(long, value_name = "WHAT")]
    pub(crate) sort_by: Option<TopOrder>,
}

/// Show how nodes reach each other: path, round trip, loss.
#[derive(Debug, Args)]
#[command(
    after_help = "A row for each pair that has spoken, as the first of the two sees it. Paths are quic \
(direct, UDP), tls (direct, TCP), relay (through the master) and none.\n\n\
Examples:\n  pinnace net\n  pinnace net pi-3 -o json"
)]
pub(crate) struct Net {
    /// Only as this node sees it.
    #[arg(value_name = "NODE", conflicts_with = "selector")]
    pub(crate) name: Option<String>,
    /// Only as nodes with these labels see it.
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// How it is printed.
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<NetFormat>,
}

/// How `net` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NetFormat {
    Json,
    Yaml,
    Wide,
}

/// Set how many pods a workload has.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pinnace scale deploy/web --replicas 3")]
pub(crate) struct Scale {
    /// KIND NAME or KIND/NAME.
    #[arg(required = true, value_name = "KIND/NAME")]
    pub(crate) words: Vec<String>,
    /// How many.
    #[arg(long, value_name = "N")]
    pub(crate) replicas: u32,
    /// Wait until the pods run.
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait at most.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5m")]
    pub(crate) timeout: Duration,
}

/// Follow and steer the rollout of a workload.
#[derive(Debug, Subcommand)]
pub(crate) enum Rollout {
    /// Wait until a rollout is done, and say how far it is.
    Status {
        /// KIND NAME or KIND/NAME.
        #[arg(required = true, value_name = "KIND/NAME")]
        words: Vec<String>,
        /// How long to wait at most.
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10m")]
        timeout: Duration,
        /// Say how far it is now and do not wait.
        #[arg(long, value_name = "BOOL", default_value_t = true, default_missing_value = "true",
              num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
        watch: bool,
    },
    /// List the revisions of a deployment.
    History {
        /// KIND NAME or KIND/NAME.
        #[arg(required = true, value_name = "KIND/NAME")]
        words: Vec<String>,
        /// Show the pod template of this revision.
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
    },
    /// Go back to an earlier revision of a deployment.
    Undo {
        /// KIND NAME or KIND/NAME.
        #[arg(required = true, value_name = "KIND/NAME")]
        words: Vec<String>,
        /// Which one; the one before the current by default.
        #[arg(long, value_name = "N")]
        to_revision: Option<u64>,
    },
    /// Replace all pods of a deployment, a few at a time.
    Restart {
        /// KIND NAME or KIND/NAME.
        #[arg(required = true, value_name = "KIND/NAME")]
        words: Vec<String>,
    },
    /// Stop rolling changes out.
    Pause {
        /// KIND NAME or KIND/NAME.
        #[arg(required = true, value_name = "KIND/NAME")]
        words: Vec<String>,
    },
    /// Go on rolling changes out.
    Resume {
        /// KIND NAME or KIND/NAME.
        #[arg(required = true, value_name = "KIND/NAME")]
        words: Vec<String>,
    },
}

/// The boards of the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// List the nodes.
    List,
    /// Put no more pods on a node; those there stay.
    Cordon {
        /// The nodes.
        #[arg(required = true, value_name = "NODE")]
        names: Vec<String>,
    },
    /// Put pods on a node again.
    Uncordon {
        /// The nodes.
        #[arg(required = true, value_name = "NODE")]
        names: Vec<String>,
    },
    /// Remove a node from the cluster; its board has to join again to come back.
    Delete {
        /// The nodes.
        #[arg(required = true, value_name = "NODE")]
        names: Vec<String>,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
    /// Set labels of a node: KEY=VALUE sets, KEY- removes.
    Label {
        /// The node.
        #[arg(value_name = "NODE")]
        name: String,
        /// KEY=VALUE or KEY-.
        #[arg(required = true, value_name = "KEY=VALUE|KEY-", allow_hyphen_values = true)]
        labels: Vec<String>,
    },
    /// After a restore: confirm that a node may stop the pods the backup does not know.
    #[command(after_help = "After `pinnace backup restore`, nodes keep pods that run but are \
        unknown, since they may be newer than the backup. Look at them first; then confirm.\n\n\
        Examples:\n  pinnace node confirm pi-1\n  pinnace node confirm --all")]
    Confirm {
        /// The nodes.
        #[arg(required_unless_present = "all", value_name = "NODE", conflicts_with = "all")]
        names: Vec<String>,
        /// All nodes.
        #[arg(long)]
        all: bool,
    },
}

/// One-time tokens with which boards join.
#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token. Prints the token, and nothing else, to standard output.
    #[command(
        after_help = "The token is a secret: whoever has it can add a node.\n\nExamples:\n  \
        pinnace token create\n  \
        pinnace token create --uses 20 --ttl 8h --labels site=north\n  \
        ssh board pinnace-agent join \"$(pinnace token create)\" --state-dir /var/lib/pinnace"
    )]
    Create {
        /// How long it is good for.
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1h")]
        ttl: Duration,
        /// How many boards may join with it.
        #[arg(long, value_name = "N", default_value_t = 1,
              value_parser = clap::value_parser!(u32).range(1..=10_000))]
        uses: u32,
        /// Good for this node name only; may be given more than once.
        #[arg(long = "node-name", value_name = "NAME")]
        node_names: Vec<String>,
        /// Labels for the nodes that join with it.
        #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',')]
        labels: Vec<String>,
    },
    /// List the tokens, without what is secret.
    List,
    /// Delete tokens; nodes that joined with them stay.
    Delete {
        /// The ids, as `pinnace token list` shows them.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

/// Save the whole cluster, and bring it back.
#[derive(Debug, Subcommand)]
pub(crate) enum Backup {
    /// Save the cluster's state and keys into a file (mode 0600) while the master runs.
    ///
    /// Whoever has the file can rule the cluster: keep it as safe as the master.
    #[command(after_help = "Examples:\n  pinnace backup create pinnace-$(date +%F).backup")]
    Create {
        /// The file; it must not exist unless --overwrite is given.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Replace the file if it exists.
        #[arg(long)]
        overwrite: bool,
    },
    /// Make a master's data folder of a backup. The master must not run.
    #[command(after_help = "Start the master on the folder afterwards, look at what runs, then \
        `pinnace node confirm --all`.\n\nExamples:\n  \
        pinnace backup restore pinnace.backup --data-dir /var/lib/pinnace-master")]
    Restore {
        /// The backup.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The master's data folder: empty, or made.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
}

/// Print the kubeconfig in use, one context with all it needs.
///
/// The output holds the user's private key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    pinnace --kubeconfig admin.kubeconfig kubeconfig --merge\n  \
    pinnace kubeconfig > cluster.kubeconfig")]
pub(crate) struct KubeconfigCommand {
    /// Put it into ~/.kube/config (mode 0600) beside what is there, and make it the current context.
    #[arg(long)]
    pub(crate) merge: bool,
    /// Merge into this file instead.
    #[arg(long, value_name = "FILE", requires = "merge")]
    pub(crate) into: Option<PathBuf>,
}

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    pinnace completion bash > /etc/bash_completion.d/pinnace\n  \
    pinnace completion zsh > \"${fpath[1]}/_pinnace\"\n  \
    pinnace completion fish > ~/.config/fish/completions/pinnace.fish")]
pub(crate) struct Completion {
    /// The shell.
    pub(crate) shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Show the versions of this program and of the server.
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// Do not ask the server.
    #[arg(long)]
    pub(crate) client: bool,
    /// json or yaml.
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json", "yaml"])]
    pub(crate) output: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn command_lines_of_kubectl_are_understood() {
        for line in [
            "get pods -A -o wide",
            "get -n shop pod/web deploy/db",
            "get pods -w --field-selector spec.nodeName=a",
            "logs web -c app -f --tail=-1 --since 5m",
            "logs -l app=web --prefix",
            "delete pod web --grace-period=0 --force --wait=false",
            "delete -f a.yaml",
            "scale deploy/web --replicas=3",
            "scale --replicas 3 deployment web",
            "rollout undo deploy/web --to-revision=2",
            "apply -f - --dry-run",
            "node label pi-1 a=b c-",
            "node confirm --all",
        ] {
            let words = std::iter::once("pinnace").chain(line.split(' '));
            if let Err(error) = Arguments::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
        for line in ["get", "apply", "logs", "delete", "scale deploy/web", "frob", "delete -f a b"]
        {
            let words = std::iter::once("pinnace").chain(line.split(' '));
            let error = Arguments::try_parse_from(words).err();
            assert_eq!(error.map(|error| error.exit_code()), Some(2), "{line}");
        }
    }
}
