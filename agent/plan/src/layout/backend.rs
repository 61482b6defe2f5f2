//! Ids of backends. Called by the layout, before the sets that name them.

use quilla_abi::backend::Backend;
use quilla_abi::epoch;

use super::row::backend_row;
use super::{IdPool, Layout};
use crate::desired::{BackendKey, Desired};
use crate::family::AddressFamily;
use crate::tables::Tables;

impl Layout {
    /// Gives ids to backends that came, and takes back those of backends that went.
    pub(super) fn place_backends(&mut self, desired: &Desired, tables: &mut Tables) {
        let waiting = std::mem::take(&mut self.crowded.backends);
        for key in waiting.into_iter().filter(|key| desired.backends.contains_key(key)) {
            self.place_or_wait(key, tables);
        }
        for change in self.desired.backends.clone().difference(&desired.backends) {
            match (change.old, change.new) {
                (Some(_), None) => {
                    self.remove_backend::<[u8; 4]>(change.key, tables);
                    self.remove_backend::<[u8; 16]>(change.key, tables);
                }
                (None, Some(_)) => self.place_or_wait(*change.key, tables),
                _ => {}
            }
        }
    }

    fn place_or_wait(&mut self, key: BackendKey, tables: &mut Tables) {
        let placed =
            self.place_backend::<[u8; 4]>(&key, tables) || self.place_backend::<[u8; 16]>(&key, tables);
        if !placed {
            self.crowded.backends.insert(key);
        }
    }

    fn backend_pool<A: AddressFamily>(&mut self) -> &mut IdPool {
        if A::GENERATIONS == epoch::BACKENDS_V4 { &mut self.backend_ids_v4 } else { &mut self.backend_ids_v6 }
    }

    fn remove_backend<A: AddressFamily>(&mut self, key: &BackendKey, tables: &mut Tables) {
        let tables = A::tables_mut(tables);
        if let Some(id) = backend_row::<A>(key).and_then(|row| tables.backend_ids.remove(&row)) {
            tables.backends.remove(&id);
            let age = self.age;
            self.backend_pool::<A>().give_back(id, age);
        }
    }

    fn place_backend<A: AddressFamily>(&mut self, key: &BackendKey, tables: &mut Tables) -> bool {
        let Some(row) = backend_row::<A>(key) else { return false };
        let recovered = self.recovered.as_mut().and_then(|recovered| recovered.backend(&row));
        let Some(id) = recovered.or_else(|| self.backend_pool::<A>().take()) else { return false };
        let tables = A::tables_mut(tables);
        tables.backends.insert(id, row);
        tables.backend_ids.insert(row, id);
        true
    }
}

/// The id of a backend of either family.
pub(super) fn id_of(key: &BackendKey, tables: &Tables) -> Option<u32> {
    let v4 = || backend_row::<[u8; 4]>(key).and_then(|row| tables.v4.backend_ids.get(&row));
    let v6 = || backend_row::<[u8; 16]>(key).and_then(|row: Backend<_>| tables.v6.backend_ids.get(&row));
    v4().or_else(v6).copied()
}
