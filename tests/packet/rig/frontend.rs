//! Frontends of every kind, and what decides who may use them and whom they lead to.
//!
//! Stories call it where the Services that every rig has are not enough. Invariant: rows are written in the agent's
//! order, what is referred to first.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use quilla_abi::Be16;
use quilla_abi::affinity::MemberKey;
use quilla_abi::load::Load;
use quilla_abi::service::{Service, ServiceKey, SourceRangeKey};

use super::{Family, Rig, v4, v6};

/// Runs an expression for the table of an address's family, with the address as bytes.
macro_rules! by_family {
    ($maps:expr, $addr:expr, $v4:ident, $v6:ident, |$table:ident, $bytes:ident| $body:expr) => {
        match $addr {
            IpAddr::V4(addr) => {
                let ($table, $bytes) = (&$maps.$v4, addr.octets());
                $body
            }
            IpAddr::V6(addr) => {
                let ($table, $bytes) = (&$maps.$v6, addr.octets());
                $body
            }
        }
    };
}

impl Rig {
    /// A frontend in a scope, with a row whose slots are set here.
    pub(crate) fn serve(
        &mut self,
        (at, proto): (SocketAddr, u8),
        scope: u8,
        row: Service,
        backends: &[SocketAddr],
    ) -> Result<()> {
        let ids: Vec<u32> =
            backends.iter().map(|&backend| self.backend(backend, proto)).collect::<Result<_>>()?;
        let (slot_base, slot_count) = (self.slots, u32::try_from(ids.len())?);
        for (slot, id) in (slot_base..).zip(&ids) {
            self.datapath.maps().slots.set(slot, id)?;
        }
        self.slots += slot_count;
        self.set_row(at, proto, scope, &Service { slot_base, slot_count, ..row })
    }

    /// Says that the address has frontends in the scope (S22).
    pub(crate) fn mark(&self, address: IpAddr, scope: u8) -> Result<()> {
        self.set_row(SocketAddr::new(address, 0), 0, scope, &Service::default())
    }

    fn set_row(&self, at: SocketAddr, proto: u8, scope: u8, row: &Service) -> Result<()> {
        let port = Be16::new(at.port());
        by_family!(self.datapath.maps(), at.ip(), services_v4, services_v6, |table, addr| {
            Ok(table.insert(&ServiceKey { addr, port, proto, scope }, row)?)
        })
    }

    /// Lets clients with this prefix use a Service with source ranges (S24).
    pub(crate) fn admit(&self, service: u32, prefix: IpAddr, length: u32) -> Result<()> {
        let (prefix_len, id) = (32 + length, service.to_be_bytes());
        by_family!(self.datapath.maps(), prefix, source_ranges_v4, source_ranges_v6, |table, addr| {
            Ok(table.insert(&SourceRangeKey { prefix_len, id, addr }, &1)?)
        })
    }

    /// Makes a backend one that clients of a Service may come back to, or no longer (S18).
    pub(crate) fn set_member(
        &mut self,
        service: u32,
        (backend, proto): (SocketAddr, u8),
        is: bool,
    ) -> Result<()> {
        let key = MemberKey { service, backend: self.backend(backend, proto)? };
        let members = &self.datapath.maps().affinity_members;
        if is {
            return Ok(members.insert(&key, &1)?);
        }
        members.remove(&key)?.then_some(()).context("it was no member")
    }

    /// Lets time pass for clients with affinity.
    pub(crate) fn age_clients(&self, seconds: u32) -> Result<()> {
        let ticks = seconds * quilla_datapath::kernel::ticks_per_second()?;
        let maps = self.datapath.maps();
        for (key, mut row) in maps.affinity_v4.entries()? {
            row.last_used = row.last_used.wrapping_sub(ticks);
            maps.affinity_v4.insert(&key, &row)?;
        }
        for (key, mut row) in maps.affinity_v6.entries()? {
            row.last_used = row.last_used.wrapping_sub(ticks);
            maps.affinity_v6.insert(&key, &row)?;
        }
        Ok(())
    }

    /// How busy a backend is.
    pub(crate) fn load_of(&mut self, (backend, proto): (SocketAddr, u8)) -> Result<Load> {
        let id = self.backend(backend, proto)?;
        let maps = self.datapath.maps();
        let table = if backend.is_ipv4() { &maps.loads_v4 } else { &maps.loads_v6 };
        table.get(id)?.context("a row")
    }

    pub(crate) fn set_load(&mut self, (backend, proto): (SocketAddr, u8), load: Load) -> Result<()> {
        let id = self.backend(backend, proto)?;
        let maps = self.datapath.maps();
        let table = if backend.is_ipv4() { &maps.loads_v4 } else { &maps.loads_v6 };
        Ok(table.set(id, &load)?)
    }

    /// The kernel's clock, as the stamp of the flow that was seen last.
    pub(crate) fn clock(&self, family: Family) -> Result<u32> {
        let maps = self.datapath.maps();
        let stamps: Vec<u32> = match family {
            Family::V4 => maps.flows_v4.entries()?.iter().map(|(_, flow)| flow.last_seen).collect(),
            Family::V6 => maps.flows_v6.entries()?.iter().map(|(_, flow)| flow.last_seen).collect(),
        };
        stamps.into_iter().max().context("a flow")
    }

    /// Removes the flow entry with this tuple, as eviction does.
    pub(crate) fn evict_in(&self, scope: u8, proto: u8, src: SocketAddr, dst: SocketAddr) -> Result<()> {
        use quilla_abi::flow::FlowKey;
        let (sport, dport) = (Be16::new(src.port()), Be16::new(dst.port()));
        let maps = self.datapath.maps();
        let removed = if src.is_ipv4() {
            let (src, dst) = (v4(src.ip()), v4(dst.ip()));
            maps.flows_v4.remove(&FlowKey { src, dst, sport, dport, proto, scope, pad: [0; 2] })?
        } else {
            let (src, dst) = (v6(src.ip()), v6(dst.ip()));
            maps.flows_v6.remove(&FlowKey { src, dst, sport, dport, proto, scope, pad: [0; 2] })?
        };
        removed.then_some(()).context("no such flow entry")
    }
}
