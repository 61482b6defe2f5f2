//! The recorder proves itself: a packet for one Pod is put into another one.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use aya::Pod as Plain;
use aya::maps::{HashMap, Map, MapData};
use quilla_abi::endpoint::Endpoint;
use quilla_abi::map as name;
use quilla_tests::ask::{By, ask};
use quilla_tests::eventually;
use quilla_tests::node::Node;

use crate::overlay::start;
use crate::traffic::Traffic;

const PORT: u16 = 8080;

/// E20: the addresses of one Pod lead into another one, in whose kernel packets end. No socket sees them, and nothing is wrong
/// but what gets lost; the recorder says what it was.
pub(crate) fn a_planted_misdelivery_is_seen() -> Result<()> {
    let cluster = start("planted", 1, &["--audit-interval", "3600"])?;
    let [client, right, wrong] = ["client", "right", "wrong"].map(|name| cluster.pod("node-a", name).start());
    let (client, right, wrong) = (client?, right?, wrong?);
    let traffic = Traffic::start();
    [&client, &right, &wrong].into_iter().try_for_each(|pod| traffic.join(pod))?;
    traffic.flows()?;
    traffic.check()?;

    for v6 in [false, true] {
        let node = cluster.node("node-a");
        match [right.address(v6), wrong.address(v6)] {
            [IpAddr::V4(to), IpAddr::V4(into)] => {
                lead(node, name::ENDPOINTS_V4, to.octets(), into.octets())?;
            }
            [IpAddr::V6(to), IpAddr::V6(into)] => {
                lead(node, name::ENDPOINTS_V6, to.octets(), into.octets())?;
            }
            addresses => bail!("two families: {addresses:?}"),
        }
        // What has begun goes where it went.
        let to = SocketAddr::new(right.address(v6), PORT);
        let answer = ask(|program| client.command(program), to, By::Udp, 1);
        ensure!(answer.is_err(), "{answer:?}");
        let said = format!("wrong got a packet from {} to {}", client.address(v6), to.ip());
        eventually::succeeds("the recorder tells", || {
            let seen = traffic.check().err().context("nothing was seen")?;
            ensure!(format!("{seen:#}").contains(&said), "{seen:#}");
            Ok(())
        })?;
    }
    ensure!(traffic.finish().is_err(), "forgotten at the end");
    cluster.stop()
}

/// Has the address of a Pod lead to where another one is.
fn lead<A: Plain>(node: &Node, map: &str, address: A, to: A) -> Result<()> {
    let path = node.bpffs().join("quilla/maps").join(map);
    let data = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
    let mut rows = HashMap::<_, A, Endpoint>::try_from(Map::HashMap(data))?;
    let row = rows.get(&to, 0).context("the row")?;
    rows.insert(address, row, 0).context("write the row")
}
