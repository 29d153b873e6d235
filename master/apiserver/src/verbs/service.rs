//! Gives Services their addresses and ports: with the write, or not at all.
//!
//! | key in the store | what it says |
//! |---|---|
//! | `/-/clusterip/{address}` | which Service has the address |
//! | `/-/nodeport/{port}` | which Service has the port of every node |
//!
//! A write of a Service puts the keys of what it takes, which must be absent, and
//! removes the keys of what it gives back, all in the transaction of the object.
//! So two Services can never have the same, whoever writes and whenever the power
//! goes; and a backup holds both. What the client named and is taken is an error;
//! what was chosen here and was taken meanwhile is chosen again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::resource::{self, Resource};
use api::service::{self, API_SERVICE, DNS_SERVICE, Held, Ranges};
use serde_json::{Map, Value, json};
use store::{Expect, ListOptions, Write};

use super::{Api, Target, parse_stored, store_error};
use crate::object;
use crate::status::{Cause, Status};

const ADDRESSES: &str = "/-/clusterip/";
const PORTS: &str = "/-/nodeport/";
/// Times that something is chosen anew because it was taken meanwhile.
pub(super) const TRIES: usize = 16;
/// Random choices before all that is taken is looked through.
const PROBES: usize = 32;

/// Whether the store refused a write because an address or port was taken.
pub(super) fn is_reservation(key: &str) -> bool {
    key.starts_with(ADDRESSES) || key.starts_with(PORTS)
}

fn is_service(resource: &Resource) -> bool {
    (resource.group, resource.kind) == ("", "Service")
}

fn address_key(address: IpAddr) -> String {
    format!("{ADDRESSES}{address}")
}

fn port_key(port: u16) -> String {
    format!("{PORTS}{port}")
}

fn keys(held: &Held) -> BTreeSet<String> {
    let addresses = held.addresses.iter().map(|address| address_key(*address));
    addresses.chain(held.ports.iter().map(|port| port_key(*port))).collect()
}

/// Who has it, for people that look into the store.
fn owner_text(service: &Value) -> Vec<u8> {
    let (namespace, name) = (object::meta(service, "namespace"), object::meta(service, "name"));
    json!({"namespace": namespace, "name": name}).to_string().into_bytes()
}

/// What else a delete of `old` writes: everything it held is free again.
pub(super) fn release(resource: &Resource, old: &Value) -> Vec<Write> {
    if !is_service(resource) {
        return Vec::new();
    }
    keys(&service::held(old)).into_iter().map(|key| Write::delete(key, Expect::Any)).collect()
}

impl Api {
    /// Says where addresses and ports of Services come from. The first one stays;
    /// without it they are Kubernetes' ports and 10.43.0.0/16.
    pub fn set_service_ranges(&self, ranges: Ranges) {
        let _ = self.inner.services.set(ranges);
    }

    /// Where addresses and ports of Services come from.
    #[must_use]
    pub fn service_ranges(&self) -> &Ranges {
        self.inner.services.get_or_init(Ranges::default)
    }

    /// Completes a Service but for what is allocated; see [`service::prepare`].
    pub(super) fn prepare_service(
        &self,
        resource: &Resource,
        old: Option<&Value>,
        object: &mut Value,
    ) -> Vec<api::validation::FieldError> {
        if !is_service(resource) {
            return Vec::new();
        }
        service::prepare(self.service_ranges(), old, object)
    }

    /// Gives a Service that passed validation what it lacks, and returns the
    /// writes that must happen with it.
    ///
    /// # Errors
    /// `Invalid` where it names what another one has or what is out of range.
    pub(super) fn allocate(
        &self,
        target: &Target<'_>,
        old: Option<&Value>,
        new: &mut Value,
    ) -> Result<Vec<Write>, Status> {
        if !is_service(target.resource) || !matches!(target.subresource, "") {
            return Ok(Vec::new());
        }
        let before = old.map(service::held).unwrap_or_default();
        let mut wanted = Wanted { api: self, target, before: &before, causes: Vec::new() };
        wanted.addresses(new)?;
        wanted.ports(new)?;
        if !wanted.causes.is_empty() {
            let name = object::meta(new, "name");
            return Err(Status::invalid("", "Service", name, wanted.causes));
        }
        let (before, after) = (keys(&before), keys(&service::held(new)));
        let owner = owner_text(new);
        let taken = after
            .difference(&before)
            .map(|key| Write::put(key.clone(), Expect::Absent, owner.clone()));
        let freed = before.difference(&after).map(|key| Write::delete(key.clone(), Expect::Any));
        Ok(taken.chain(freed).collect())
    }

    /// Makes the reservations what the Services say, for a store that another
    /// version wrote or that was repaired by hand. Called before anything is served.
    pub(super) async fn repair_reservations(&self) -> Result<(), Status> {
        let services = resource::by_kind("", "Service").expect("in the table of resources");
        let all = ListOptions::default();
        let list = |prefix: &str| self.inner.store.list(prefix, &all).map_err(|e| store_error(&e));
        let mut needed = BTreeMap::new();
        for stored in list(&services.key_prefix())?.items {
            let service = parse_stored(&stored.key, &stored.value)?;
            let held = service::held(&service);
            // The cluster's own are made anew without anybody's help.
            let name = (object::meta(&service, "namespace"), object::meta(&service, "name"));
            let is_own = [API_SERVICE, DNS_SERVICE].contains(&name);
            for address in held.addresses.iter().filter(|_| !is_own) {
                if !self.service_ranges().has_address(*address) {
                    tracing::warn!(
                        service = stored.key, %address, network = %self.service_ranges().addresses(),
                        "a Service has an address outside of --service-cidr: make it anew"
                    );
                }
            }
            needed.extend(keys(&held).into_iter().map(|key| (key, owner_text(&service))));
        }
        let mut writes = Vec::new();
        for prefix in [ADDRESSES, PORTS] {
            for stored in list(prefix)?.items {
                if needed.remove(&stored.key).is_none() {
                    writes.push(Write::delete(stored.key, Expect::Revision(stored.revision)));
                }
            }
        }
        writes
            .extend(needed.into_iter().map(|(key, owner)| Write::put(key, Expect::Absent, owner)));
        if writes.is_empty() {
            return Ok(());
        }
        tracing::info!(n = writes.len(), "addresses and ports of Services are recorded anew");
        self.inner.store.write(writes).await.map(|_| ()).map_err(|e| store_error(&e))
    }
}

/// One Service on its way to what it wants.
struct Wanted<'a> {
    api: &'a Api,
    target: &'a Target<'a>,
    before: &'a Held,
    causes: Vec<Cause>,
}

impl Wanted<'_> {
    fn refuse(&mut self, field: String, value: &Value, detail: &str) {
        self.causes.push(Cause {
            reason: "FieldValueInvalid".to_owned(),
            message: format!("Invalid value: {value}: {detail}"),
            field,
        });
    }

    fn is_taken(&self, key: &str) -> Result<bool, Status> {
        Ok(self.api.inner.store.get(key).map_err(|e| store_error(&e))?.is_some())
    }

    /// Whether the address is kept for one Service, and this is another.
    fn is_kept(&self, address: IpAddr, service: &Value) -> bool {
        let ranges = self.api.service_ranges();
        let own = (self.target.namespace, object::meta(service, "name"));
        address == ranges.api_address() && own != API_SERVICE
            || address == ranges.dns_address() && own != DNS_SERVICE
    }

    fn addresses(&mut self, new: &mut Value) -> Result<(), Status> {
        let ranges = self.api.service_ranges();
        let spec = new.get("spec").and_then(Value::as_object);
        let lacks = spec.is_some_and(|spec| {
            service::needs_cluster_ip(spec)
                && !service::is_headless(spec)
                && spec.get("clusterIPs").and_then(Value::as_array).is_none_or(Vec::is_empty)
        });
        if lacks {
            let Some(address) = self.free_address(new)? else {
                let detail = format!(
                    "failed to allocate a serviceIP: range is full: every address of {} is taken",
                    ranges.addresses()
                );
                self.refuse("spec.clusterIPs".to_owned(), &json!([]), &detail);
                return Ok(());
            };
            let spec = object::child_mut(new, "spec");
            spec.insert("clusterIP".to_owned(), json!(address.to_string()));
            spec.insert("clusterIPs".to_owned(), json!([address.to_string()]));
            return Ok(());
        }
        let after = service::held(new);
        for address in after.addresses.difference(&self.before.addresses) {
            let problem = if !ranges.has_address(*address) {
                format!(
                    "the provided IP ({address}) is not in the valid range. The range of valid IPs \
                     is {}",
                    ranges.addresses()
                )
            } else if self.is_kept(*address, new) || self.is_taken(&address_key(*address))? {
                "provided IP is already allocated".to_owned()
            } else {
                continue;
            };
            let detail = format!("failed to allocate IP {address}: {problem}");
            self.refuse("spec.clusterIPs".to_owned(), &new["spec"]["clusterIPs"], &detail);
        }
        Ok(())
    }

    /// An address that nobody has: one of the upper band where there is one.
    fn free_address(&self, service: &Value) -> Result<Option<IpAddr>, Status> {
        let ranges = self.api.service_ranges();
        let (first, last) = (ranges.first_dynamic_position(), *ranges.positions().end());
        let at = |position: u128| ranges.addresses().nth(position);
        for _ in 0..PROBES {
            let position = first + u128::from(super::create::random()) % (last - first + 1);
            if let Some(address) = at(position)
                && !self.is_kept(address, service)
                && !self.is_taken(&address_key(address))?
            {
                return Ok(Some(address));
            }
        }
        let taken = self.taken(ADDRESSES)?;
        let lower = *ranges.positions().start()..first;
        let free = (first..=last).chain(lower).filter_map(at).find(|address| {
            !taken.contains(&address.to_string()) && !self.is_kept(*address, service)
        });
        Ok(free)
    }

    /// The ends of all keys that begin so.
    fn taken(&self, prefix: &str) -> Result<BTreeSet<String>, Status> {
        let list = self.api.inner.store.list(prefix, &ListOptions::default());
        let items = list.map_err(|e| store_error(&e))?.items;
        Ok(items
            .iter()
            .filter_map(|item| item.key.strip_prefix(prefix))
            .map(str::to_owned)
            .collect())
    }

    fn ports(&mut self, new: &mut Value) -> Result<(), Status> {
        self.check_ports(new)?;
        let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
        let mut own: BTreeSet<u16> =
            service::held(&json!({"spec": &*spec})).ports.into_iter().collect();
        if service::needs_node_ports(spec) {
            // The same port of two protocols gets one port of the nodes.
            let mut by_port: BTreeMap<i64, i64> = service::ports(spec)
                .filter_map(|port| Some((int(port, "port")?, int(port, "nodePort")?)))
                .collect();
            let n_ports = spec.get("ports").and_then(Value::as_array).map_or(0, Vec::len);
            for n in 0..n_ports {
                let port = &spec["ports"][n];
                let (number, protocol) =
                    (port["port"].as_i64().unwrap_or(0), port["protocol"].clone());
                if port.get("nodePort").is_some() {
                    continue;
                }
                let shared = by_port.get(&number).copied().filter(|shared| {
                    !service::ports(spec).any(|other| {
                        int(other, "nodePort") == Some(*shared)
                            && other.get("protocol") == Some(&protocol)
                    })
                });
                let chosen = match shared {
                    Some(shared) => shared,
                    None => match self.free_port(&own)? {
                        Some(free) => i64::from(free),
                        None => {
                            self.no_port(format!("spec.ports[{n}].nodePort"));
                            return Ok(());
                        }
                    },
                };
                own.extend(u16::try_from(chosen));
                by_port.insert(number, chosen);
                spec["ports"][n]["nodePort"] = json!(chosen);
            }
        }
        if service::needs_health_check(spec) && spec.get("healthCheckNodePort").is_none() {
            match self.free_port(&own)? {
                Some(port) => {
                    spec.insert("healthCheckNodePort".to_owned(), json!(port));
                }
                None => self.no_port("spec.healthCheckNodePort".to_owned()),
            }
        }
        Ok(())
    }

    fn no_port(&mut self, field: String) {
        let range = self.api.service_ranges().node_ports();
        let detail = format!(
            "failed to allocate a nodePort: range is full: every port of {}-{} is taken",
            range.start(),
            range.end()
        );
        self.refuse(field, &json!(0), &detail);
    }

    /// The ports that the client named.
    fn check_ports(&mut self, new: &Value) -> Result<(), Status> {
        let range = self.api.service_ranges().node_ports();
        let Some(spec) = new.get("spec").and_then(Value::as_object) else { return Ok(()) };
        let named = service::ports(spec).enumerate().filter_map(|(n, port)| {
            Some((format!("spec.ports[{n}].nodePort"), int(port, "nodePort")?))
        });
        let health = int(spec, "healthCheckNodePort");
        let health = health.map(|port| ("spec.healthCheckNodePort".to_owned(), port));
        for (field, port) in named.chain(health) {
            let number = u16::try_from(port).ok();
            if number.is_some_and(|port| self.before.ports.contains(&port)) {
                continue;
            }
            match number.filter(|port| range.contains(port)) {
                None => {
                    let detail = format!(
                        "provided port is not in the valid range. The range of valid ports is {}-{}",
                        range.start(),
                        range.end()
                    );
                    self.refuse(field, &json!(port), &detail);
                }
                Some(number) if self.is_taken(&port_key(number))? => {
                    self.refuse(field, &json!(port), "provided port is already allocated");
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// A port that nobody has, this Service included.
    fn free_port(&self, own: &BTreeSet<u16>) -> Result<Option<u16>, Status> {
        let ranges = self.api.service_ranges();
        let (first, last) = (ranges.first_dynamic_port(), *ranges.node_ports().end());
        for _ in 0..PROBES {
            let span = u64::from(last - first) + 1;
            let offset = u16::try_from(super::create::random() % span).unwrap_or(0);
            let port = first + offset;
            if !own.contains(&port) && !self.is_taken(&port_key(port))? {
                return Ok(Some(port));
            }
        }
        let taken = self.taken(PORTS)?;
        let free = (first..=last)
            .chain(*ranges.node_ports().start()..first)
            .find(|port| !own.contains(port) && !taken.contains(&port.to_string()));
        Ok(free)
    }
}

fn int(fields: &Map<String, Value>, name: &str) -> Option<i64> {
    fields.get(name).and_then(Value::as_i64)
}
