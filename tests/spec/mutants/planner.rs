//! Broken planners: each is linked into the specification's own program, which runs it against the real object.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Mutant, Sources};
use crate::{files, namespace};

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "externalTrafficPolicy is ignored",
        file: "agent/plan/src/frontend.rs",
        from: "self.add_set(plan, self.service.external_policy, true)",
        to: "self.add_set(plan, TrafficPolicy::Cluster, true)",
    },
    Mutant {
        name: "a client inside is bound to this node's endpoints",
        file: "agent/plan/src/frontend.rs",
        from: "self.add_set(plan, TrafficPolicy::Cluster, false)",
        to: "self.add_set(plan, self.service.external_policy, false)",
    },
    Mutant {
        name: "internalTrafficPolicy is ignored",
        file: "agent/plan/src/frontend.rs",
        from: "self.add_set(plan, self.service.internal_policy, false)",
        to: "self.add_set(plan, TrafficPolicy::Cluster, false)",
    },
    Mutant {
        name: "nobody who terminates is a last resort",
        file: "agent/plan/src/choice.rs",
        from: "if ready.is_empty() { members(candidates, last_resort) } else { ready }",
        to: "ready",
    },
    Mutant {
        name: "hints that name nobody here count",
        file: "agent/plan/src/choice.rs",
        from: "&& ready().any(|c| Self::SameNode.allows(c, place))",
        to: "",
    },
    Mutant {
        name: "topology hints count for Local sets",
        file: "agent/plan/src/choice.rs",
        from: "TrafficPolicy::Local => local_set(candidates),",
        to: "TrafficPolicy::Local => {
                 let hinted = |c: &&Candidate<'_>| Topology::of(candidates, place).allows(c, place);
                 local_set(&candidates.iter().filter(hinted).copied().collect::<Vec<_>>())
             }",
    },
    Mutant {
        name: "source ranges are skipped",
        file: "agent/plan/src/frontend.rs",
        from: "if ranges().next().is_none() {",
        to: "if ranges().count() < 99 {",
    },
    Mutant {
        name: "external addresses have no marker",
        file: "agent/plan/src/frontend.rs",
        from: "self.markers.insert(Marker { address, scope: scope::EXTERNAL }, ());",
        to: "",
    },
    Mutant {
        name: "endpoints elsewhere are forgotten",
        file: "agent/plan/src/frontend.rs",
        from: "if hidden && !self.facts.reject_without_local {",
        to: "if hidden && self.facts.reject_without_local {",
    },
    Mutant {
        name: "a terminating duplicate wins",
        file: "agent/plan/src/candidate.rs",
        from: "found.sort_by_key(|candidate| (candidate.key, candidate.terminating));",
        to: "found.sort_by_key(|candidate| (candidate.key, !candidate.terminating));",
    },
    Mutant {
        name: "datagrams stay with whoever does not serve",
        file: "agent/plan/src/candidate.rs",
        from: "!served.contains(&*target.name)",
        to: "true | served.contains(&*target.name)",
    },
    Mutant {
        name: "no share is a share",
        file: "agent/plan/src/weight.rs",
        from: "members.retain(|member| member.weight > 0);",
        to: "members.iter_mut().for_each(|member| member.weight = member.weight.max(1));",
    },
    Mutant {
        name: "node ports on every address of the node",
        file: "agent/plan/src/frontend.rs",
        from: "self.facts.node_port_addresses.iter().filter(of_family)",
        to: "self.facts.addresses.iter().filter(of_family)",
    },
    Mutant {
        name: "a former load balancer keeps its addresses",
        file: "agent/plan/src/address.rs",
        from: "if service.kind == ServiceType::LoadBalancer {",
        to: "if service.kind != ServiceType::ClusterIp {",
    },
    Mutant {
        name: "the last to claim an address has it",
        file: "agent/plan/src/claim.rs",
        from: "match claimants.values().next() {",
        to: "match claimants.values().next_back() {",
    },
    Mutant {
        name: "a deleted endpoint keeps its connections",
        file: "agent/plan/src/diff.rs",
        from: "steps.push(Step::Bump(v4.ended_generations().chain(v6.ended_generations()).collect()));",
        to: "",
    },
];

/// The package of `alone.rs` in the copy of the tree.
const MANIFEST: &str = r#"
[package]
name = "alone"
edition.workspace = true

[[bin]]
name = "alone"
path = "alone.rs"

[dependencies]
anyhow.workspace = true
fastrand.workspace = true
ipnet.workspace = true
quilla-abi = { workspace = true, features = ["user"] }
quilla-datapath.workspace = true
quilla-model.workspace = true
quilla-plan.workspace = true
"#;

/// The specification proves its worth: each mutant of the planner disagrees with it.
pub(crate) fn each_is_caught() -> Result<()> {
    let parts = ["abi", "ebpf", "model", "agent/plan", "agent/datapath", "agent/src", "tests/spec"];
    let members = ["abi", "model", "agent/plan", "agent/datapath", "tests/spec"];
    let sources = Sources::copy(&parts, &members)?;
    fs::write(sources.folder().join("tests/spec/Cargo.toml"), MANIFEST).context("write the manifest")?;
    sources.each_is_caught(MUTANTS, |sources, name, packets| {
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--quiet", "--package", "alone"]).env("RUSTFLAGS", "-Awarnings");
        let program = sources.build(cargo, Path::new("debug/alone"))?;
        namespace(&format!("planner-{name}"))?.run(|| run(&program, name, packets))?
    })
}

/// The first line of the disagreement, if there is one.
fn run(program: &Path, name: &str, packets: u64) -> Result<Option<String>> {
    let place = files(&format!("planner-{name}"));
    fs::create_dir_all(&place).context("make a place for pins")?;
    let object = Sources::root().join("ebpf/objects/quilla.bpf.o");
    let output = Command::new(program)
        .arg(place)
        .arg(object)
        .args(["1".to_owned(), packets.to_string()])
        .output()
        .context("start the mutant")?;
    let line = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
    match output.status.code() {
        Some(0) => Ok(None),
        Some(1) => Ok(Some(line)),
        _ => bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}
