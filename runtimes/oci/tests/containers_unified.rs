//! The tests of `containers`, where cgroup v2 alone is mounted: the limits of
//! controllers that version 1 holds are skipped, device rules are a BPF program.

#[path = "containers.rs"]
mod containers;

fn main() -> std::process::ExitCode {
    containers::main()
}
