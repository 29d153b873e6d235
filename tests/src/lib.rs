//! The whole system under test: a harness, and the tests that use it.
//!
//! One crate, so one test binary to link. `cargo test -p pinnace-tests -- --list`
//! shows them. Tests that start programs need root and what `scripts/setup`
//! installs; they take turns.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::print_stderr))]

#[cfg(test)]
mod backup;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod confinement;
#[cfg(test)]
mod cut_off;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod faults_node;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod images;
#[cfg(test)]
mod interfaces;
#[cfg(test)]
mod kill_loop;
#[cfg(test)]
mod kubectl;
// The API server's tests include the file as well, where `pub` is right.
#[cfg(test)]
#[allow(unreachable_pub)]
mod kubectl_matrix;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod local_door;
#[cfg(test)]
mod local_volumes;
#[cfg(test)]
mod modules;
#[cfg(test)]
mod node_port;
#[cfg(test)]
mod pod_settings;
#[cfg(test)]
mod reach;
#[cfg(test)]
mod services;
#[cfg(test)]
mod services_api;
#[cfg(test)]
mod services_traffic;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod static_pods;
#[cfg(test)]
mod terminals;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod top;
#[cfg(test)]
mod workloads;
