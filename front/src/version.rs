//! The answer to `/version`.

use serde_json::{Value, json};

/// The API that is spoken, and what speaks it.
#[must_use]
pub fn version() -> Value {
    let version = env!("CARGO_PKG_VERSION");
    json!({
        "major": "1", "minor": "35", "emulationMajor": "1", "emulationMinor": "35",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "34",
        "gitVersion": format!("v1.35.0+pinnace-{version}"), "gitCommit": "",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "",
        "compiler": "rustc", "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}
