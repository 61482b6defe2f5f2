//! Who may get new connections, as the pinned maps of a node say it. A thread reads them every millisecond and notes
//! each change. Invariant: what an observation tells was so at its time, not only before it. A row that is the same before
//! and after its slots are read may have been another one in between, and its slots somebody else's: slots that say the
//! same twice within [`SOON`] are its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use quilla_abi::backend::Backend;
use quilla_abi::service::{Service, ServiceKey, scope};
use quilla_abi::{Be16, map};

use super::Frontend;

const PERIOD: Duration = Duration::from_millis(1);
/// Less than the agent leaves between two changes.
const SOON: Duration = Duration::from_millis(15);
const TCP: u8 = 6;

/// The endpoints of a frontend, from a time on. A frontend that is absent, as between two types of its Service, has none:
/// it says nothing of the endpoints, which it may have again before their changes have come.
#[derive(Clone, Debug)]
pub(super) struct Observation {
    pub(super) at: u64,
    pub(super) frontend: SocketAddr,
    pub(super) members: BTreeSet<IpAddr>,
}

type Notes = Arc<Mutex<Vec<Observation>>>;

/// A thread that reads.
pub(super) struct Observer {
    notes: Notes,
    frontends: usize,
    end: Arc<()>,
    thread: JoinHandle<Result<()>>,
}

impl Observer {
    /// Reads each frontend as its clients find it.
    pub(super) fn start(bpffs: &Path, frontends: &[Frontend]) -> Result<Self> {
        let folder = bpffs.join("quilla/maps");
        let mut rows: Vec<Box<dyn Row + Send>> = Vec::new();
        for frontend in frontends {
            let scope = if frontend.external { scope::EXTERNAL } else { scope::INTERNAL };
            let port = frontend.at.port();
            rows.push(match frontend.at.ip() {
                IpAddr::V4(v4) => Box::new(Maps::open(
                    &folder,
                    [map::SERVICES_V4, map::BACKENDS_V4],
                    (v4.octets(), port, scope),
                )?),
                IpAddr::V6(v6) => Box::new(Maps::open(
                    &folder,
                    [map::SERVICES_V6, map::BACKENDS_V6],
                    (v6.octets(), port, scope),
                )?),
            });
        }
        let (notes, end) = (Notes::default(), Arc::new(()));
        let (own, alive, frontends) = (Arc::clone(&notes), Arc::downgrade(&end), frontends.to_vec());
        let count = frontends.len();
        let thread = thread::spawn(move || {
            while alive.strong_count() > 0 {
                for (row, frontend) in rows.iter_mut().zip(&frontends) {
                    if let Some(members) = row.changed()? {
                        let note = Observation { at: super::now(), frontend: frontend.at, members };
                        own.lock().unwrap_or_else(PoisonError::into_inner).push(note);
                    }
                }
                thread::sleep(PERIOD);
            }
            Ok(())
        });
        Ok(Self { notes, frontends: count, end, thread })
    }

    /// How many endpoints all frontends have together, by the last observations.
    pub(super) fn members(&self) -> Result<usize> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for note in notes.iter() {
            last.insert(note.frontend, note.members.len());
        }
        anyhow::ensure!(last.len() == self.frontends, "only {last:?}");
        Ok(last.values().sum())
    }

    pub(super) fn stop(self) -> Result<Vec<Observation>> {
        drop(self.end);
        self.thread.join().expect("observing does not panic")?;
        Ok(std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// A frontend in either family.
trait Row {
    /// The members, if there is a row, another than last time.
    fn changed(&mut self) -> Result<Option<BTreeSet<IpAddr>>>;
}

struct Maps<A>
where
    ServiceKey<A>: Pod,
    Backend<A>: Pod,
{
    services: HashMap<MapData, ServiceKey<A>, Service>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Backend<A>>,
    key: ServiceKey<A>,
    last: Option<Service>,
}

impl<A> Maps<A>
where
    ServiceKey<A>: Pod,
    Backend<A>: Pod,
{
    fn open(
        folder: &Path,
        [services, backends]: [&str; 2],
        (addr, port, scope): (A, u16, u8),
    ) -> Result<Self> {
        let open = |name: &str| {
            let path = folder.join(name);
            MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))
        };
        Ok(Self {
            services: HashMap::try_from(Map::HashMap(open(services)?)).context("services")?,
            slots: Array::try_from(Map::Array(open(map::SLOTS)?)).context("slots")?,
            backends: Array::try_from(Map::Array(open(backends)?)).context("backends")?,
            key: ServiceKey { addr, port: Be16::new(port), proto: TCP, scope },
            last: None,
        })
    }

    fn row(&self) -> Result<Option<Service>> {
        match self.services.get(&self.key, 0) {
            Err(MapError::KeyNotFound) => Ok(None),
            row => row.map(Some).context("read a Service"),
        }
    }

    /// Where the slots of the row lead.
    fn members(&self, row: &Service) -> Result<BTreeSet<IpAddr>>
    where
        A: Copy,
        IpAddr: From<A>,
    {
        let member = |slot| {
            let id = self.slots.get(&slot, 0).context("read a slot")?;
            Ok(self.backends.get(&id, 0).context("read a backend")?.addr.into())
        };
        (row.slot_base..row.slot_base + row.slot_count).map(member).collect()
    }
}

impl<A: Copy> Row for Maps<A>
where
    ServiceKey<A>: Pod,
    Backend<A>: Pod,
    IpAddr: From<A>,
{
    fn changed(&mut self) -> Result<Option<BTreeSet<IpAddr>>> {
        let begun = Instant::now();
        let Some(row) = self.row()? else {
            self.last = None;
            return Ok(None);
        };
        if self.last == Some(row) {
            return Ok(None);
        }
        let members = self.members(&row)?;
        // The slots that were read may be another's by now; next time they will be this row's.
        if self.members(&row)? != members || self.row()? != Some(row) || begun.elapsed() >= SOON {
            return Ok(None);
        }
        self.last = Some(row);
        Ok(Some(members))
    }
}
