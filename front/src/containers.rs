//! Which container of a pod a request means.

use serde_json::Value;

use crate::status::Status;

/// Whether there may be containers to reach in a pod in this phase.
///
/// # Errors
/// `BadRequest`: the pod is over.
pub fn check_running(phase: &str) -> Result<(), Status> {
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Status::bad_request(format!(
            "cannot exec into or attach to a container in a completed pod; current phase is {phase}"
        )));
    }
    Ok(())
}

/// The container that is meant: the only one, the annotated one, or the one named.
///
/// # Errors
/// `BadRequest`: there is no such container, or it has to be named.
pub fn choose(pod_name: &str, pod: &Value, asked: &str) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    let ephemeral = names("ephemeralContainers");
    let known = containers.iter().chain(&init).chain(&ephemeral).any(|name| name == asked);
    if known {
        return Ok(asked.to_owned());
    }
    if !asked.is_empty() {
        return Err(Status::bad_request(format!(
            "container {asked} is not valid for pod {pod_name}"
        )));
    }
    if let ([only], []) = (containers.as_slice(), init.as_slice()) {
        return Ok(only.clone());
    }
    let annotation = &pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"];
    if let Some(name) = annotation.as_str().filter(|name| containers.iter().any(|c| c == name)) {
        return Ok(name.to_owned());
    }
    let mut problem = format!(
        "a container name must be specified for pod {pod_name}, choose one of: [{}]",
        containers.join(" ")
    );
    if !init.is_empty() {
        problem.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
    }
    Err(Status::bad_request(problem))
}
