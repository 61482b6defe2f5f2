//! Programs of Pods that somebody else took away: put back at once, not at the next audit (E19).
//!
//! Between the two a Pod's packets meet the host's stack alone, so whoever learns of it acts first. Invariant: no ADD
//! succeeds for a device whose programs were taken away before its endpoint was known here.

use std::time::Instant;

use quilla_datapath::{DatapathError, Touched};

use super::{ReconcileError, Reconciler};
use crate::cni::AttachedEndpoint;
use crate::endpoint;

impl Reconciler {
    /// Looks whether these devices still have their programs. All are attached anew in any case before the first round
    /// and after a failure.
    pub(super) fn guard(&mut self, touched: &Touched) {
        self.touched.extend(touched);
        let Some(devices) = &self.attached else { return };
        // Those have links where there are links.
        if !self.datapath.status().tcx && devices.iter().any(|&ifindex| touched.contains(ifindex)) {
            tracing::warn!("programs of an uplink or of the overlay device may be gone: attaching all");
            self.attached = None;
            return self.round();
        }
        let suspects: Vec<_> =
            self.present().filter(|endpoint| touched.contains(endpoint.host_ifindex)).cloned().collect();
        for endpoint in suspects {
            if let Err(error) = self.put_back(&endpoint) {
                let device = &endpoint.host_ifname;
                tracing::error!(device, error = error.in_full(), "attach programs again");
                self.attached = None;
                self.agenda.retry(Instant::now());
            }
        }
    }

    fn put_back(&self, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError> {
        let device = &endpoint.host_ifname;
        let attach = || match self.datapath.pod_mechanism(device)? {
            Some(_) => Ok(false),
            None => self.datapath.attach_pod(device, endpoint::asked(endpoint)).map(|_| true),
        };
        match attach() {
            Ok(true) => {
                tracing::warn!(
                    device,
                    pod.namespace = endpoint.pod_namespace,
                    pod.name = endpoint.pod_name,
                    "programs were removed by somebody else and are attached again"
                );
                self.metrics.programs_restored();
                Ok(())
            }
            // It went with its filters.
            Ok(false) | Err(DatapathError::NoDevice { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Of an endpoint that is new here and was attached to a moment ago.
    pub(super) fn require_untouched(&self, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError> {
        if self.touched.contains(endpoint.host_ifindex) { self.require_programs(endpoint) } else { Ok(()) }
    }

    pub(super) fn require_programs(&self, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError> {
        let missing = || ReconcileError::Missing { what: format!("programs of {}", endpoint.host_ifname) };
        self.datapath.pod_mechanism(&endpoint.host_ifname)?.map(drop).ok_or_else(missing)
    }
}
