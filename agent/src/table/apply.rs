//! Carries a plan's steps out, in order, in batches.

use quilla_abi::load::Load;
use quilla_datapath::{ArrayTable, Maps, Result, jiffies};
use quilla_plan::{Appearance, FamilyStep, Step};

use super::{FamilyMaps, v4, v6};

/// Writes every row of every step. After an error the maps hold a prefix of the steps, which is a consistent state.
pub fn apply(maps: &Maps, steps: &[Step]) -> Result<()> {
    steps.iter().try_for_each(|step| carry_out(maps, step))
}

fn carry_out(maps: &Maps, step: &Step) -> Result<()> {
    match step {
        Step::V4(step) => v4(maps).carry_out(step),
        Step::V6(step) => v6(maps).carry_out(step),
        Step::SetSlots(rows) => maps.slots.set_batch(rows),
        Step::SetMembers(keys) => maps.affinity_members.insert_batch(&present(keys)),
        Step::RemoveMembers(keys) => maps.affinity_members.remove_batch(keys).map(drop),
        Step::SetInterfaces(rows) => maps.interfaces.insert_batch(rows),
        Step::RemoveInterfaces(keys) => maps.interfaces.remove_batch(keys).map(drop),
        Step::SetNodes(rows) => maps.nodes.set_batch(rows),
        Step::SetNodeSlots(rows) => maps.node_slots.insert_batch(rows),
        Step::RemoveNodeSlots(keys) => maps.node_slots.remove_batch(keys).map(drop),
        Step::SetConfig(row) => maps.config.set(0, row),
        Step::Bump(indices) => bump(&maps.epochs, indices),
    }
}

/// The ABI's rows are known to be plain bytes for each family, but not for all, so the code is made for each.
macro_rules! carry_out_family {
    ($($address:ty),+) => {$(
        impl FamilyMaps<'_, $address> {
            fn carry_out(&self, step: &FamilyStep<$address>) -> Result<()> {
                match step {
                    FamilyStep::SetBackends(rows) => self.backends.set_batch(rows),
                    FamilyStep::SetBackendIds(rows) => self.backend_ids.insert_batch(rows),
                    FamilyStep::RemoveBackendIds(keys) => self.backend_ids.remove_batch(keys).map(drop),
                    FamilyStep::StartLoads(rows) => start_loads(self.loads, rows),
                    FamilyStep::SetSourceRanges(keys) => self.source_ranges.insert_batch(&present(keys)),
                    FamilyStep::RemoveSourceRanges(keys) => self.source_ranges.remove_batch(keys).map(drop),
                    FamilyStep::SetServices(rows) => self.services.insert_batch(rows),
                    FamilyStep::RemoveServices(keys) => self.services.remove_batch(keys).map(drop),
                    FamilyStep::SetEndpoints(rows) => self.endpoints.insert_batch(rows),
                    FamilyStep::RemoveEndpoints(keys) => self.endpoints.remove_batch(keys).map(drop),
                    FamilyStep::SetRoutes(rows) => self.routes.insert_batch(rows),
                    FamilyStep::RemoveRoutes(keys) => self.routes.remove_batch(keys).map(drop),
                }
            }
        }
    )+};
}
carry_out_family!([u8; 4], [u8; 16]);

/// Rows of a set: all that counts is that they are there.
fn present<K: Copy>(keys: &[K]) -> Vec<(K, u32)> {
    keys.iter().map(|key| (*key, 1)).collect()
}

/// The kernel may count a connection meanwhile; what is lost by that, the next recount finds.
fn start_loads(loads: &ArrayTable<Load>, rows: &[(u32, Appearance)]) -> Result<()> {
    let since = jiffies()?;
    let row = |&(id, appearance): &(u32, Appearance)| {
        let before = match appearance {
            Appearance::First => None,
            Appearance::Again => loads.get(id)?,
        };
        Ok((id, Load { connections: before.unwrap_or_default().connections, since }))
    };
    loads.set_batch(&rows.iter().map(row).collect::<Result<Vec<_>>>()?)
}

/// Adds 2 to each counter; see [`Step::Bump`].
fn bump(epochs: &ArrayTable<u32>, indices: &[u32]) -> Result<()> {
    let next = |&index: &u32| Ok((index, epochs.get(index)?.unwrap_or_default().wrapping_add(2)));
    let rows = indices.iter().map(next).collect::<Result<Vec<_>>>()?;
    epochs.set_batch(&rows)
}
