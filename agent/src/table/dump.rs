//! Reads the maps of intent back: at start, for an audit, and after a failed apply.

use std::sync::Arc;

use quilla_abi::service::Service;
use quilla_datapath::{Maps, Result};
use quilla_model::SharedMap;
use quilla_plan::{FamilyTables, Tables};

use super::{FamilyMaps, v4, v6};

/// The maps as they are now.
pub fn dump(maps: &Maps) -> Result<Tables> {
    let (v4, v6) = (v4(maps).dump()?, v6(maps).dump()?);
    let rows = v4.services.values().chain(v6.services.values());
    Ok(Tables {
        slots: ranges(rows, &maps.slots.rows()?),
        v4,
        v6,
        affinity_members: maps.affinity_members.entries()?.into_iter().collect(),
        interfaces: maps.interfaces.entries()?.into_iter().collect(),
        nodes: used(maps.nodes.rows()?).collect(),
        node_slots: maps.node_slots.entries()?.into_iter().collect(),
        config: maps.config.get(0)?.unwrap_or_default(),
    })
}

/// Only what Services are made of: their rows, slots and backends. For people who ask, where the rest would be read in vain.
pub fn dump_services(maps: &Maps) -> Result<Tables> {
    let (v4, v6) = (v4(maps).dump_services()?, v6(maps).dump_services()?);
    let rows = v4.services.values().chain(v6.services.values());
    Ok(Tables { slots: ranges(rows, &maps.slots.rows()?), v4, v6, ..Tables::default() })
}

/// Rows of an array that are not free.
fn used<V: Default + PartialEq>(rows: Vec<V>) -> impl Iterator<Item = (u32, V)> {
    (0..).zip(rows).filter(|(_, row)| *row != V::default())
}

/// The slots that rows name; a range beyond the array is left out, so that its row is seen to be wrong. Of two ranges
/// with one start the longer one counts: no two sets have one, unless somebody else wrote there.
fn ranges<'a>(rows: impl Iterator<Item = &'a Service>, slots: &[u32]) -> SharedMap<u32, Arc<[u32]>> {
    let mut ranges: SharedMap<u32, Arc<[u32]>> = SharedMap::new();
    for row in rows.filter(|row| row.slot_count > 0) {
        let (Ok(start), Ok(count)) = (usize::try_from(row.slot_base), usize::try_from(row.slot_count)) else {
            continue;
        };
        let known = ranges.get(&row.slot_base).is_some_and(|known| known.len() >= count);
        let named = start.checked_add(count).and_then(|end| slots.get(start..end));
        if let Some(named) = named.filter(|_| !known) {
            ranges.insert(row.slot_base, named.into());
        }
    }
    ranges
}

/// As for the steps, the code is made for each family.
macro_rules! dump_family {
    ($($address:ty),+) => {$(
        impl FamilyMaps<'_, $address> {
            fn dump(&self) -> Result<FamilyTables<$address>> {
                Ok(FamilyTables {
                    source_ranges: self.source_ranges.entries()?.into_iter().collect(),
                    backend_ids: self.backend_ids.entries()?.into_iter().collect(),
                    endpoints: self.endpoints.entries()?.into_iter().collect(),
                    routes: self.routes.entries()?.into_iter().collect(),
                    ..self.dump_services()?
                })
            }

            fn dump_services(&self) -> Result<FamilyTables<$address>> {
                Ok(FamilyTables {
                    services: self.services.entries()?.into_iter().collect(),
                    backends: used(self.backends.rows()?).collect(),
                    ..FamilyTables::default()
                })
            }
        }
    )+};
}
dump_family!([u8; 4], [u8; 16]);
