//! S46: a connection is cut by the end of its backend, and by nothing else that happens to a Service.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use quilla_abi::service::{Service, ServiceKey, scope};
use quilla_abi::{Be16, epoch};
use quilla_tests::packet::{Packet, tcp};

use crate::rig::{Family, Hook, Rig, TCP, UDP, Who, from_a, from_b, tell};

/// The address of the Service, by which a Pod and a client outside have one connection each.
const VIP: Who = Who::Vip(1);

/// Something that happens to a Service.
type Change = fn(&mut Rig, Family) -> Result<()>;

/// S46: connections of a Pod and of a client outside live through all that happens to their Service and to others.
pub(crate) fn connections() -> Result<()> {
    tell("unconcerned", |rig, family| {
        let backend = family.at(Who::PodB, 8080);
        serve(rig, family, Service::default(), &[backend])?;
        for flags in [tcp::SYN, tcp::ACK] {
            lives(rig, family, flags, "first");
        }
        let changes: [(&str, Change); 7] = [
            ("nothing that anybody could name", |_, _| Ok(())),
            ("another endpoint joins", |rig, family| {
                let both = [family.at(Who::PodB, 8080), family.at(Who::Remote, 8080)];
                serve(rig, family, Service::default(), &both)
            }),
            ("clients come back to their endpoints", |rig, family| {
                let row = Service { affinity_seconds: 100, ..Service::default() };
                serve(rig, family, row, &[family.at(Who::PodB, 8080)])
            }),
            ("its endpoint gets no new connections", |rig, family| {
                serve(rig, family, Service::default(), &[family.at(Who::Remote, 8080)])
            }),
            ("it has no endpoints for new connections", |rig, family| {
                serve(rig, family, Service::default(), &[])
            }),
            ("an endpoint of others ends", |rig, family| {
                for (backend, proto) in
                    [(family.at(Who::PodB, 5353), UDP), (family.at(Who::Remote, 8080), TCP)]
                {
                    let first = if family == Family::V4 { epoch::BACKENDS_V4 } else { epoch::BACKENDS_V6 };
                    let id = rig.backend(backend, proto)?;
                    rig.bump(first + id)?;
                }
                Ok(())
            }),
            ("the Service is deleted", remove),
        ];
        for (what, change) in changes {
            change(rig, family)?;
            // Both as a cached connection and as one that is looked up again.
            lives(rig, family, tcp::ACK, what);
            rig.bump(epoch::GLOBAL)?;
            lives(rig, family, tcp::ACK, what);
        }
        Ok(())
    })
}

fn serve(rig: &mut Rig, family: Family, row: Service, backends: &[SocketAddr]) -> Result<()> {
    for scope in [scope::INTERNAL, scope::EXTERNAL] {
        rig.serve((family.at(VIP, 80), TCP), scope, Service { id: 100, ..row }, backends)?;
        rig.mark(family.ip(VIP), scope)?;
    }
    Ok(())
}

fn remove(rig: &mut Rig, family: Family) -> Result<()> {
    let maps = rig.datapath.maps();
    for scope in [scope::INTERNAL, scope::EXTERNAL] {
        for (port, proto) in [(80, TCP), (0, 0)] {
            let port = Be16::new(port);
            let removed = match family.ip(VIP) {
                IpAddr::V4(addr) => {
                    maps.services_v4.remove(&ServiceKey { addr: addr.octets(), port, proto, scope })?
                }
                IpAddr::V6(addr) => {
                    maps.services_v6.remove(&ServiceKey { addr: addr.octets(), port, proto, scope })?
                }
            };
            assert!(removed, "no such row");
        }
    }
    Ok(())
}

/// A packet of each direction of both connections arrives, translated as ever.
#[track_caller]
fn lives(rig: &mut Rig, family: Family, flags: u8, after: &str) {
    let (vip, backend) = (family.at(VIP, 80), family.at(Who::PodB, 8080));
    let (pod, outside) = (family.at(Who::PodA, 40_000), family.at(Who::World, 40_001));
    let answer = if flags == tcp::SYN { tcp::SYN | tcp::ACK } else { flags };
    for client in [pod, outside] {
        let sent = Packet::tcp(client, vip).flags(flags);
        let seen = if client == pod {
            rig.run(Hook::FromPodA, &from_a(sent.clone()))
        } else {
            rig.run(Hook::FromUplink, &sent)
        };
        assert_eq!(seen.reason, None, "{after}, from {client}");
        seen.to_pod_b(&sent.between(client, backend).ttl(63));
        let sent = Packet::tcp(backend, client).flags(answer);
        let seen = rig.run(Hook::FromPodB, &from_b(sent.clone()));
        assert_eq!(seen.reason, None, "{after}, to {client}");
        let expected = sent.between(vip, client).ttl(63);
        if client == pod { seen.to_pod_a(&expected) } else { seen.to_world(&from_b(expected)) }
    }
}
