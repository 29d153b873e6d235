//! `pinnace image` and its options.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::text::duration;

/// Build images, and keep them in the master's own registry or any other.
///
/// A name without a registry means the master's: `app:v1` is `pinnace.local/app:v1`
/// here and in what is printed; manifests need the long form, because there a
/// short name is Docker's.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Make an image of programs, folders or a WebAssembly module, without Docker.
    ///
    /// A program is put into an image for the machine that its ELF head names;
    /// several programs make one image for several machines. Their name in the
    /// image is the first one's, or --as. Folders are copied into every image, as
    /// they are. A .wasm file becomes an artifact in the CNCF's layout. The same
    /// input gives the same digest.
    #[command(after_help = "Examples:\n  \
        pinnace image build app:v1 target/aarch64-unknown-linux-musl/release/app --push\n  \
        pinnace image build app:v1 app-arm64 app-armv7 --as app -e PORT=80 --push\n  \
        pinnace image build site:v1 ./server ./public --cmd=--root --cmd=/ -o site.tar\n  \
        pinnace image build hello:v1 hello.wasm --push")]
    Build(Box<Build>),
    /// Copy an image into a registry: from an OCI layout, as a folder or a tar.
    #[command(after_help = "Examples:\n  \
        skopeo copy docker://nginx:1.29 oci-archive:nginx.tar\n  \
        pinnace image push nginx.tar nginx:1.29\n  \
        pinnace image push site.tar registry.example.com/team/site:v1")]
    Push {
        /// The layout.
        #[arg(value_name = "FOLDER|TAR")]
        source: PathBuf,
        /// What it is to be called.
        #[arg(value_name = "NAME")]
        name: String,
        /// The name of the image in the layout, where it holds several.
        #[arg(long, value_name = "NAME")]
        from: Option<String>,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show what is in the master's registry.
    Ls {
        /// Only this repository.
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// Remove images from the master's registry: a tag, or a digest with all its tags.
    #[command(
        after_help = "Space comes back when the master tidies up, an hour later at the earliest.\n\n\
        Examples:\n  pinnace image rm app:v1\n  pinnace image rm app@sha256:…"
    )]
    Rm {
        /// What to remove.
        #[arg(required = true, value_name = "NAME:TAG|NAME@DIGEST")]
        names: Vec<String>,
    },
    /// Make a password for the master's registry, for docker, skopeo, oras and others.
    ///
    /// The password goes to standard output and nowhere else. It is good for the
    /// registry alone, is its owner there, and cannot be taken back before its time.
    #[command(after_help = "Examples:\n  \
        pinnace image login | docker login -u pinnace --password-stdin master.example.com:6443\n  \
        skopeo copy --dest-creds pinnace:$(pinnace image login --for 1h) …")]
    Login {
        /// How long it is good.
        #[arg(long = "for", value_name = "TIME", value_parser = duration, default_value = "12h")]
        life: Duration,
    },
    /// Have nodes fetch images before any pod names them.
    ///
    /// Kept as a ConfigMap with the label pinnace.io/prepull; nodes that join later
    /// fetch them too, and their disks keep them.
    #[command(after_help = "Examples:\n  \
        pinnace image prepull pinnace.local/app:v2 --selector zone=north --wait\n  \
        pinnace image prepull --remove --name next-release")]
    Prepull(Prepull),
}

/// How a registry that is not the master's is reached.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Reach {
    /// The registry speaks plain HTTP.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Further CA certificates for it (PEM).
    #[arg(long, value_name = "FILE")]
    pub(crate) registry_ca: Option<PathBuf>,
}

/// What to build.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// What it is to be called.
    #[arg(value_name = "NAME:TAG")]
    pub(crate) name: String,
    /// Programs, folders, or one .wasm file.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) inputs: Vec<PathBuf>,
    /// The program's path in the image.
    #[arg(long = "as", value_name = "PATH")]
    pub(crate) program: Option<String>,
    /// The machine, such as linux/arm/v6, where the program does not tell; once for each.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Vec<String>,
    /// A file to add; may be given more than once.
    #[arg(long, value_name = "FILE=PATH")]
    pub(crate) add: Vec<String>,
    /// The command, one word each; the program if left out.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) entrypoint: Vec<String>,
    /// Its arguments, unless the container names others; one word each.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) cmd: Vec<String>,
    /// A variable.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// A label.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<String>,
    /// Who it runs as: uid, uid:gid or a name of its /etc/passwd.
    #[arg(long, value_name = "USER", default_value = "")]
    pub(crate) user: String,
    /// Its working directory.
    #[arg(long, value_name = "PATH", default_value = "")]
    pub(crate) workdir: String,
    /// Write an OCI layout: into a folder, or an archive where the name ends in .tar.
    #[arg(short, long, value_name = "FOLDER|TAR", required_unless_present = "push")]
    pub(crate) output: Option<PathBuf>,
    /// Push it to the registry that its name says.
    #[arg(long)]
    pub(crate) push: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Which images, and where.
#[derive(Debug, Args)]
pub(crate) struct Prepull {
    /// The images, as manifests name them.
    #[arg(required_unless_present = "remove", value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Nodes with these labels, such as zone=north; all of them if left out.
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "")]
    pub(crate) selector: String,
    /// Name of the ConfigMap; images of an earlier call with it are replaced.
    #[arg(long, value_name = "NAME", default_value = "prepull")]
    pub(crate) name: String,
    /// A Secret of the namespace with credentials.
    #[arg(long, value_name = "NAME")]
    pub(crate) pull_secret: Vec<String>,
    /// Forget them: nodes may remove what no pod needs.
    #[arg(long, conflicts_with = "images")]
    pub(crate) remove: bool,
    /// Wait until all the nodes have them.
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait at most.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10m")]
    pub(crate) timeout: Duration,
}
