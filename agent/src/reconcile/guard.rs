//! Programs of Pods: attached with a round, and put back at once when somebody else took them away (E19).
//!
//! Between the two a Pod's packets meet the host's stack alone, so whoever learns of it acts first, whether or not rounds
//! succeed. Invariants: no ADD succeeds for a device whose programs were taken away before its endpoint was known here;
//! and what cannot be attached to one Pod is a problem of that Pod, and keeps nothing else from being programmed.

mod repairs;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use quilla_cni_protocol::Attachment;
use quilla_datapath::{DatapathError, Mechanism, Touched};
use quilla_model::{ObjectName, ObjectRef, Problem, Reason};

use super::{ReconcileError, Reconciler};
use crate::cni::AttachedEndpoint;
use crate::endpoint;

use repairs::{Repairs, Turn};

/// Why a Pod is left without programs for a while.
const CONTESTED: &str = "somebody removes them again and again; the next audit puts them back";

/// What is remembered of programs and of those who remove them.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// Devices from which programs may have been taken since the last audit, and between the last two: no ADD takes
    /// longer.
    touched: [Touched; 2],
    repairs: Repairs,
    /// Devices whose filters somebody removes again and again.
    by_links: BTreeSet<u32>,
    /// Endpoints without programs, and why.
    bare: BTreeMap<Attachment, String>,
}

impl Guard {
    /// Everything is looked at anew.
    pub(super) fn audited(&mut self) {
        self.touched = [Touched::default(), std::mem::take(&mut self.touched[0])];
    }

    fn problem(endpoint: &AttachedEndpoint, why: &str) -> Problem {
        let pod = ObjectName::new(&endpoint.pod_namespace, &endpoint.pod_name);
        let detail =
            format!("programs of {}, without which nothing is enforced: {why}", endpoint.host_ifname);
        Problem::new(ObjectRef::new("Pod", &pod), Reason::Missing, detail)
    }
}

impl Reconciler {
    /// Attaches this run's programs to all Pods.
    pub(super) fn attach_pods(&mut self) {
        let present: Vec<_> = self.present().cloned().collect();
        self.guard.bare.clear();
        for endpoint in &present {
            let attached = self.datapath.attach_pod(&endpoint.host_ifname, self.asked(endpoint));
            self.attached_to(endpoint, attached.map(drop));
        }
        let devices: BTreeSet<_> = present.iter().map(|endpoint| endpoint.host_ifindex).collect();
        self.guard.by_links.retain(|device| devices.contains(device));
        self.guard.repairs.forget(Instant::now());
    }

    /// Whether any Pod has, for all that is known, programs of a former run or none.
    pub(super) fn has_bare_pods(&self) -> bool {
        !self.guard.bare.is_empty()
    }

    /// What could not be attached to.
    pub(super) fn bare_pods(&self) -> impl Iterator<Item = Problem> {
        let present = self.guard.bare.iter().filter_map(|(key, why)| Some((self.endpoints.get(key)?, why)));
        present.map(|(endpoint, why)| Guard::problem(endpoint, why))
    }

    /// Looks whether these devices still have their programs. Before the first round, too: the rows are those of the
    /// previous run then, and a Pod had rather be cut off than be unchecked.
    pub(super) fn guard(&mut self, touched: &Touched) {
        self.guard.touched[0].extend(touched);
        self.guard_shared(touched);
        let suspects: Vec<_> =
            self.present().filter(|endpoint| touched.contains(endpoint.host_ifindex)).cloned().collect();
        for endpoint in suspects {
            let before = self.guard.bare.get(&endpoint.attachment()).cloned();
            match self.put_back(&endpoint) {
                Ok(true) => self.attached_to(&endpoint, Ok(())),
                Ok(false) => drop(self.guard.bare.insert(endpoint.attachment(), CONTESTED.to_owned())),
                Err(error) => self.attached_to(&endpoint, Err(error)),
            }
            if self.guard.bare.get(&endpoint.attachment()) != before.as_ref() {
                // The next round tells.
                self.agenda.retry(Instant::now());
            }
        }
    }

    /// All Pods, where no round did it.
    pub(super) fn guard_all(&mut self) {
        self.guard(&Touched::any());
    }

    /// Those of the uplinks and the overlay device. They have links where there are links.
    fn guard_shared(&mut self, touched: &Touched) {
        let Some(devices) = &self.attached else { return };
        let Some(&device) = devices.iter().find(|&&ifindex| touched.contains(ifindex)) else { return };
        let now = Instant::now();
        if self.guard.repairs.is_contested(device, now) {
            return;
        }
        let look = || -> Result<bool, DatapathError> {
            let mut missing = self.datapath.overlay_mechanism(self.node.overlay())?.is_none();
            for uplink in self.node.uplinks() {
                missing |= self.datapath.uplink_mechanism(&uplink)?.is_none();
            }
            Ok(missing)
        };
        if matches!(look(), Ok(false)) {
            return;
        }
        if self.guard.repairs.turn(device, now) == Turn::Contested {
            tracing::error!(
                "programs of the uplinks are removed again and again: the next audit looks again"
            );
            return;
        }
        tracing::warn!("programs of an uplink or of the overlay device were removed: attaching them again");
        if let Err(error) = self.attach_shared() {
            tracing::error!(error = error.in_full(), "attach programs again");
            self.attached = None;
            self.agenda.retry(Instant::now());
        }
    }

    /// By what programs of this endpoint are to be attached; by links, which no tool removes by mistake, where somebody
    /// removes filters again and again.
    fn asked(&self, endpoint: &AttachedEndpoint) -> Option<Mechanism> {
        if self.guard.by_links.contains(&endpoint.host_ifindex) {
            Some(Mechanism::Tcx)
        } else {
            endpoint::asked(endpoint)
        }
    }

    /// Whether the programs are there now; if not, they are left to the next audit.
    fn put_back(&mut self, endpoint: &AttachedEndpoint) -> Result<bool, DatapathError> {
        let (device, ifindex, now) = (&endpoint.host_ifname, endpoint.host_ifindex, Instant::now());
        // Another device may have its name by now.
        if !self.node.has_device(device, ifindex)? || self.datapath.pod_mechanism(device)?.is_some() {
            return Ok(true);
        }
        if self.guard.repairs.is_contested(ifindex, now) {
            return Ok(false);
        }
        if self.guard.repairs.turn(ifindex, now) == Turn::Contested {
            if !self.datapath.status().tcx {
                tracing::error!(device, "programs are removed again and again: the next audit looks again");
                return Ok(false);
            }
            tracing::error!(device, "programs are removed again and again: links take the place of filters");
            self.guard.by_links.insert(ifindex);
        }
        self.datapath.attach_pod(device, self.asked(endpoint))?;
        tracing::warn!(
            device,
            pod.namespace = endpoint.pod_namespace,
            pod.name = endpoint.pod_name,
            "programs were removed or replaced by somebody else and are attached again"
        );
        self.metrics.programs_restored();
        Ok(true)
    }

    fn attached_to(&mut self, endpoint: &AttachedEndpoint, done: Result<(), DatapathError>) {
        match done {
            // It went with its programs; its DEL is on the way.
            Ok(()) | Err(DatapathError::NoDevice { .. }) => {
                drop(self.guard.bare.remove(&endpoint.attachment()));
            }
            Err(error) => {
                let why = ReconcileError::from(error).in_full();
                tracing::error!(device = endpoint.host_ifname, error = why, "attach programs to a Pod");
                self.guard.bare.insert(endpoint.attachment(), why);
            }
        }
    }

    /// Of an endpoint that is new here and was attached to a moment ago.
    pub(super) fn require_untouched(&self, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError> {
        let touched = self.guard.touched.iter().any(|touched| touched.contains(endpoint.host_ifindex));
        if touched { self.require_programs(endpoint) } else { Ok(()) }
    }

    pub(super) fn require_programs(&self, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError> {
        let missing = || ReconcileError::Missing { what: format!("programs of {}", endpoint.host_ifname) };
        self.datapath.pod_mechanism(&endpoint.host_ifname)?.map(drop).ok_or_else(missing)
    }
}
