//! Corrects `loads_*`: the kernel counts connections up and down, and never hears of entries that were evicted or of
//! flows that fell silent.
//!
//! Called by the reconciler now and then, as long as a set looks at loads. Invariant: a count that moves meanwhile is
//! changed only by as much as no movement explains.

use std::collections::{BTreeMap, BTreeSet};

use quilla_abi::backend::Backend;
use quilla_abi::flow::{
    self, Flow, FlowKey, TCP_FIN_TIMEOUT_SECONDS, TCP_SHORT_TIMEOUT_SECONDS, TCP_TIMEOUT_SECONDS,
    UDP_NEW_TIMEOUT_SECONDS, UDP_TIMEOUT_SECONDS, state,
};
use quilla_abi::load::Load;
use quilla_abi::service::flag::LEAST_CONNECTIONS;
use quilla_abi::socket;
use quilla_datapath::kernel::ticks_per_second;
use quilla_datapath::{Maps, Result, jiffies};
use quilla_model::Protocol;
use quilla_plan::Tables;
use quilla_plan::family::AddressFamily;

/// Connections by backend id.
type Counts = BTreeMap<u32, u32>;

/// The time of the flow tables.
#[derive(Clone, Copy, Debug)]
struct Clock {
    now: u32,
    hz: u32,
}

/// Counts the connections of all backends that are chosen by them; how many counts were wrong. Does nothing while no set
/// asks for them.
pub fn recount(maps: &Maps, tables: &Tables) -> Result<usize> {
    let clock = Clock { now: jiffies()?, hz: ticks_per_second()? };
    Ok(recount_v4(maps, tables, clock)? + recount_v6(maps, tables, clock)?)
}

/// As for the steps, the code is made for each family.
macro_rules! recount_family {
    ($name:ident, $address:ty, $flows:ident, $sockets:ident, $loads:ident) => {
        fn $name(maps: &Maps, tables: &Tables, clock: Clock) -> Result<usize> {
            let backends = chosen_by_load::<$address>(tables);
            if backends.is_empty() {
                return Ok(0);
            }
            let before = maps.$loads.rows()?;
            let mut counts = Counts::new();
            maps.$flows.for_each(|key, flow| count_flow(&mut counts, key, flow, clock))?;
            maps.$sockets.for_each(|key, frontend| {
                let backend = Backend { addr: key.addr, port: key.port, proto: key.proto, pad: 0 };
                let id = <$address>::tables(tables).backend_ids.get(&backend);
                if let Some(id) = id.filter(|_| frontend.flags & socket::flag::COUNTED != 0) {
                    *counts.entry(*id).or_default() += 1;
                }
            })?;
            let rows = corrections(&backends, &before, &maps.$loads.rows()?, &counts);
            maps.$loads.set_batch(&rows)?;
            Ok(rows.len())
        }
    };
}
recount_family!(recount_v4, [u8; 4], flows_v4, sockets_v4, loads_v4);
recount_family!(recount_v6, [u8; 16], flows_v6, sockets_v6, loads_v6);

fn chosen_by_load<A: AddressFamily>(tables: &Tables) -> BTreeSet<u32> {
    let rows = A::tables(tables).services.values().filter(|row| row.flags & LEAST_CONNECTIONS != 0);
    let slots = rows.filter_map(|row| tables.slots_of(row));
    slots.flat_map(|slots| slots.iter().copied().collect::<Vec<_>>()).collect()
}

/// Only the entry of the asking direction is marked.
fn count_flow<A: AddressFamily>(counts: &mut Counts, key: &FlowKey<A>, flow: &Flow<A>, clock: Clock) {
    let silence = clock.now.wrapping_sub(flow.last_seen);
    // The packet that was seen just now may be later than the clock.
    let silence = if silence > u32::MAX / 2 { 0 } else { silence };
    let open = silence / clock.hz.max(1) <= patience(key.proto, flow.state);
    if flow.flags & flow::flag::COUNTED != 0 && open {
        *counts.entry(flow.backend).or_default() += 1;
    }
}

/// After which silence, in seconds, a flow is none any more.
fn patience(protocol: u8, state: u8) -> u32 {
    match (protocol == Protocol::Tcp.number(), state) {
        (true, state::ESTABLISHED) => TCP_TIMEOUT_SECONDS,
        (true, state::FIN) => TCP_FIN_TIMEOUT_SECONDS,
        (true, _) => TCP_SHORT_TIMEOUT_SECONDS,
        (false, state::NEW) => UDP_NEW_TIMEOUT_SECONDS,
        (false, _) => UDP_TIMEOUT_SECONDS,
    }
}

/// The rows that are wrong, as they should be. `before` and `after` are the rows around the count.
fn corrections(
    backends: &BTreeSet<u32>,
    before: &[Load],
    after: &[Load],
    counts: &Counts,
) -> Vec<(u32, Load)> {
    let row = |&id: &u32| {
        let index = usize::try_from(id).ok()?;
        let (before, after) = (before.get(index)?, *after.get(index)?);
        let counted = counts.get(&id).copied().unwrap_or(0);
        let connections = corrected(before.connections, after.connections, counted)?;
        Some((id, Load { connections, ..after }))
    };
    backends.iter().filter_map(row).collect()
}

/// What a count should be that was `before` and is `after`; `None` if it may be right.
fn corrected(before: u32, after: u32, counted: u32) -> Option<u32> {
    let (least, most) = (before.min(after), before.max(after));
    if counted < least {
        Some(after - (least - counted))
    } else if counted > most {
        Some(after.saturating_add(counted - most))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, Counts, corrected, count_flow};
    use quilla_abi::flow::{Flow, FlowKey, TCP_TIMEOUT_SECONDS, flag, state};

    #[test]
    fn only_what_no_movement_explains_is_corrected() {
        assert_eq!(corrected(5, 5, 5), None);
        assert_eq!(corrected(5, 5, 2), Some(2));
        assert_eq!(corrected(5, 5, 9), Some(9));
        assert_eq!(corrected(5, 8, 6), None, "three came meanwhile");
        assert_eq!(corrected(8, 5, 6), None, "three went meanwhile");
        assert_eq!(corrected(5, 8, 3), Some(6), "two of five were not there");
        assert_eq!(corrected(5, 8, 10), Some(10));
    }

    #[test]
    fn a_connection_counts_once_and_until_it_is_silent_for_too_long() {
        let clock = Clock { now: 100, hz: 250 };
        let key = FlowKey::<[u8; 4]> { proto: 6, ..FlowKey::default() };
        let open = Flow {
            backend: 7,
            state: state::ESTABLISHED,
            flags: flag::COUNTED,
            last_seen: 90,
            ..Flow::default()
        };
        let silent = Flow { last_seen: 100_u32.wrapping_sub((TCP_TIMEOUT_SECONDS + 1) * 250), ..open };
        let reply = Flow { flags: flag::REPLY, ..open };
        let late = Flow { last_seen: 101, ..open };
        let mut counts = Counts::new();
        for flow in [open, silent, reply, late] {
            count_flow(&mut counts, &key, &flow, clock);
        }
        assert_eq!(counts, Counts::from([(7, 2)]));
    }
}
