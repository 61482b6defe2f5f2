//! Cluster IPs and node ports: who holds what. Owned by `ServiceAdmission`; rebuilt from the stored objects at start.
//! One holding belongs to one Service at most, and a step from one specification to another holds the new before it
//! lets go of the old.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};

use super::addresses::Addresses;
use super::{family, is_external_name, is_headless, list, wants_health_check, wants_node_ports};
use crate::field::FieldErrors;
use crate::pool::Pool;

/// The most ports kept for people to choose, as in Kubernetes.
const LARGEST_LOWER_PORTS: u128 = 128;
const SMALLEST_LOWER: u128 = 16;

/// The node ports of the cluster, as `30000-32767`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePortRange {
    pub first: u16,
    pub last: u16,
}

impl Default for NodePortRange {
    fn default() -> Self {
        Self { first: 30_000, last: 32_767 }
    }
}

/// A text that is no range of ports.
#[derive(Debug, thiserror::Error)]
#[error("node port range {0:?} is not of the form 30000-32767")]
pub struct NotARange(String);

impl FromStr for NodePortRange {
    type Err = NotARange;

    fn from_str(text: &str) -> Result<Self, NotARange> {
        let ends =
            text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match ends {
            Some((first, last)) if 0 < first && first <= last => Ok(Self { first, last }),
            _ => Err(NotARange(text.to_owned())),
        }
    }
}

/// One thing a Service can hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holding {
    Address(IpAddr),
    Port { protocol: String, number: u16 },
}

impl Holding {
    fn port(protocol: &str, number: i32) -> Option<Self> {
        u16::try_from(number)
            .ok()
            .filter(|&number| number != 0)
            .map(|number| Self::Port { protocol: protocol.to_owned(), number })
    }
}

impl std::fmt::Display for Holding {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(out, "{address}"),
            Self::Port { protocol, number } => write!(out, "{number}/{protocol}"),
        }
    }
}

/// What every Service of the cluster holds.
#[derive(Debug)]
pub struct Allocator {
    pub(super) addresses: Addresses,
    range: NodePortRange,
    ports: BTreeMap<String, Pool>,
}

impl Allocator {
    pub fn new(cidrs: &[IpNet], range: NodePortRange) -> Self {
        Self { addresses: Addresses::new(cidrs), range, ports: BTreeMap::new() }
    }

    /// Holds what a stored Service has; says what another Service holds already.
    pub fn adopt(&mut self, spec: &ServiceSpec) -> Vec<String> {
        let taken: Vec<_> = holdings(spec).into_iter().filter(|one| self.hold(one) == Some(false)).collect();
        taken.iter().map(Holding::to_string).collect()
    }

    /// Lets go of what only `from` has and holds what only `to` has.
    pub(super) fn exchange(&mut self, from: Option<&ServiceSpec>, to: Option<&ServiceSpec>) {
        let from = from.map(holdings).unwrap_or_default();
        let to = to.map(holdings).unwrap_or_default();
        from.difference(&to).for_each(|one| self.release(one));
        for lost in to.difference(&from).filter(|one| self.hold(one) == Some(false)) {
            tracing::error!(holding = %lost, "another service took what an undone write had held");
        }
    }

    /// Completes `spec` with addresses and ports and holds them; on error holds what it held before.
    pub(super) fn assign(
        &mut self,
        spec: &mut ServiceSpec,
        old: Option<&ServiceSpec>,
    ) -> Result<(), FieldErrors> {
        let stored = old.map(holdings).unwrap_or_default();
        let mut step =
            Step { allocator: self, stored: &stored, gained: Vec::new(), errors: FieldErrors::default() };
        step.addresses(spec);
        step.node_ports(spec);
        step.health_check(spec);
        let Step { gained, errors, .. } = step;
        if !errors.is_empty() {
            for one in &gained {
                self.release(one);
            }
            return Err(errors);
        }
        let kept = holdings(spec);
        stored.difference(&kept).for_each(|one| self.release(one));
        Ok(())
    }

    /// Whether it could be held; `None` if it lies outside every range.
    fn hold(&mut self, holding: &Holding) -> Option<bool> {
        match holding {
            Holding::Address(address) => self.addresses.hold(*address),
            Holding::Port { protocol, number } => {
                let (pool, number) = (self.port_pool(protocol), u128::from(*number));
                pool.contains(number).then(|| pool.hold(number))
            }
        }
    }

    fn release(&mut self, holding: &Holding) {
        match holding {
            Holding::Address(address) => self.addresses.release(*address),
            Holding::Port { protocol, number } => self.port_pool(protocol).release((*number).into()),
        }
    }

    fn port_pool(&mut self, protocol: &str) -> &mut Pool {
        let NodePortRange { first, last } = self.range;
        self.ports.entry(protocol.to_owned()).or_insert_with(|| {
            let count = u128::from(last - first) + 1;
            Pool::new(first.into(), last.into(), lower_band(count, 32, LARGEST_LOWER_PORTS))
        })
    }
}

/// One completion of a specification; `gained` is what to give back if it fails.
struct Step<'a> {
    allocator: &'a mut Allocator,
    stored: &'a BTreeSet<Holding>,
    gained: Vec<Holding>,
    errors: FieldErrors,
}

impl Step<'_> {
    fn addresses(&mut self, spec: &mut ServiceSpec) {
        if is_external_name(spec) || is_headless(spec) {
            return;
        }
        let mut texts = spec.cluster_ips.take().unwrap_or_default();
        for (index, family) in family::families_of(spec).into_iter().enumerate() {
            let field = format!("spec.clusterIPs[{index}]");
            match texts.get(index).and_then(|text| text.parse().ok()) {
                Some(asked) => self.take_address(&field, asked),
                None => match self.allocator.addresses.free(family) {
                    Some(free) => {
                        self.take_address(&field, free);
                        texts.push(free.to_string());
                    }
                    None => self.errors.invalid(field, "", "failed to allocate an IP: range is full"),
                },
            }
        }
        spec.cluster_ip = texts.first().cloned();
        spec.cluster_ips = Some(texts);
    }

    fn node_ports(&mut self, spec: &mut ServiceSpec) {
        let wanted = wants_node_ports(spec);
        let Some(ports) = &mut spec.ports else { return };
        for (index, port) in ports.iter().enumerate() {
            self.take_port(
                &format!("spec.ports[{index}].nodePort"),
                protocol(port),
                port.node_port.unwrap_or(0),
            );
        }
        for index in (0..ports.len()).filter(|_| wanted) {
            if ports[index].node_port.unwrap_or(0) == 0 {
                let field = format!("spec.ports[{index}].nodePort");
                let sibling = self.sibling(ports, index);
                ports[index].node_port = sibling.or_else(|| self.free_port(&field, protocol(&ports[index])));
                self.take_port(&field, protocol(&ports[index]), ports[index].node_port.unwrap_or(0));
            }
        }
    }

    /// The node port of the same port number under another protocol, if it is free here: DNS is one port to people.
    fn sibling(&mut self, ports: &[ServicePort], index: usize) -> Option<i32> {
        let port = &ports[index];
        let number = ports
            .iter()
            .filter(|other| other.port == port.port && protocol(other) != protocol(port))
            .find_map(|other| other.node_port.filter(|&number| number != 0))?;
        let pool = self.allocator.port_pool(protocol(port));
        let free = u128::try_from(number).is_ok_and(|number| pool.contains(number) && !pool.is_held(number));
        free.then_some(number)
    }

    fn health_check(&mut self, spec: &mut ServiceSpec) {
        let field = "spec.healthCheckNodePort";
        if wants_health_check(spec) {
            if spec.health_check_node_port.unwrap_or(0) == 0 {
                spec.health_check_node_port = self.free_port(field, "TCP");
            }
            let number = spec.health_check_node_port.unwrap_or(0);
            let serves = |port: &ServicePort| protocol(port) == "TCP" && port.node_port == Some(number);
            if number != 0 && list(spec.ports.as_ref()).iter().any(serves) {
                self.errors.invalid(field, number, "provided port is already allocated");
            }
            self.take_port(field, "TCP", number);
        }
    }

    fn free_port(&mut self, field: &str, protocol: &str) -> Option<i32> {
        let picked = self.allocator.port_pool(protocol).pick(&mut rand::rng(), |_| true);
        if picked.is_none() {
            self.errors.invalid(field, 0, "failed to allocate a port: range is full");
        }
        picked.and_then(|number| i32::try_from(number).ok())
    }

    fn take_address(&mut self, field: &str, address: IpAddr) {
        let why = match self.take(&Holding::Address(address)) {
            Taken::Yes => return,
            Taken::ByAnother => "provided IP is already allocated",
            Taken::Outside => "the provided network does not match the current range",
        };
        let text = address.to_string();
        self.errors.invalid(field, &text, format_args!("failed to allocate IP {text}: {why}"));
    }

    fn take_port(&mut self, field: &str, protocol: &str, number: i32) {
        if number == 0 {
            return;
        }
        let NodePortRange { first, last } = self.allocator.range;
        let holding = Holding::port(protocol, number);
        match holding.map_or(Taken::Outside, |holding| self.take(&holding)) {
            Taken::Yes => {}
            Taken::ByAnother => self.errors.invalid(field, number, "provided port is already allocated"),
            Taken::Outside => {
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {first}-{last}"
                );
                self.errors.invalid(field, number, why);
            }
        }
    }

    /// Holds one thing unless the Service has it already.
    fn take(&mut self, holding: &Holding) -> Taken {
        if self.stored.contains(holding) || self.gained.contains(holding) {
            return Taken::Yes;
        }
        match self.allocator.hold(holding) {
            Some(true) => {
                self.gained.push(holding.clone());
                Taken::Yes
            }
            Some(false) => Taken::ByAnother,
            None => Taken::Outside,
        }
    }
}

/// How an attempt to hold something ended.
enum Taken {
    Yes,
    ByAnother,
    Outside,
}

fn holdings(spec: &ServiceSpec) -> BTreeSet<Holding> {
    let mut held = BTreeSet::new();
    if !is_external_name(spec) {
        held.extend(
            list(spec.cluster_ips.as_ref()).iter().filter_map(|text| text.parse().ok()).map(Holding::Address),
        );
    }
    let ports = list(spec.ports.as_ref()).iter();
    held.extend(ports.filter_map(|port| Holding::port(protocol(port), port.node_port.unwrap_or(0))));
    held.extend(Holding::port("TCP", spec.health_check_node_port.unwrap_or(0)));
    held
}

/// How many numbers of `size` are kept for people to choose: one in `share`, if that is worth it.
pub(super) fn lower_band(size: u128, share: u128, most: u128) -> u128 {
    if size / share < SMALLEST_LOWER { 0 } else { (size / share).min(most) }
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}
