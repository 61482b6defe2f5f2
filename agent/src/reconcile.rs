//! The owner of the kernel's state: turns snapshots and endpoints into rows, devices and attached programs.
//!
//! A thread of its own, because every call on the kernel blocks. It starts from what is pinned, empties nothing, and is
//! level-triggered: each round plans the whole desired state and writes the difference. When a round fails, the next
//! one reads the maps back before it plans. Invariant: `actual` is what the maps hold, unless `unsure` is set.

mod agenda;
mod command;
mod effective;
mod guard;
mod pods;
mod recovered;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use quilla_cni_protocol::{Attachment, PortMapping, Transport};
use quilla_datapath::{Datapath, DatapathError, Touched, allocator};
use quilla_model::{ObjectName, Protocol};
use quilla_plan::{
    BackendKey, Desired, FrontendKey, Grace, HostPort, Layout, LocalEndpoint, Planner, ServiceFacts, Step,
    Tables, diff,
};
use tokio::sync::watch;

use crate::cni::AttachedEndpoint;
use crate::metrics::Metrics;
use crate::node::{Node, NodeSettings};
use crate::snapshot::Published;
use crate::sockets::{self, Ended};
use crate::table;

use agenda::{Agenda, Task};
pub use command::{Answer, Command, Handle, ReconcileError, channel};
use guard::Guard;
use pods::Wish;
pub use view::View;

/// Commands of one round at most, so that what is due unasked has its turn.
const AT_ONCE: usize = 1024;

/// What the reconciler is made from.
#[derive(Debug)]
pub struct Parts {
    /// The loaded data path.
    pub datapath: Arc<Datapath>,
    /// What to do on this node.
    pub node: NodeSettings,
    /// Where socket programs are attached.
    pub cgroup: PathBuf,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Snapshots of the cluster.
    pub published: watch::Receiver<Option<Published>>,
    /// What others may see.
    pub view: watch::Sender<Arc<View>>,
    /// Who wants to know which backends ended.
    pub ended: Ended,
    /// Endpoints of the journal.
    pub endpoints: Vec<AttachedEndpoint>,
    /// Frontends of the agent itself, for its self-test.
    pub own_services: Vec<(FrontendKey, BackendKey)>,
    /// How often the maps are compared with the plan.
    pub audit_interval: Duration,
}

/// The state of the kernel, as desired and as it is.
#[derive(Debug)]
pub struct Reconciler {
    datapath: Arc<Datapath>,
    node: Node,
    cgroup: PathBuf,
    metrics: Arc<Metrics>,
    published: watch::Receiver<Option<Published>>,
    view: watch::Sender<Arc<View>>,
    ended: Ended,
    endpoints: BTreeMap<Attachment, AttachedEndpoint>,
    /// Those whose device is gone or is another one: after a reboot, or when a namespace died without a DEL.
    absent: BTreeSet<Attachment>,
    own_services: Vec<(FrontendKey, BackendKey)>,
    /// The snapshot of a previous run, for as long as no apiserver answers.
    fallback: Option<Published>,
    /// What a previous run left whole in the maps. The fallback, which may be older, does not overrule it.
    recovered: Option<Arc<Tables>>,
    planner: Planner,
    grace: Grace,
    layout: Layout,
    actual: Arc<Tables>,
    /// The uplinks' MTUs when flows were last told to look again: the way to the world is measured when one is computed.
    measured: BTreeMap<u32, u32>,
    unsure: bool,
    /// No round has begun yet: nobody wrote since the maps were read.
    fresh: bool,
    /// Overlay device and uplinks that this run's programs are attached to, and with them all Pods to which they can be.
    attached: Option<Vec<u32>>,
    guard: Guard,
    agenda: Agenda,
}

impl Reconciler {
    /// Reads the maps; changes nothing yet.
    pub fn new(parts: Parts) -> Result<Self, DatapathError> {
        let Parts {
            datapath,
            node,
            cgroup,
            metrics,
            published,
            view,
            ended,
            endpoints,
            own_services,
            audit_interval,
        } = parts;
        let actual = Arc::new(table::dump(datapath.maps())?);
        let recovered = recovered::whole(datapath.opened(), &actual);
        let layout = Layout::recover(&actual);
        Ok(Self {
            node: Node::new(node, actual.config.hash_seed),
            planner: Planner::default(),
            grace: Grace::recover(layout.tables()),
            layout,
            actual,
            datapath,
            cgroup,
            metrics,
            published,
            view,
            ended,
            endpoints: endpoints.into_iter().map(|endpoint| (endpoint.attachment(), endpoint)).collect(),
            absent: BTreeSet::new(),
            own_services,
            fallback: None,
            recovered,
            measured: BTreeMap::new(),
            unsure: true,
            fresh: true,
            attached: None,
            guard: Guard::default(),
            agenda: Agenda::new(audit_interval, Instant::now()),
        })
    }

    /// Works until every [`Handle`] is gone.
    pub fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let wait = self.agenda.next().saturating_duration_since(Instant::now());
            match commands.recv_timeout(wait) {
                Ok(command) => self.obey(command, commands),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            match self.agenda.take_due(Instant::now()) {
                Some(Task::Audit) => self.audit(),
                Some(Task::Round) => self.round(),
                Some(Task::LookAtDevices) => self.look_at_devices(),
                Some(Task::Recount) => self.recount(),
                None => {}
            }
        }
    }

    /// All that is queued is one round; what comes while it runs is the next one's.
    fn obey(&mut self, first: Command, queue: &Receiver<Command>) {
        let (mut round, mut wishes, mut questions) = (false, Vec::new(), Vec::new());
        let mut touched = Touched::default();
        for command in iter::once(first).chain(queue.try_iter()).take(AT_ONCE) {
            match command {
                Command::SnapshotChanged => round = true,
                Command::Fallback(published) => {
                    self.fallback = Some(*published);
                    round = true;
                }
                Command::ProgramsTouched(devices) => touched.extend(&devices),
                Command::DevicesChanged => self.agenda.devices_changed(Instant::now()),
                Command::Attach(endpoint, answer) => wishes.push(Wish::Attach(endpoint, answer)),
                Command::Detach(endpoint, answer) => wishes.push(Wish::Detach(endpoint, answer)),
                Command::Check(endpoint, answer) => questions.push((endpoint, answer)),
            }
        }
        if !touched.is_empty() {
            self.guard(&touched);
        }
        if !wishes.is_empty() {
            self.fulfil(wishes);
        } else if round {
            self.round();
        }
        for (endpoint, answer) in questions {
            answer.give(self.check(&endpoint));
        }
    }

    /// One round that nobody waits for.
    fn round(&mut self) {
        drop(self.try_round());
    }

    /// One round, with its outcome counted, logged and, if it failed, tried again later.
    fn try_round(&mut self) -> Result<(), ReconcileError> {
        let result = self.reconcile();
        match &result {
            Ok(()) => {}
            Err(ReconcileError::NoSnapshot) => self.agenda.settled(),
            Err(error) => {
                tracing::error!(error = error.in_full(), "reconcile failed");
                self.agenda.retry(Instant::now());
            }
        }
        result
    }

    fn reconcile(&mut self) -> Result<(), ReconcileError> {
        let started = Instant::now();
        self.metrics.reconcile_begun();
        let (anew, guessed) = (self.unsure, self.fallback.is_some());
        let result = self.program();
        match &result {
            Ok(()) => {
                self.metrics.reconciled(started.elapsed());
                // What was read from the maps or the disk is not needed any more.
                if anew || (guessed && self.fallback.is_none()) {
                    allocator::give_free_pages_back();
                }
                self.agenda.settled();
                if self.layout.awaits_room() {
                    self.agenda.crowded(Instant::now());
                }
            }
            Err(error) => {
                self.unsure = true;
                self.metrics.reconcile_failed(error.label());
                let reason = error.in_full();
                self.view.send_modify(|view| Arc::make_mut(view).failing = Some(reason));
            }
        }
        result
    }

    /// Everything the kernel should hold, from the newest snapshot: devices, rows, routes, programs.
    fn program(&mut self) -> Result<(), ReconcileError> {
        let Published { snapshot, problems, policies } = self.newest().ok_or(ReconcileError::NoSnapshot)?;
        self.resynchronise()?;
        self.node.prepare(&snapshot)?;
        self.look_for_devices()?;
        let facts = self.node.facts(&snapshot, self.local_endpoints());
        let for_services = ServiceFacts::new(&snapshot, &facts);
        let (mut desired, mut found) = self.planner.plan(&snapshot, &facts);
        if let Some(tables) = &self.recovered {
            desired = Desired::recover(tables, &desired);
        }
        self.add_own_services(&mut desired);
        self.agenda.backends_end(self.grace.extend(&mut desired, Instant::now()));
        found.extend(problems.iter().cloned());
        let (tables, unplaced) = self.layout.lay_out(&desired);
        found.extend(unplaced);
        self.write(&tables)?;
        self.node.route(&snapshot, &desired)?;
        self.attach_programs()?;
        let present = self.endpoints.iter().filter(|(key, _)| !self.absent.contains(key));
        self.node.fit(present.map(|(_, endpoint)| endpoint))?;
        self.node.refuse(&snapshot, &desired);
        found.extend(self.node.problems());
        found.extend(self.bare_pods());
        self.metrics.endpoints(self.endpoints.len());
        let view = View {
            programmed: true,
            failing: None,
            pod_cidrs: snapshot.nodes.get(&facts.name).map_or_else(Vec::new, |node| node.pod_cidrs.clone()),
            node_port_addresses: for_services.node_port_addresses.into_iter().collect(),
            snapshot,
            desired,
            tables,
            problems: found,
            policies,
            devices: self.node.ifindexes(),
            endpoints: self.endpoints.values().cloned().collect(),
            absent: self.absent.iter().filter_map(|key| self.endpoints.get(key)).cloned().collect(),
        };
        self.metrics.problems(view.all_problems());
        self.view.send_replace(Arc::new(view));
        Ok(())
    }

    /// The newest snapshot there is. Once an apiserver has answered, nothing older counts.
    fn newest(&mut self) -> Option<Published> {
        let published = self.published.borrow_and_update().clone();
        if published.is_some() {
            (self.fallback, self.recovered) = (None, None);
        }
        published.or_else(|| self.fallback.clone())
    }

    /// After a start or a failure: the maps are the truth, and every flow is to look again.
    fn resynchronise(&mut self) -> Result<(), ReconcileError> {
        if std::mem::take(&mut self.fresh) || !self.unsure {
            return Ok(());
        }
        self.actual = Arc::new(table::dump(self.datapath.maps())?);
        self.layout = Layout::recover(&self.actual);
        Ok(())
    }

    fn write(&mut self, tables: &Arc<Tables>) -> Result<(), ReconcileError> {
        let mut steps = diff(&self.actual, tables);
        if self.unsure {
            // What this run finds did not appear just now.
            steps.retain(|step| !step.starts_loads());
        }
        let measured = self.node.uplink_mtus();
        if self.unsure || self.measured != measured {
            steps.push(quilla_plan::diff::refresh());
        }
        let applied = table::apply(self.datapath.maps(), &steps);
        // After a failure, too: the next difference may not name them again, and to look at a socket of a backend that
        // is still there costs nothing.
        let ended = sockets::ended(&steps);
        if !ended.is_empty() && self.ended.send(ended).is_err() {
            tracing::debug!("nobody ends sockets any more");
        }
        applied?;
        if !steps.is_empty() {
            tracing::debug!(steps = steps.len(), rows = rows(&steps), "rows written");
        }
        self.actual = Arc::clone(tables);
        self.measured = measured;
        self.unsure = false;
        Ok(())
    }

    /// When everything is attached anew: a number that belongs to another device by now must not get into a row.
    fn look_for_devices(&mut self) -> Result<(), ReconcileError> {
        if self.attached.is_some() {
            return Ok(());
        }
        let mut absent = BTreeSet::new();
        for (key, endpoint) in &self.endpoints {
            if !self.node.has_device(&endpoint.host_ifname, endpoint.host_ifindex)? {
                if !self.absent.contains(key) {
                    tracing::warn!(
                        device = endpoint.host_ifname,
                        pod = endpoint.pod_name,
                        "endpoint without its device"
                    );
                }
                absent.insert(key.clone());
            }
        }
        self.absent = absent;
        Ok(())
    }

    /// Endpoints that have their device.
    fn present(&self) -> impl Iterator<Item = &AttachedEndpoint> {
        self.endpoints.iter().filter(|(key, _)| !self.absent.contains(key)).map(|(_, endpoint)| endpoint)
    }

    fn local_endpoints(&self) -> Vec<LocalEndpoint> {
        let local = |endpoint: &AttachedEndpoint| LocalEndpoint {
            pod: ObjectName::new(&endpoint.pod_namespace, &endpoint.pod_name),
            ifindex: endpoint.host_ifindex,
            pod_mac: endpoint.pod_mac,
            host_mac: endpoint.host_mac,
            ipv4: endpoint.ipv4,
            ipv6: endpoint.ipv6,
            host_ports: endpoint.host_ports.iter().map(host_port).collect(),
        };
        self.present().map(local).collect()
    }

    fn add_own_services(&self, desired: &mut Desired) {
        for (key, backend) in &self.own_services {
            desired.add_own(*key, *backend);
        }
    }

    // === programs ===

    /// Puts this run's programs in the place of the previous run's, once the maps are right.
    fn attach_programs(&mut self) -> Result<(), ReconcileError> {
        let devices = self.node.ifindexes();
        if self.attached.as_ref() == Some(&devices) {
            return Ok(());
        }
        self.attach_shared()?;
        // Without them the rules would leave the node's processes no way to a Service.
        self.datapath.attach_sockets(&self.cgroup).inspect_err(|_| self.node.refuse_nothing())?;
        self.attach_pods();
        let former = self.datapath.detach_others(&self.node.uplinks(), self.node.overlay())?;
        if !former.is_empty() {
            tracing::info!(links = ?former, "programs of a former uplink or overlay device detached");
        }
        let pruned = self.datapath.prune_links()?;
        // No program of another version runs any more, so nobody uses its maps.
        if !self.has_bare_pods() {
            self.datapath.forget_replaced()?;
        }
        tracing::debug!(endpoints = self.endpoints.len(), pruned = pruned.len(), "programs attached");
        self.attached = Some(devices);
        Ok(())
    }

    fn attach_shared(&self) -> Result<(), ReconcileError> {
        self.node.uplinks().iter().try_for_each(|uplink| self.datapath.attach_uplink(uplink))?;
        Ok(self.datapath.attach_overlay(self.node.overlay())?)
    }

    // === audit ===

    /// Compares the maps with the plan and puts right what differs; then a round, in case the node itself changed.
    fn audit(&mut self) {
        if let Err(error) = self.repair() {
            tracing::error!(error = error.in_full(), "audit failed");
            self.unsure = true;
        }
        allocator::give_free_pages_back();
        self.node.forget();
        self.attached = None;
        self.guard.audited();
        self.round();
        if self.attached.is_none() {
            self.guard_all();
        }
    }

    /// Puts right what the kernel counts of connections, where a set chooses by it.
    fn recount(&self) {
        match table::recount(self.datapath.maps(), &self.actual) {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(rows, "connections of backends recounted"),
            Err(error) => tracing::warn!(error = %error, "recount connections of backends"),
        }
    }

    /// Every Pod that comes or goes is such a change: only those of our own devices matter.
    fn look_at_devices(&mut self) {
        match self.node.changed() {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!("a device of the node or an address changed");
                self.node.forget();
                self.round();
            }
            Err(error) => tracing::warn!(error = %error, "look at devices"),
        }
    }

    fn repair(&mut self) -> Result<(), ReconcileError> {
        if self.unsure {
            return Ok(());
        }
        let found = table::dump(self.datapath.maps())?;
        let steps = diff(&found, &self.actual);
        for step in &steps {
            if !matches!(step, Step::Bump(_)) {
                tracing::warn!(map = step.map(), rows = step.rows(), "drift repaired");
                self.metrics.drift_repaired(step.map(), step.rows());
            }
        }
        Ok(table::apply(self.datapath.maps(), &steps)?)
    }
}

fn host_port(mapping: &PortMapping) -> HostPort {
    let protocol = match mapping.protocol {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
        Transport::Sctp => Protocol::Sctp,
    };
    let PortMapping { host_port, container_port, host_ip, .. } = *mapping;
    HostPort { host_port, container_port, protocol, host_ip }
}

fn rows(steps: &[Step]) -> usize {
    steps.iter().map(Step::rows).sum()
}
