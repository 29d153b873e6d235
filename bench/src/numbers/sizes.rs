//! Sizes of the programs, stripped as the release profile leaves them. The bars
//! are for aarch64, so they are compared with that build where there is one.

use std::fs;
use std::path::Path;

use crate::report::{note, value};
use crate::world::program;

pub(crate) fn measure() -> anyhow::Result<()> {
    let machine = std::env::consts::ARCH;
    for (name, bar) in
        [("pinnace-master", Some(16.0)), ("pinnace-agent", Some(10.0)), ("pinnace", None)]
    {
        let path = program(name)?;
        show(&format!("{name}, {machine}"), &path, bar)?;
        let cross = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target/aarch64-unknown-linux-gnu/release")
            .join(name);
        if machine != "aarch64" && cross.exists() {
            show(&format!("{name}, aarch64"), &cross, bar)?;
        }
    }
    Ok(())
}

fn show(what: &str, path: &Path, bar: Option<f64>) -> anyhow::Result<()> {
    let bytes = fs::metadata(path)?.len();
    let megabytes = f64::from(u32::try_from(bytes / 1000)?) / 1000.0;
    let shown = format!("{megabytes:.1} MB ({bytes} bytes)");
    match bar {
        Some(bar) => value(what, &shown, &format!("<= {bar} MB on aarch64"), megabytes <= bar),
        None => note(&format!("{what}: {shown}, no bar")),
    }
    Ok(())
}
