//! Who holds which address: the decisions of the CNI server, in memory and in the journal. Called by sessions under one
//! lock; nothing here waits but [`Store::open`]. The journal has a change before anybody hears of it; `durable` waits until
//! the disk has it too.

mod replay;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use quilla_cni_protocol::{
    Attachment, EndpointSummary, Given, Lease, MacAddress, PodRef, PortMapping, Reservation, Wanted,
    failpoint,
};

use crate::cni::disk::{Disk, Kernel};
use crate::cni::ipam::{Addresses, Ipam, IpamError, Pools, Seconds};
use crate::cni::journal::{Journal, JournalError, Mark, Record, Unsynced};
use crate::cni::{AttachError, AttachedEndpoint, Origin};

use replay::{Replay, free, snapshot};

/// How long a lock may outlive the agent that had it: a killed process is still ending, or a child that it was starting
/// has not yet got rid of its open files.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

const LOCK_TICK: Duration = Duration::from_millis(10);

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory cannot be used.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another agent uses the state directory.
    #[error("state directory {} is in use by another agent", path.display())]
    InUse {
        /// Which directory.
        path: PathBuf,
    },
    /// The journal refused.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No address can be given now.
    #[error("allocate addresses: {reason}")]
    Addresses {
        /// Why not.
        reason: String,
    },
    /// The attachment has no reservation.
    #[error("attachment {attachment} has no reservation")]
    NotReserved {
        /// Which.
        attachment: Attachment,
    },
    /// Two attachments would share a host interface name.
    #[error("attachments {attachment} and {other} have the same host interface name")]
    NameTaken {
        /// The new one.
        attachment: Attachment,
        /// Its holder.
        other: Attachment,
    },
    /// Another plugin gave an address that an attachment has already.
    #[error("address {address} is held by pod {pod} ({holder})")]
    AddressTaken {
        /// Which.
        address: IpAddr,
        /// Namespace and name of the Pod that has it.
        pod: String,
        /// Its attachment.
        holder: Attachment,
    },
    /// The address that a Pod asks for itself was another's a moment ago.
    #[error("address {address} rests until the flows of its last holder are forgotten")]
    AddressResting {
        /// Which.
        address: IpAddr,
    },
    /// It cannot be found out what a Pod asks for itself.
    #[error(transparent)]
    Wish(#[from] AttachError),
    /// No Pod of this node can have the wished address.
    #[error("address {address} is no usable address of the node's pod cidrs")]
    AddressUnusable {
        /// Which.
        address: IpAddr,
    },
    /// Two Pods want one port of the node.
    #[error("host port {port} is held by pod {pod} ({holder})")]
    PortTaken {
        /// Which.
        port: PortMapping,
        /// Namespace and name of the Pod that has it.
        pod: String,
        /// Its attachment.
        holder: Attachment,
    },
}

impl StoreError {
    /// Whether a wished address is what was refused.
    pub(super) const fn is_about_an_address(&self) -> bool {
        matches!(self, Self::AddressTaken { .. } | Self::AddressResting { .. } | Self::AddressUnusable { .. })
    }
}

impl From<IpamError> for StoreError {
    fn from(error: IpamError) -> Self {
        Self::Addresses { reason: error.to_string() }
    }
}

/// How far an attachment has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// It has addresses; index and cookie are not known yet.
    Reserved(AttachedEndpoint),
    /// The data path has it.
    Attached(AttachedEndpoint),
    /// Nobody has it any more, and the disk is being told: its addresses stay held until it was.
    Releasing(AttachedEndpoint),
    /// The same, and the disk could not be told yet.
    Released(AttachedEndpoint),
}

impl Entry {
    /// Whichever it is.
    pub const fn endpoint(&self) -> &AttachedEndpoint {
        match self {
            Self::Reserved(endpoint)
            | Self::Attached(endpoint)
            | Self::Releasing(endpoint)
            | Self::Released(endpoint) => endpoint,
        }
    }

    const fn is_over(&self) -> bool {
        matches!(self, Self::Releasing(_) | Self::Released(_))
    }
}

/// What an ADD brings.
#[derive(Debug)]
pub(super) struct NewAttachment {
    pub(super) attachment: Attachment,
    pub(super) network: String,
    pub(super) netns: PathBuf,
    pub(super) pod: Option<PodRef>,
    pub(super) wanted: Wanted,
    /// What new interfaces get, if nothing else is wanted.
    pub(super) mtu: u32,
    /// Addresses that the Pod asks for itself.
    pub(super) own_wish: Result<Vec<IpAddr>, AttachError>,
}

/// The state.
#[derive(Debug)]
pub(super) struct Store {
    journal: Journal,
    ipam: Ipam,
    entries: BTreeMap<Attachment, Entry>,
    /// Who has which host side.
    devices: HashMap<String, Attachment>,
    /// Addresses that the kernel routes to host sides of which the journal knows nothing.
    strangers: HashMap<String, Vec<IpAddr>>,
    /// Held as long as the store, so that no second agent writes the journal.
    _lock: File,
}

impl Store {
    /// Reads the journal. A reservation that was never attached belongs to a plugin whose connection ended with the
    /// last agent: its addresses go back. Blocks for [`LOCK_PATIENCE`] at most.
    pub(super) fn open(dir: &Path, cool_down: Duration) -> Result<Self, StoreError> {
        Self::open_on(dir, cool_down, Arc::new(Kernel))
    }

    /// The same, on this disk.
    pub(super) fn open_on(dir: &Path, cool_down: Duration, disk: Arc<dyn Disk>) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(io_error("create directory", dir))?;
        let lock = lock(dir)?;
        let recovered = Journal::recover(dir)?;
        failpoint!(JournalRead, io_error("read journal in", dir));
        if recovered.cut_bytes > 0 {
            tracing::warn!(bytes = recovered.cut_bytes, "cut a torn end off the cni journal");
        }
        if recovered.damaged_lines > 0 {
            tracing::error!(
                lines = recovered.damaged_lines,
                "cni journal is damaged; what is intact is used"
            );
            // Where that cannot be written, neither can a new one, and the damaged one stays.
            let kept = Journal::set_aside(dir);
            kept.unwrap_or_else(|error| tracing::warn!(error = %error, "keep the damaged cni journal"));
        }
        let Replay { ipam, entries } = Replay::of(recovered, cool_down, now());
        let mut journal = Journal::unwritten(dir, disk);
        if let Err(error) = journal.rewrite(&snapshot(&ipam, &entries, now())) {
            tracing::error!(error = %error, "write the cni journal; until it can be written nothing is given");
        }
        let device =
            |(key, entry): (&Attachment, &Entry)| (entry.endpoint().host_ifname.clone(), key.clone());
        let devices = entries.iter().map(device).collect();
        let strangers = HashMap::new();
        Ok(Self { journal, ipam, entries, devices, strangers, _lock: lock })
    }

    /// Takes what the kernel routes to host sides: an address of one that the journal does not know was given once, by a
    /// line that is lost, and is nobody else's while that device is there.
    pub(super) fn set_routes(&mut self, routes: &[(String, IpAddr)]) {
        for (_, addresses) in std::mem::take(&mut self.strangers) {
            let gone =
                addresses.into_iter().filter(|address| !routes.iter().any(|(_, kept)| kept == address));
            gone.collect::<Vec<_>>().into_iter().for_each(|address| self.ipam.release(address, now()));
        }
        let known: HashSet<IpAddr> =
            self.entries.values().flat_map(|entry| entry.endpoint().addresses()).collect();
        for (device, address) in routes {
            if !self.devices.contains_key(device) && !known.contains(address) {
                self.ipam.hold(*address);
                self.strangers.entry(device.clone()).or_default().push(*address);
            }
        }
    }

    /// Whether the kernel's routes are to be looked at again.
    pub(super) fn has_strangers(&self) -> bool {
        !self.strangers.is_empty()
    }

    /// Takes the node's Pod CIDRs.
    pub(super) fn set_pools(&mut self, pools: &Pools) {
        self.ipam.set_pools(pools);
    }

    /// Whether an ADD could be served now.
    pub(super) fn ready(&mut self) -> Result<(), StoreError> {
        self.settle()?;
        Ok(self.ipam.ready(now())?)
    }

    /// Addresses for an attachment: new ones, or those it has.
    pub(super) fn reserve(&mut self, new: NewAttachment) -> Result<Entry, StoreError> {
        if self.entries.get(&new.attachment).is_some_and(Entry::is_over) {
            self.rewrite()?;
        }
        if let Some(entry) = self.entries.get(&new.attachment) {
            return Ok(entry.clone());
        }
        self.forget_stranger(&new.attachment.host_ifname());
        let endpoint = self.new_endpoint(new)?;
        let attachment = endpoint.attachment();
        let record = Record::Reserved { endpoint: endpoint.clone() };
        if let Err(error) = self.append(&record) {
            free(&mut self.ipam, &endpoint, now());
            return Err(error);
        }
        let entry = Entry::Reserved(endpoint);
        self.devices.insert(entry.endpoint().host_ifname.clone(), attachment.clone());
        self.entries.insert(attachment, entry.clone());
        Ok(entry)
    }

    fn new_endpoint(&mut self, new: NewAttachment) -> Result<AttachedEndpoint, StoreError> {
        let NewAttachment { attachment, network, netns, pod, wanted, mtu: agent_mtu, own_wish } = new;
        let Wanted { ips, mac, port_mappings, bandwidth, mtu, programs, given } = wanted;
        self.require_free_ports(&port_mappings)?;
        let uid = pod.as_ref().and_then(|pod| pod.uid.as_deref());
        let ips = self.with_own_wish(ips, own_wish?, uid)?;
        let (mut host_ifname, mut host_mac) = (attachment.host_ifname(), local_mac(&attachment, Side::Host));
        let mut pod_mac = mac.map_or_else(|| local_mac(&attachment, Side::Pod), |mac| mac.0);
        let mut origin = Origin::Own;
        let mut claimed = None;
        match given {
            None => {}
            Some(Given::Addresses { leases }) => {
                origin = Origin::Delegated { gateways: leases.iter().map(|lease| lease.gateway).collect() };
                claimed = Some(leases.into_iter().map(|lease| lease.address).collect());
            }
            Some(Given::Interface { host_ifname: name, host_mac: host, pod_mac: pod, addresses }) => {
                (host_ifname, host_mac, pod_mac) = (name, host.0, pod.0);
                origin = Origin::Chained;
                claimed = Some(addresses);
            }
        }
        if let Some(other) = self.devices.get(&host_ifname) {
            return Err(StoreError::NameTaken { attachment, other: other.clone() });
        }
        let addresses = match claimed {
            Some(claimed) => self.claim(&claimed)?,
            None => self.ipam.allocate(&ips, now()).map_err(|error| self.refused(error))?,
        };
        let pod = pod.unwrap_or(PodRef { namespace: String::new(), name: String::new(), uid: None });
        Ok(AttachedEndpoint {
            container_id: attachment.container_id,
            ifname: attachment.ifname,
            network,
            netns,
            pod_namespace: pod.namespace,
            pod_name: pod.name,
            pod_uid: pod.uid,
            host_ifname,
            host_ifindex: 0,
            netns_cookie: 0,
            host_mac,
            pod_mac,
            ipv4: addresses.ipv4,
            ipv6: addresses.ipv6,
            host_ports: port_mappings,
            bandwidth,
            limited_at: (!bandwidth.is_unlimited()).then_some(agent_mtu),
            mtu,
            programs,
            origin,
        })
    }

    /// What the runtime wishes, and what the Pod asks for in a family of which the runtime says nothing. The Pod's waits
    /// for its cool-down, if it was another's, because a kubelet tries again; what a person names to podman does not.
    fn with_own_wish(
        &self,
        mut ips: Vec<IpAddr>,
        own: Vec<IpAddr>,
        pod_uid: Option<&str>,
    ) -> Result<Vec<IpAddr>, StoreError> {
        for address in own {
            if ips.iter().all(|ip| ip.is_ipv4() != address.is_ipv4()) {
                let rested = self.ipam.require_rested(address, pod_uid, now());
                rested.map_err(|error| self.refused(error))?;
                ips.push(address);
            }
        }
        Ok(ips)
    }

    /// Who has a wished address is worth to be said.
    fn refused(&self, error: IpamError) -> StoreError {
        let holder = |address| {
            let mut all = self.entries.values().map(Entry::endpoint);
            all.find(|endpoint| endpoint.addresses().any(|held| held == address))
        };
        match error {
            IpamError::Unusable(address) => StoreError::AddressUnusable { address },
            IpamError::Resting(address) => StoreError::AddressResting { address },
            IpamError::Held(address) => match holder(address) {
                Some(holder) => taken(address, holder),
                None => error.into(),
            },
            IpamError::NoPools | IpamError::Exhausted(_) => error.into(),
        }
    }

    /// No two Pods of the node share a port, reserved ones included.
    fn require_free_ports(&self, wanted: &[PortMapping]) -> Result<(), StoreError> {
        for endpoint in self.entries.values().map(Entry::endpoint) {
            let taken =
                wanted.iter().find(|port| endpoint.host_ports.iter().any(|held| held.conflicts(port)));
            if let Some(port) = taken {
                return Err(StoreError::PortTaken {
                    port: *port,
                    pod: pod_of(endpoint),
                    holder: endpoint.attachment(),
                });
            }
        }
        Ok(())
    }

    /// Takes addresses that another plugin gave, at most one per family: nobody here may have them.
    fn claim(&mut self, claimed: &[IpAddr]) -> Result<Addresses, StoreError> {
        for endpoint in self.entries.values().map(Entry::endpoint) {
            if let Some(address) = endpoint.addresses().find(|address| claimed.contains(address)) {
                return Err(taken(address, endpoint));
            }
        }
        let mut addresses = Addresses { ipv4: None, ipv6: None };
        for address in claimed {
            self.ipam.hold(*address);
            match address {
                IpAddr::V4(address) => addresses.ipv4 = Some(*address),
                IpAddr::V6(address) => addresses.ipv6 = Some(*address),
            }
        }
        Ok(addresses)
    }

    /// The endpoint a reservation becomes; nothing changes yet.
    pub(super) fn candidate(
        &self,
        attachment: &Attachment,
        host_ifindex: u32,
        netns_cookie: u64,
    ) -> Result<AttachedEndpoint, StoreError> {
        match self.entries.get(attachment) {
            Some(Entry::Reserved(endpoint)) => {
                Ok(AttachedEndpoint { host_ifindex, netns_cookie, ..endpoint.clone() })
            }
            _ => Err(StoreError::NotReserved { attachment: attachment.clone() }),
        }
    }

    /// Remembers that an endpoint is effective, once the disk has the journal up to the mark.
    pub(super) fn commit(&mut self, endpoint: AttachedEndpoint) -> Result<Mark, StoreError> {
        self.append(&Record::Attached { endpoint: endpoint.clone() })?;
        self.entries.insert(endpoint.attachment(), Entry::Attached(endpoint));
        Ok(self.journal.mark())
    }

    /// An attachment is to be forgotten, by [`Store::released`], once the disk has the journal up to the mark; or else
    /// [`Store::not_released`] says that it has not. Nothing to do for an unknown one, and not yet where the journal
    /// cannot be written: then [`Store::settle`] makes up for it.
    pub(super) fn release(&mut self, attachment: &Attachment) -> Option<(Mark, Seconds)> {
        self.forget_stranger(&attachment.host_ifname());
        let endpoint = self.entries.get(attachment)?.endpoint().clone();
        self.entries.insert(attachment.clone(), Entry::Releasing(endpoint));
        let at = now();
        match self.append(&Record::Released { attachment: attachment.clone(), at }) {
            Ok(()) => Some((self.journal.mark(), at)),
            Err(error) => {
                self.not_released(attachment, &error);
                None
            }
        }
    }

    /// Forgets an attachment of which the disk says that it is released; its addresses cool down.
    pub(super) fn released(&mut self, attachment: &Attachment, at: Seconds) {
        if self.entries.get(attachment).is_some_and(Entry::is_over) {
            self.forget(attachment, at);
        }
    }

    /// Keeps the addresses of an attachment until the disk can be told.
    pub(super) fn not_released(&mut self, attachment: &Attachment, error: &dyn std::error::Error) {
        if let Some(Entry::Releasing(endpoint)) = self.entries.get(attachment) {
            tracing::warn!(attachment = %attachment, error = %error, "write a release to the cni journal later");
            let endpoint = endpoint.clone();
            self.entries.insert(attachment.clone(), Entry::Released(endpoint));
        }
    }

    /// Tells the journal what it could not be told.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        let untold = self.entries.values().any(|entry| matches!(entry, Entry::Released(_)));
        if self.journal.failing() || untold { self.rewrite() } else { Ok(()) }
    }

    /// What a sync that begins now puts on disk.
    pub(super) fn unsynced(&self) -> Result<Unsynced, JournalError> {
        self.journal.unsynced()
    }

    /// A sync failed: the journal is to be written anew.
    pub(super) fn sync_failed(&mut self, source: io::Error) -> JournalError {
        self.journal.sync_failed(source)
    }

    fn forget(&mut self, attachment: &Attachment, at: Seconds) {
        if let Some(entry) = self.entries.remove(attachment) {
            free(&mut self.ipam, entry.endpoint(), at);
            self.devices.remove(&entry.endpoint().host_ifname);
        }
    }

    fn forget_stranger(&mut self, device: &str) {
        for address in self.strangers.remove(device).into_iter().flatten() {
            self.ipam.release(address, now());
        }
    }

    /// What is known of an attachment.
    pub(super) fn entry(&self, attachment: &Attachment) -> Option<Entry> {
        self.entries.get(attachment).cloned()
    }

    /// Every attachment.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.entries.values().cloned().collect()
    }

    /// Held addresses without an attachment.
    pub(super) fn stray_addresses(&self) -> Vec<IpAddr> {
        let ours: HashSet<IpAddr> =
            self.entries.values().flat_map(|entry| entry.endpoint().addresses()).collect();
        self.ipam.held().filter(|address| !ours.contains(address)).collect()
    }

    /// Every endpoint the data path has.
    pub(super) fn attached(&self) -> Vec<AttachedEndpoint> {
        let attached = |entry: &Entry| match entry {
            Entry::Attached(endpoint) => Some(endpoint.clone()),
            Entry::Reserved(_) | Entry::Releasing(_) | Entry::Released(_) => None,
        };
        self.entries.values().filter_map(attached).collect()
    }

    /// Every attachment of a network, but for those of ADDs and DELs under way.
    pub(super) fn list(&self, network: &str) -> Vec<EndpointSummary> {
        self.attached()
            .into_iter()
            .filter(|endpoint| endpoint.network == network)
            .map(|endpoint| EndpointSummary {
                attachment: endpoint.attachment(),
                host_ifname: endpoint.host_ifname,
            })
            .collect()
    }

    /// What the plugin needs to know of an endpoint; not known while the Pod CIDR of its addresses is not.
    pub(super) fn reservation(
        &self,
        endpoint: &AttachedEndpoint,
        mtu: u32,
    ) -> Result<Reservation, StoreError> {
        let lease = |address: IpAddr| match self.gateway(endpoint, address) {
            Some(gateway) => Ok(Lease { address, gateway }),
            None => Err(StoreError::Addresses { reason: format!("the pod cidr of {address} is not known") }),
        };
        let wired = endpoint.addresses().filter(|_| endpoint.origin != Origin::Chained);
        Ok(Reservation {
            host_ifname: endpoint.host_ifname.clone(),
            host_mac: MacAddress(endpoint.host_mac),
            pod_mac: MacAddress(endpoint.pod_mac),
            mtu,
            leases: wired.map(lease).collect::<Result<_, _>>()?,
            bandwidth: endpoint.bandwidth,
        })
    }

    fn gateway(&self, endpoint: &AttachedEndpoint, of: IpAddr) -> Option<IpAddr> {
        match &endpoint.origin {
            Origin::Delegated { gateways } => {
                gateways.iter().copied().find(|gateway| gateway.is_ipv4() == of.is_ipv4())
            }
            Origin::Own | Origin::Chained => self.ipam.gateway(of),
        }
    }

    /// Writes a record, and before it the whole file anew once most of its lines are history or its end is in doubt.
    fn append(&mut self, record: &Record) -> Result<(), StoreError> {
        let mostly_history =
            self.journal.lines() > 256 + 2 * (self.entries.len() + self.ipam.cooling_count());
        if mostly_history || self.journal.poisoned() {
            self.rewrite()?;
        }
        Ok(self.journal.append(record)?)
    }

    /// Writes the file anew; of what is released it says so, whatever became of that line in the old one.
    pub(super) fn rewrite(&mut self) -> Result<(), StoreError> {
        let at = now();
        self.journal.rewrite(&snapshot(&self.ipam, &self.entries, at))?;
        let over = self.entries.iter().filter(|(_, entry)| entry.is_over());
        for attachment in over.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.forget(&attachment, at);
        }
        Ok(())
    }
}

fn taken(address: IpAddr, holder: &AttachedEndpoint) -> StoreError {
    StoreError::AddressTaken { address, pod: pod_of(holder), holder: holder.attachment() }
}

/// Namespace and name, as people write them.
fn pod_of(endpoint: &AttachedEndpoint) -> String {
    format!("{}/{}", endpoint.pod_namespace, endpoint.pod_name)
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    // The directory itself: nothing need be written for it.
    let file = File::open(dir).map_err(io_error("open", dir))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_TICK),
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { path: dir.into() }),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", dir)(source)),
        }
    }
}

#[derive(Hash)]
enum Side {
    Host,
    Pod,
}

/// A locally administered unicast address that differs between attachments and between the sides of one.
fn local_mac(attachment: &Attachment, side: Side) -> [u8; 6] {
    let mut hasher = DefaultHasher::new();
    (attachment, side).hash(&mut hasher);
    let [first, second, third, fourth, fifth, sixth, ..] = hasher.finish().to_be_bytes();
    [(first & 0xfc) | 0x02, second, third, fourth, fifth, sixth]
}

fn now() -> Seconds {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0)
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { operation, path, source }
}

#[cfg(test)]
pub(super) mod tests;
