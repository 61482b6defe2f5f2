//! What the lines of a journal come to, and the lines that say what the store knows. Pure; called by the store when it
//! opens and when it writes the journal anew. Invariant: a snapshot, replayed, is the state it was taken of.

use std::collections::BTreeMap;
use std::time::Duration;

use quilla_cni_protocol::Attachment;

use super::Entry;
use crate::cni::AttachedEndpoint;
use crate::cni::ipam::{Ipam, Rest, Seconds};
use crate::cni::journal::{Record, Recovered};

/// What the lines of a journal come to.
pub(super) struct Replay {
    pub(super) ipam: Ipam,
    pub(super) entries: BTreeMap<Attachment, Entry>,
}

impl Replay {
    /// Reservations that were never attached are given back: their plugins' connections ended with the last agent.
    pub(super) fn of(recovered: Recovered, cool_down: Duration, now: Seconds) -> Self {
        let mut replay = Self { ipam: Ipam::new(cool_down), entries: BTreeMap::new() };
        for record in recovered.records {
            replay.take(record, |at| match at {
                _ if !recovered.has_times => now,
                // Before the machine last started, so at least that long ago.
                at if at > now => 0,
                at => at,
            });
        }
        let Self { ipam, entries } = &mut replay;
        entries.retain(|_, entry| {
            if let Entry::Reserved(endpoint) = &*entry {
                free(ipam, endpoint, now);
            }
            matches!(entry, Entry::Attached(_))
        });
        replay
    }

    fn take(&mut self, record: Record, time: impl Fn(Seconds) -> Seconds) {
        match record {
            Record::Journal { .. } => {}
            Record::Reserved { endpoint } => self.hold(&endpoint.clone(), Entry::Reserved(endpoint)),
            Record::Attached { endpoint } => self.hold(&endpoint.clone(), Entry::Attached(endpoint)),
            Record::Released { attachment, at } => self.release(&attachment, time(at)),
            Record::Cooling { address, at, pod_uid } => {
                self.ipam.release(address, Rest { at: time(at), pod_uid });
            }
        }
    }

    fn hold(&mut self, endpoint: &AttachedEndpoint, entry: Entry) {
        let key = endpoint.attachment();
        let shares = |other: &AttachedEndpoint| {
            other.addresses().any(|held| endpoint.addresses().any(|own| own == held))
        };
        let former = self.entries.iter().find(|(other, entry)| **other != key && shares(entry.endpoint()));
        // It was released before: that line is lost, or this one would not be.
        if let Some(former) = former.map(|(key, _)| key.clone()) {
            self.release(&former, 0);
        }
        endpoint.addresses().for_each(|address| self.ipam.hold(address));
        self.entries.insert(key, entry);
    }

    fn release(&mut self, attachment: &Attachment, at: Seconds) {
        if let Some(entry) = self.entries.remove(attachment) {
            free(&mut self.ipam, entry.endpoint(), at);
        }
    }
}

/// Frees the addresses of an endpoint. They rest, for everybody but its Pod, if the data path ever had it.
pub(super) fn free(ipam: &mut Ipam, endpoint: &AttachedEndpoint, at: Seconds) {
    for address in endpoint.addresses() {
        if endpoint.host_ifindex == 0 {
            ipam.give_back(address);
        } else {
            ipam.release(address, Rest { at, pod_uid: endpoint.pod_uid.clone() });
        }
    }
}

/// Lines that come to the same.
pub(super) fn snapshot(ipam: &Ipam, entries: &BTreeMap<Attachment, Entry>, now: Seconds) -> Vec<Record> {
    let cooling = |address, rest: &Rest| {
        let Rest { at, pod_uid } = rest.clone();
        Record::Cooling { address, at, pod_uid }
    };
    let former = |endpoint: &AttachedEndpoint| -> Vec<Record> {
        let rested = |address| Some(cooling(address, ipam.rested_from(address)?));
        endpoint.addresses().filter_map(rested).collect()
    };
    let mut records: Vec<Record> = ipam.cooling().map(|(address, rest)| cooling(address, rest)).collect();
    for entry in entries.values().cloned() {
        match entry {
            Entry::Reserved(endpoint) => {
                records.extend(former(&endpoint));
                records.push(Record::Reserved { endpoint });
            }
            Entry::Attached(endpoint) => records.push(Record::Attached { endpoint }),
            Entry::Releasing(endpoint) | Entry::Released(endpoint) if endpoint.host_ifindex != 0 => {
                let rest = Rest { at: now, pod_uid: endpoint.pod_uid.clone() };
                records.extend(endpoint.addresses().map(|address| cooling(address, &rest)));
            }
            Entry::Releasing(endpoint) | Entry::Released(endpoint) => records.extend(former(&endpoint)),
        }
    }
    records
}
