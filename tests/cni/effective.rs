//! CNI-16: what a Pod sends to a Service right after ADD is served. With the whole agent, on a node of a cluster.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::site::{self, Site};

/// The apiserver's Service.
const SERVICE: &str = "10.96.0.1:443";
const PODS: usize = 10;

/// The first packet of a Pod goes to a ClusterIP, and none is dropped.
pub(crate) fn first_packet_reaches_a_service() -> Result<()> {
    let site = Site::start("effective")?;
    let service: SocketAddr = SERVICE.parse().context("address")?;
    let dropped = dropped(&site)?;
    for index in 0..PODS {
        let pod = site::pod(&format!("effective-{index}"))?;
        site.add(&pod)?;
        let connected = pod.netns.run(|| TcpStream::connect(service))?;
        connected.with_context(|| format!("connect to {service}"))?;
        // A first packet that was lost would have been sent again, and the connection made all the same.
        let after = self::dropped(&site)?;
        ensure!(after == dropped, "dropped before: {dropped:?}, now: {after:?}");
        site.del(&pod)?;
    }
    site.cluster.stop()
}

/// Drops of packets of Pods, by reason. Those of other devices come and go.
fn dropped(site: &Site) -> Result<Vec<Value>> {
    let text = site.node().quilla(&["-o", "json", "drops"])?;
    let rows: Vec<Value> = serde_json::from_str(&text).context("parse drops")?;
    let ours = |row: &Value| row["verdict"] == "drop" && row["reason"] != "unknown_interface";
    Ok(rows.into_iter().filter(ours).collect())
}
