//! Lowers a container's probes and hooks. Ports by name become numbers here.

use api::view::{Container, Handler, IntOrString, Probe};
use wire::pod::{HandlerV1, LifecycleV1, ProbeV1, ProbesV1};

use super::LowerError;

pub(super) fn probes(container: &Container) -> Result<ProbesV1, LowerError> {
    let lower = |field: &'static str, probe: &Option<Probe>| {
        probe.as_ref().map(|probe| lower_probe(container, field, probe)).transpose()
    };
    Ok(ProbesV1 {
        startup: lower("startupProbe", &container.startup_probe)?,
        liveness: lower("livenessProbe", &container.liveness_probe)?,
        readiness: lower("readinessProbe", &container.readiness_probe)?,
    })
}

pub(super) fn lifecycle(container: &Container) -> Result<LifecycleV1, LowerError> {
    let hooks = &container.lifecycle;
    let lower = |field: &'static str, hook: &Option<Handler>| {
        hook.as_ref().map(|hook| lower_handler(container, field, hook)).transpose()
    };
    Ok(LifecycleV1 {
        post_start: lower("lifecycle.postStart", &hooks.post_start)?,
        pre_stop: lower("lifecycle.preStop", &hooks.pre_stop)?,
        stop_signal: hooks.stop_signal.as_deref().and_then(signal_number),
    })
}

fn lower_probe(
    container: &Container,
    field: &'static str,
    probe: &Probe,
) -> Result<ProbeV1, LowerError> {
    let count = |value: i64, least: u32| u32::try_from(value).unwrap_or(0).max(least);
    Ok(ProbeV1 {
        handler: lower_handler(container, field, &probe.handler)?,
        initial_delay_s: count(probe.initial_delay_seconds, 0),
        timeout_s: count(probe.timeout_seconds, 1),
        period_s: count(probe.period_seconds, 1),
        success_threshold: count(probe.success_threshold, 1),
        failure_threshold: count(probe.failure_threshold, 1),
        termination_grace_s: probe.termination_grace_period_seconds.map(|s| count(s, 1)),
    })
}

fn lower_handler(
    container: &Container,
    field: &'static str,
    handler: &Handler,
) -> Result<HandlerV1, LowerError> {
    if let Some(exec) = &handler.exec {
        return Ok(HandlerV1::Exec(exec.command.clone()));
    }
    if let Some(http) = &handler.http_get {
        let slash = if http.path.starts_with('/') { "" } else { "/" };
        return Ok(HandlerV1::Http {
            host: http.host.clone(),
            port: port(container, http.port.as_ref())?,
            path: format!("{slash}{}", http.path),
            https: http.scheme == "HTTPS",
            headers: http
                .http_headers
                .iter()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        });
    }
    if let Some(tcp) = &handler.tcp_socket {
        let port = port(container, tcp.port.as_ref())?;
        return Ok(HandlerV1::Tcp { host: tcp.host.clone(), port });
    }
    if let Some(grpc) = &handler.grpc {
        let port = u16::try_from(grpc.port).map_err(|_| LowerError::Range("port", grpc.port))?;
        return Ok(HandlerV1::Grpc { port, service: grpc.service.clone().unwrap_or_default() });
    }
    if let Some(sleep) = &handler.sleep {
        return Ok(HandlerV1::Sleep(u32::try_from(sleep.seconds.max(0)).unwrap_or(u32::MAX)));
    }
    Err(LowerError::Handler { container: container.name.clone(), field })
}

fn port(container: &Container, port: Option<&IntOrString>) -> Result<u16, LowerError> {
    let number = match port {
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let named = container.ports.iter().find(|port| port.name == *name);
            let found = named.map(|port| port.container_port).or_else(|| name.parse().ok());
            found.ok_or_else(|| LowerError::Port {
                container: container.name.clone(),
                port: name.clone(),
            })?
        }
        None => 0,
    };
    u16::try_from(number).map_err(|_| LowerError::Range("port", number))
}

/// The number of a signal, the same on every architecture that nodes have.
fn signal_number(name: &str) -> Option<u8> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = name.strip_prefix("SIG").unwrap_or(name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: u8 =
            if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return 34_u8.checked_add(offset).filter(|number| *number <= 64);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset: u8 =
            if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse().ok()? };
        return 64_u8.checked_sub(offset).filter(|number| *number >= 34);
    }
    let at = NAMES.iter().position(|known| *known == name)?;
    u8::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_numbers() {
        let numbers = ["SIGHUP", "SIGKILL", "SIGTERM", "SIGSYS", "SIGRTMIN", "SIGRTMIN+3"];
        assert_eq!(numbers.map(signal_number), [1, 9, 15, 31, 34, 37].map(Some));
        assert_eq!(signal_number("SIGRTMAX-1"), Some(63));
        assert_eq!(["SIGNOPE", "SIGRTMIN+99", ""].map(signal_number), [None; 3]);
    }
}
