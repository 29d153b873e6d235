//! Which Events follow from how a pod's status changed. Those that follow from a
//! transition come from [`super::apply`].

use wire::status::{PodStatusV1, StateV1};

use super::status::{CREATING, INITIALIZING};
use super::{Desired, Happening};
use crate::id;

/// The Events that follow from how a status changed.
#[must_use]
pub fn happenings(
    desired: &Desired,
    old: Option<&PodStatusV1>,
    new: &PodStatusV1,
) -> Vec<Happening> {
    let mut all: Vec<Happening> = Vec::new();
    let old_of = |name: &str| old?.all_containers().find(|c| c.name == name).map(|c| &c.state);
    for container in new.all_containers() {
        let StateV1::Waiting { reason, message } = &container.state else { continue };
        if old_of(&container.name) == Some(&container.state) {
            continue;
        }
        let mut warn = |container: &str, reason: &'static str, message: String| {
            let happening =
                Happening { container: container.to_owned(), warning: true, reason, message };
            if !all.contains(&happening) {
                all.push(happening);
            }
        };
        let name = &container.name;
        match reason.as_str() {
            CREATING | INITIALIZING if message.is_empty() => {}
            CREATING | INITIALIZING if message.starts_with("Failed to create pod sandbox") => {
                warn("", "FailedCreatePodSandBox", message.clone());
            }
            CREATING | INITIALIZING => warn("", "FailedMount", message.clone()),
            "CrashLoopBackOff" => warn(
                name,
                "BackOff",
                format!(
                    "Back-off restarting failed container {name} in pod {}_{}({})",
                    desired.pod.name,
                    desired.pod.namespace,
                    id::uid_text(&desired.pod.uid)
                ),
            ),
            "ImagePullBackOff" => {
                warn(name, "BackOff", format!("Back-off pulling image \"{}\"", container.image));
            }
            "ErrImagePull" => {
                let image = &container.image;
                warn(name, "Failed", format!("Failed to pull image \"{image}\": {message}"));
                warn(name, "Failed", "Error: ErrImagePull".to_owned());
            }
            _ if message.is_empty() => warn(name, "Failed", format!("Error: {reason}")),
            _ => warn(name, "Failed", format!("Error: {message}")),
        }
    }
    all
}
