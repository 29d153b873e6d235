//! What the agent knows of one pod. Kept in memory, copied to the run folder
//! (tmpfs) after each change, so that a restart of the agent goes on where it
//! was. Only `mono` times are compared.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wire::Uid;
use wire::pod::{ContainerV1, PodV1, SourceV1};
use wire::status::{PhaseV1, TerminatedV1};

use super::deadline::Active;
use super::desired::{Desired, Eviction};
use super::probing::ProbeKind;
use crate::progress::Progress;

/// Which version of each ConfigMap and Secret a pod's volumes show.
pub type Versions = BTreeMap<SourceV1, (Uid, u64)>;

/// Everything known of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// When the node first saw the pod, in milliseconds since 1970.
    pub first_seen_ms: u64,
    /// Namespaces, address and small files.
    pub sandbox: Sandbox,
    /// The last attempt to make them failed.
    pub sandbox_failure: Option<Failure>,
    /// The pod's volumes.
    pub volumes: Volumes,
    /// One for each container, in the order of the pod: init, main, ephemeral.
    pub containers: Vec<Container>,
    /// How long the pod has been active.
    pub active: Active,
    /// What of the pod's progress is on disk.
    pub progress: Progress,
    /// A write of the progress is in flight.
    pub is_keeping: bool,
    /// Writing the progress failed; try again.
    pub keep_failure: Option<Failure>,
    /// Since when the pod stops as a whole; its grace counts from here.
    pub stopping_since: Option<Duration>,
    /// The node ended the pod, and why.
    pub eviction: Option<Eviction>,
    /// The final phase, once it is on disk: the pod never runs again.
    pub finished: Option<PhaseV1>,
    /// Writing the final phase failed; try again.
    pub record_failure: Option<Failure>,
    /// A write of the final phase is in flight.
    pub is_recording: bool,
    /// Namespaces, volumes and cgroup are gone.
    pub torn_down: bool,
    /// Removing them failed; try again.
    pub tear_down_failure: Option<Failure>,
    /// Their removal is in flight.
    pub is_tearing_down: bool,
}

/// Something that failed and is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One word, as Kubernetes has it; may be empty.
    pub reason: String,
    /// For people.
    pub message: String,
    /// How often in a row.
    pub count: u32,
    /// When it failed last.
    pub at: Duration,
    /// When it is tried again.
    pub retry_at: Duration,
}

impl Failure {
    /// The next failure in a row.
    pub(super) fn next(
        previous: Option<&Self>,
        reason: &str,
        message: String,
        at: Duration,
        delay: impl Fn(u32) -> Duration,
    ) -> Self {
        let count = previous.map_or(0, |failure| failure.count).saturating_add(1);
        Self { reason: reason.to_owned(), message, count, at, retry_at: at + delay(count) }
    }
}

/// The pod's namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sandbox {
    /// Not made yet.
    Absent,
    /// Being made.
    SettingUp,
    /// Made.
    Ready {
        /// The pod's address; empty where the node gives none.
        ip: String,
    },
    /// Could not be made; see [`PodState::sandbox_failure`].
    Failed,
}

/// The pod's volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volumes {
    /// What they show; `None` before they are set up.
    pub versions: Option<Versions>,
    /// Being set up or updated.
    pub is_working: bool,
    /// The last attempt failed.
    pub failure: Option<Failure>,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its name in the pod.
    pub name: String,
    /// What it is in the pod.
    pub role: Role,
    /// The image of the next run.
    pub image: Image,
    /// What it does.
    pub run: Run,
    /// How the run before `run` ended.
    pub last: Option<TerminatedV1>,
    /// Number of the next run; names its folder and its log.
    pub next_attempt: u32,
    /// It was up at least once since the machine booted: whoever waits for a
    /// sidecar waits no longer.
    pub was_up: bool,
    /// Runs begun so far, on every boot; one more than the restarts.
    pub n_runs: u32,
    /// Exits in a row, each within [`super::backoff::RESET_AFTER`] of its start.
    pub exits_in_a_row: u32,
    /// A run could not be made at all.
    pub create_failure: Option<Failure>,
    /// The current run is being stopped.
    pub stop: Option<ContainerStop>,
    /// Runs that are over and whose folders are still there.
    pub leftovers: Vec<Leftover>,
}

/// What a container is in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Runs to its end before the next one begins.
    Init,
    /// An init container that runs as long as the pod.
    Sidecar,
    /// What the pod is for.
    Main,
    /// Added to the running pod by somebody who looks into it.
    Ephemeral,
}

impl Role {
    /// Whether it belongs to the init containers.
    #[must_use]
    pub fn is_init(self) -> bool {
        matches!(self, Self::Init | Self::Sidecar)
    }
}

/// The image of a container's next run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The reference that `phase` is about.
    pub reference: String,
    /// How far it is.
    pub phase: ImagePhase,
    /// The last pull failed, and none has succeeded since.
    pub failure: Option<Failure>,
}

/// How far an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImagePhase {
    /// Not asked for.
    Unknown,
    /// Being looked up or pulled.
    Pulling,
    /// On disk.
    Ready {
        /// `sha256:…`.
        id: String,
        /// Number of the signal that the image wants to be stopped with.
        stop_signal: Option<u8>,
    },
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Run {
    /// Nothing since the machine booted.
    None,
    /// It is being started.
    Starting {
        /// Which run.
        attempt: u32,
        /// The image as the manifest names it.
        image: String,
        /// `sha256:…`.
        image_id: String,
        /// Number of the signal that its image wants to be stopped with.
        stop_signal: Option<u8>,
        /// Whether this agent waits for the result; if not, it is to be observed.
        in_flight: bool,
    },
    /// It runs.
    Running {
        /// Which run.
        attempt: u32,
        /// The image as the manifest names it.
        image: String,
        /// `sha256:…`.
        image_id: String,
        /// Since when, in milliseconds since 1970.
        started_ms: u64,
        /// Since when.
        since: Duration,
        /// Number of the signal that its image wants to be stopped with.
        stop_signal: Option<u8>,
        /// What its hook and its probes have said.
        health: Health,
    },
    /// It ended.
    Exited {
        /// Which run.
        attempt: u32,
        /// The image as the manifest names it.
        image: String,
        /// `sha256:…`.
        image_id: String,
        /// How.
        end: TerminatedV1,
        /// When.
        at: Duration,
        /// When it may start again, if it may.
        retry_at: Duration,
        /// It was stopped only to start anew with another image.
        replaced: bool,
        /// It never got as far as its first instruction.
        never_ran: bool,
        /// It was ended because of this.
        fault: Option<Why>,
        /// It was before the machine booted: known from the disk only.
        before_boot: bool,
    },
}

/// What the hook and the probes of a run have said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The hook after the start; [`Hook::Due`] also where there is none.
    pub post_start: Hook,
    /// The startup probe has succeeded.
    pub startup_passed: bool,
    /// What the readiness probe says.
    pub readiness_passed: bool,
    /// The run is to end because of this.
    pub fault: Option<Why>,
}

/// How far a hook is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    /// To be run.
    #[default]
    Due,
    /// Running.
    InFlight,
    /// Over.
    Done,
}

/// A container's current run is being stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStop {
    /// When the stop began: with its hook, or the stop signal.
    pub since: Duration,
    /// The hook before the stop.
    pub hook: Hook,
    /// When the stop signal was sent.
    pub signalled_at: Option<Duration>,
    /// When SIGKILL was sent last.
    pub killed_at: Option<Duration>,
    /// What for.
    pub why: Why,
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// The pod goes.
    PodStops,
    /// Its definition changed.
    Replaced,
    /// A probe failed as often as it may.
    Unhealthy(ProbeKind),
    /// The hook after its start failed.
    HookFailed,
    /// Somebody on the board asked for it.
    Restarted,
}

/// A run that is over, whose folder, cgroup and scratch are to be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// Which run.
    pub attempt: u32,
    /// Its removal is in flight.
    pub is_removing: bool,
    /// Its removal failed.
    pub failure: Option<Failure>,
}

impl PodState {
    /// A pod seen for the first time.
    #[must_use]
    pub fn new(pod: &PodV1, wall_ms: u64) -> Self {
        Self {
            first_seen_ms: wall_ms,
            sandbox: Sandbox::Absent,
            sandbox_failure: None,
            volumes: Volumes { versions: None, is_working: false, failure: None },
            containers: Desired::roles(pod).map(|(role, c)| Container::new(role, c)).collect(),
            active: Active::default(),
            progress: Progress::default(),
            is_keeping: false,
            keep_failure: None,
            stopping_since: None,
            eviction: None,
            finished: None,
            record_failure: None,
            is_recording: false,
            torn_down: false,
            tear_down_failure: None,
            is_tearing_down: false,
        }
    }

    /// Forgets what was in flight when the agent that wrote this ended: every
    /// step may be repeated. Called once after reading it back.
    pub fn resume(&mut self) {
        if self.sandbox == Sandbox::SettingUp {
            self.sandbox = Sandbox::Absent;
        }
        self.volumes.is_working = false;
        self.is_recording = false;
        self.is_tearing_down = false;
        self.is_keeping = false;
        for container in &mut self.containers {
            // Where an image is on disk is not kept; asking again costs a look.
            container.image.phase = ImagePhase::Unknown;
            match &mut container.run {
                Run::Starting { in_flight, .. } => *in_flight = false,
                // Hooks run at least once, as upstream promises.
                Run::Running { health, .. } if health.post_start == Hook::InFlight => {
                    health.post_start = Hook::Due;
                }
                _ => {}
            }
            if let Some(stop) = container.stop.as_mut().filter(|s| s.hook == Hook::InFlight) {
                stop.hook = Hook::Due;
            }
            for leftover in &mut container.leftovers {
                leftover.is_removing = false;
            }
        }
    }

    /// The container of that name.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    pub(super) fn container_mut(&mut self, name: &str) -> Option<&mut Container> {
        self.containers.iter_mut().find(|container| container.name == name)
    }

    /// The pod's address; empty before it has one.
    #[must_use]
    pub fn ip(&self) -> &str {
        match &self.sandbox {
            Sandbox::Ready { ip } => ip,
            _ => "",
        }
    }

    /// Whether nothing of the pod runs, starts or waits for its removal.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.containers.iter().all(|c| !c.run.is_live() && c.leftovers.is_empty())
    }
}

impl Container {
    /// A container that has not run.
    #[must_use]
    pub fn new(role: Role, wanted: &ContainerV1) -> Self {
        let reference = wanted.image.clone();
        Self {
            name: wanted.name.clone(),
            role,
            image: Image { reference, phase: ImagePhase::Unknown, failure: None },
            run: Run::None,
            last: None,
            next_attempt: 0,
            was_up: false,
            n_runs: 0,
            exits_in_a_row: 0,
            create_failure: None,
            stop: None,
            leftovers: Vec::new(),
        }
    }

    /// How often it was started again.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.n_runs.saturating_sub(1)
    }
}

impl Run {
    /// Whether it starts or runs.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Starting { .. } | Self::Running { .. })
    }

    /// A run that ended before the machine booted.
    #[must_use]
    pub fn ended(attempt: u32, image: &str, image_id: &str, end: TerminatedV1) -> Self {
        Self::Exited {
            attempt,
            image: image.to_owned(),
            image_id: image_id.to_owned(),
            end,
            at: Duration::ZERO,
            retry_at: Duration::ZERO,
            replaced: false,
            never_ran: false,
            fault: None,
            before_boot: true,
        }
    }

    /// Number of the run, if there is one.
    #[must_use]
    pub fn attempt(&self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Starting { attempt, .. }
            | Self::Running { attempt, .. }
            | Self::Exited { attempt, .. } => Some(*attempt),
        }
    }
}
