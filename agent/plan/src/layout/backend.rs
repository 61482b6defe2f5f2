//! Ids of backends. Called by the layout, before the sets that name them.

use quilla_abi::backend::Backend;
use quilla_abi::epoch;

use super::row::backend_row;
use super::{IdPool, Layout};
use crate::desired::{BackendKey, Desired};
use crate::family::AddressFamily;
use crate::tables::{FamilyTables, Tables};

impl Layout {
    /// Gives ids to backends that came, and takes back those of backends that went.
    pub(super) fn place_backends(&mut self, desired: &Desired, tables: &mut Tables) {
        let mut new = NewBackends::default();
        let waiting = std::mem::take(&mut self.crowded.backends);
        for key in waiting.into_iter().filter(|key| desired.backends.contains_key(key)) {
            self.place_or_wait(key, &mut new);
        }
        for change in self.desired.backends.clone().difference(&desired.backends) {
            match (change.old, change.new) {
                (Some(_), None) => {
                    self.remove_backend::<[u8; 4]>(change.key, tables);
                    self.remove_backend::<[u8; 16]>(change.key, tables);
                }
                (None, Some(_)) => self.place_or_wait(*change.key, &mut new),
                _ => {}
            }
        }
        add_backends(new.v4, &mut tables.v4);
        add_backends(new.v6, &mut tables.v6);
    }

    fn place_or_wait(&mut self, key: BackendKey, new: &mut NewBackends) {
        let placed = self.place_backend(&key, &mut new.v4) || self.place_backend(&key, &mut new.v6);
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

    fn place_backend<A: AddressFamily>(
        &mut self,
        key: &BackendKey,
        new: &mut Vec<(u32, Backend<A>)>,
    ) -> bool {
        let Some(row) = backend_row::<A>(key) else { return false };
        let recovered = self.recovered.as_mut().and_then(|recovered| recovered.backend(&row));
        let Some(id) = recovered.or_else(|| self.backend_pool::<A>().take()) else { return false };
        new.push((id, row));
        true
    }
}

/// Backends that came in one layout, with their ids.
#[derive(Default)]
struct NewBackends {
    v4: Vec<(u32, Backend<[u8; 4]>)>,
    v6: Vec<(u32, Backend<[u8; 16]>)>,
}

fn add_backends<A: AddressFamily>(new: Vec<(u32, Backend<A>)>, tables: &mut FamilyTables<A>) {
    tables.backend_ids.extend(new.iter().map(|(id, row)| (*row, *id)));
    tables.backends.extend(new);
}

/// The id of a backend of either family.
pub(super) fn id_of(key: &BackendKey, tables: &Tables) -> Option<u32> {
    let v4 = || backend_row::<[u8; 4]>(key).and_then(|row| tables.v4.backend_ids.get(&row));
    let v6 = || backend_row::<[u8; 16]>(key).and_then(|row: Backend<_>| tables.v6.backend_ids.get(&row));
    v4().or_else(v6).copied()
}
