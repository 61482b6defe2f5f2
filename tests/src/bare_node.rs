//! The namespace of a node without its agent: the devices that programs see when they are run one packet at a time.
//!
//! Packet stories, the specification and the benchmark run programs in it. Nothing in it answers; the far ends of the
//! devices only keep them up.

use anyhow::Result;

use crate::netns::Netns;

/// Makes it, with devices of these indices, for whoever runs inside. The uplink has 192.168.77.1/24 and `fd00:77::1/64`
/// and leads to the world in both families.
pub fn create(name: &str, pods: &[u32], uplink: u32, overlay: u32) -> Result<Netns> {
    let netns = Netns::create(name)?;
    for (index, peer) in pods.iter().chain(&[uplink, overlay]).zip(101..) {
        netns.ip(&format!(
            "link add d{index} index {index} type veth peer name e{index} index {peer}\n\
             link set d{index} up\nlink set e{index} up"
        ))?;
    }
    netns.ip(&format!(
        "addr add 192.168.77.1/24 dev d{uplink}\naddr add fd00:77::1/64 dev d{uplink} nodad\n\
         route add default via 192.168.77.254\nroute add ::/0 via fd00:77::fe"
    ))?;
    for family in ["ipv4", "ipv6"] {
        netns.sysctl(&format!("net.{family}.conf.all.forwarding"), "1")?;
    }
    Ok(netns)
}
