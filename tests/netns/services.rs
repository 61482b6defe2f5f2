//! ClusterIPs by both ways: translated once at the socket, and per packet where the hooks do not reach.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{Answer, By, ask, tally};
use quilla_tests::cluster::Cluster;
use quilla_tests::eventually;

const PORT: u16 = 80;

/// Two backends on two nodes behind one dual-stack Service.
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: tcp, port: 80, targetPort: http, protocol: TCP}
  - {name: udp, port: 80, targetPort: 8080, protocol: UDP}
";

fn frontends(cluster: &Cluster, endpoints: usize) -> Result<Vec<SocketAddr>> {
    cluster.apply(SERVICE)?;
    let ips = cluster.wait_service("web", endpoints)?;
    ensure!(ips.len() == 2, "not dual stack: {ips:?}");
    ips.iter().map(|ip| Ok(SocketAddr::new(ip.parse()?, PORT))).collect()
}

/// Asks until every backend has been seen: which one answers is chance, that all do is not.
fn spread(place: &dyn Fn(&str) -> Command, to: SocketAddr, by: By, servers: &[&str]) -> Result<Vec<Answer>> {
    let answers = eventually::succeeds("every backend answers", || {
        let answers = ask(place, to, by, 24)?;
        let hits = tally(&answers);
        ensure!(servers.iter().all(|server| hits.contains_key(server)), "{to} by {by:?}: {hits:?}");
        Ok(answers)
    })?;
    let stranger = answers.iter().find(|answer| !servers.contains(&answer.server.as_str()));
    ensure!(stranger.is_none(), "{to} by {by:?} answered by {stranger:?}");
    Ok(answers)
}

/// S2, S17, S30: by each family's address, all backends get their share, and see the Pod's own address; from a Pod with
/// hooks, from one without, and from the node.
pub(crate) fn cluster_ips_reach_every_backend() -> Result<()> {
    let cluster = Cluster::builder("cluster-ips").nodes(2).start()?;
    let backends = [("node-a", "web-a"), ("node-b", "web-b")];
    let pods = backends.map(|(node, name)| cluster.pod(node, name).label("app", "web").create());
    for pod in pods {
        cluster.wait_pod(&pod?)?;
    }
    let client = cluster.pod("node-a", "client").start()?;
    for to in frontends(&cluster, 2)? {
        for by in By::ALL {
            let names = ["web-a", "web-b"];
            let hooked = spread(&|program| client.command(program), to, by, &names).context("with hooks")?;
            let packets = spread(&|program| client.command_without_hooks(program), to, by, &names);
            for answer in hooked.iter().chain(&packets.context("per packet")?) {
                ensure!(answer.caller == client.address(to.is_ipv6()), "{by:?}: seen as {}", answer.caller);
            }
            spread(&|program| cluster.node("node-b").command(program), to, by, &names)
                .context("from the node")?;
        }
    }
    cluster.stop()
}

/// E13: a Pod that is its Service's only backend reaches itself, by hooks and per packet.
pub(crate) fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    let cluster = Cluster::builder("hairpin").nodes(1).start()?;
    let pod = cluster.pod("node-a", "lonely").label("app", "web").start()?;
    for to in frontends(&cluster, 1)? {
        for by in By::ALL {
            for _ in 0..3 {
                let hooked = ask(|program| pod.command(program), to, by, 1).context("with hooks")?;
                ensure!(hooked[0].server == "lonely", "{hooked:?}");
                let packets = ask(|program| pod.command_without_hooks(program), to, by, 1);
                ensure!(packets.context("per packet")?[0].server == "lonely");
            }
        }
    }
    cluster.stop()
}

/// S10, S20: a deleted backend gets no new connection, and a Service without backends refuses at the socket instead of
/// keeping its clients waiting.
pub(crate) fn backends_leave_and_come() -> Result<()> {
    let cluster = Cluster::builder("backends-leave").nodes(2).start()?;
    let first = cluster.pod("node-a", "first").label("app", "web").start()?;
    let second = cluster.pod("node-b", "second").label("app", "web").start()?;
    let client = cluster.pod("node-b", "client").start()?;
    let frontends = frontends(&cluster, 2)?;
    let here = |program: &str| client.command(program);
    for to in &frontends {
        spread(&here, *to, By::Http, &["first", "second"])?;
    }
    cluster.delete_pod(first.name())?;
    cluster.wait_service("web", 1)?;
    for to in &frontends {
        eventually::succeeds("only the second answers", || {
            let answers = ask(here, *to, By::Http, 20)?;
            ensure!(answers.iter().all(|answer| answer.server == "second"), "{:?}", tally(&answers));
            Ok(())
        })?;
    }
    cluster.delete_pod(second.name())?;
    cluster.wait_service("web", 0)?;
    for to in &frontends {
        eventually::succeeds("the connection is refused", || {
            let outcome = ask(here, *to, By::Http, 1);
            let refused =
                outcome.as_ref().is_err_and(|error| error.to_string().contains("Connection refused"));
            ensure!(refused, "{outcome:?}");
            Ok(())
        })?;
    }
    cluster.stop()
}
