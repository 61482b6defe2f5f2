//! Reads the maps of intent back: at start, for an audit, and after a failed apply.

use std::collections::BTreeMap;

use quilla_datapath::{Maps, Result};
use quilla_plan::{FamilyTables, LaidService, Tables};

use super::{FamilyMaps, v4, v6};

/// The maps as they are now.
pub fn dump(maps: &Maps) -> Result<Tables> {
    let slots = maps.slots.rows()?;
    Ok(Tables {
        v4: v4(maps).dump(&slots)?,
        v6: v6(maps).dump(&slots)?,
        interfaces: maps.interfaces.entries()?.into_iter().collect(),
        nodes: used(maps.nodes.rows()?),
        node_slots: maps.node_slots.entries()?.into_iter().collect(),
        config: maps.config.get(0)?.unwrap_or_default(),
    })
}

/// Rows of an array that are not free.
fn used<V: Default + PartialEq>(rows: Vec<V>) -> BTreeMap<u32, V> {
    (0..).zip(rows).filter(|(_, row)| *row != V::default()).collect()
}

/// The slots a row names; what lies beyond the array is left out, so that the row is seen to be wrong.
fn laid(row: quilla_abi::service::Service, slots: &[u32]) -> LaidService {
    let named = slots.iter().skip(row.slot_base as usize).take(row.slot_count as usize);
    LaidService { row, slots: named.copied().collect() }
}

/// As for the steps, the code is made for each family.
macro_rules! dump_family {
    ($($address:ty),+) => {$(
        impl FamilyMaps<'_, $address> {
            fn dump(&self, slots: &[u32]) -> Result<FamilyTables<$address>> {
                let services = self.services.entries()?.into_iter();
                Ok(FamilyTables {
                    services: services.map(|(key, row)| (key, laid(row, slots))).collect(),
                    backends: used(self.backends.rows()?),
                    backend_ids: self.backend_ids.entries()?.into_iter().collect(),
                    endpoints: self.endpoints.entries()?.into_iter().collect(),
                    routes: self.routes.entries()?.into_iter().collect(),
                })
            }
        }
    )+};
}
dump_family!([u8; 4], [u8; 16]);
