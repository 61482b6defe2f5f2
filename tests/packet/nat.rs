//! E4, E6, E7, E13, E16: translation of sources, checksums, echoes and errors.

use anyhow::Result;
use quilla_abi::DropReason;
use quilla_abi::config::Config;
use quilla_abi::counter::path;
use quilla_tests::packet::{Fault, IcmpError, Packet, decode, tcp};

use crate::rig::{
    DEVICE_A, DEVICE_B, Family, Hook, OK, REDIRECT, Rig, SNAT_MAX, SNAT_MIN, Seen, TCP, UDP, UPLINK, Who,
    from_a, from_b, tell,
};

/// E6: echoes reach Pods, cross the masquerade with their identifier, and get no answer from a Service.
pub(crate) fn echo() -> Result<()> {
    tell("echo", |rig, family| {
        let (a, b, world) = (family.ip(Who::PodA), family.ip(Who::PodB), family.ip(Who::World));
        let request = Packet::echo_request(a, b, 99, 1).payload(b"ping");
        rig.run(Hook::FromPodA, &from_a(request.clone())).to_pod_b(&request.ttl(63));
        let reply = Packet::echo_reply(b, a, 99, 1).payload(b"ping");
        let seen = rig.run(Hook::FromPodB, &from_b(reply.clone()));
        assert!(!seen.slow());
        seen.to_pod_a(&reply.ttl(63));
        for service in [10, 99] {
            let request = from_a(Packet::echo_request(a, family.ip(Who::Service(service)), 1, 1));
            rig.run(Hook::FromPodA, &request).dropped(DropReason::NotAService);
        }
        let request = Packet::echo_request(a, world, 99, 1).payload(b"ping");
        let seen = rig.run(Hook::FromPodA, &from_a(request));
        let decoded = decode(seen.frame());
        let id: u16 = decoded.get("icmp.id").unwrap_or_else(|| panic!("{decoded}")).parse()?;
        assert!((SNAT_MIN..=SNAT_MAX).contains(&id), "{id}");
        let host = family.ip(Who::Host);
        let expected = from_a(Packet::echo_request(host, world, id, 1).payload(b"ping").ttl(63));
        seen.went(path::UPLINK, REDIRECT, UPLINK, &expected);
        let reply = Packet::echo_reply(world, host, id, 1).payload(b"ping");
        let expected = Packet::echo_reply(world, a, 99, 1).payload(b"ping").ttl(63);
        rig.run(Hook::FromUplink, &reply).to_pod_a(&expected);
        rig.run(Hook::FromUplink, &Packet::echo_reply(world, host, 77, 1)).passed();
        rig.run(Hook::FromUplink, &Packet::echo_request(world, host, id, 1)).passed();
        Ok(())
    })
}

/// E7: in IPv4 no checksum stays no checksum; a wrong one stays wrong.
pub(crate) fn udp_without_checksum() -> Result<()> {
    tell("sums", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(12), 53));
        let backend = family.at(Who::PodB, 5353);
        if family == Family::V4 {
            let sent = Packet::udp(client, frontend).payload(b"odd").fault(Fault::NoUdpChecksum);
            let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
            seen.to_pod_b(&sent.between(client, backend).ttl(63));
        }
        let wrong = Packet::udp(client, frontend).payload(b"odd").fault(Fault::TransportChecksum);
        let seen = rig.run(Hook::FromPodA, &from_a(wrong));
        let sum = decode(seen.frame()).get("udp.checksum").expect("a checksum").to_owned();
        assert!(sum.contains("wrong"), "{sum}");
        // Every payload has another sum; all must come out right.
        for value in 0..=255_u8 {
            let sent = Packet::udp(client, frontend).payload(&[value, value ^ 0x5a, value]);
            let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
            seen.to_pod_b(&sent.between(client, backend).ttl(63));
        }
        Ok(())
    })
}

/// E13: a Pod reaches itself through a Service; it sees the gateway and answers through us.
pub(crate) fn hairpin() -> Result<()> {
    tell("hairpin", |rig, family| {
        let client = family.at(Who::PodA, 40_000);
        let gateway = family.at(Who::Gateway, 40_000);
        let cases =
            [(TCP, family.at(Who::Service(13), 80), 8080), (UDP, family.at(Who::Service(14), 53), 5353)];
        for (proto, frontend, target) in cases {
            let packet = |from, to| match proto {
                TCP => Packet::tcp(from, to).flags(tcp::SYN),
                _ => Packet::udp(from, to).payload(b"question"),
            };
            let own = family.at(Who::PodA, target);
            let sent = packet(client, frontend);
            rig.run(Hook::FromPodA, &from_a(sent.clone())).to_pod_a(&sent.between(gateway, own).ttl(63));
            let answer = match proto {
                TCP => Packet::tcp(own, gateway).flags(tcp::SYN | tcp::ACK),
                _ => Packet::udp(own, gateway).payload(b"answer"),
            };
            let seen = rig.run(Hook::FromPodA, &from_a(answer.clone()));
            assert!(!seen.slow());
            seen.to_pod_a(&answer.between(frontend, client).ttl(63));
        }
        Ok(())
    })
}

pub(crate) fn masquerade() -> Result<()> {
    tell("masquerade", |rig, family| {
        let world = family.at(Who::World, 443);
        // A port of the range is kept, another one is replaced.
        for source in [SNAT_MIN + 7, 40_000] {
            let client = family.at(Who::PodA, source);
            let sent = Packet::tcp(client, world).flags(tcp::SYN);
            let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
            let port: u16 = decode(seen.frame()).get("tcp.sport").expect("a port").parse()?;
            assert!((SNAT_MIN..=SNAT_MAX).contains(&port), "{port}");
            assert_eq!(port == source, source != 40_000);
            let host = family.at(Who::Host, port);
            seen.went(path::UPLINK, REDIRECT, UPLINK, &from_a(sent.between(host, world).ttl(63)));
            let answer = Packet::tcp(world, host).flags(tcp::SYN | tcp::ACK);
            let seen = rig.run(Hook::FromUplink, &answer);
            assert!(!seen.slow());
            seen.to_pod_a(&answer.between(world, client).ttl(63));
            // Another Pod with the same port gets another one (E16).
            let other = from_b(Packet::tcp(family.at(Who::PodB, source), world).flags(tcp::SYN));
            let seen = rig.run(Hook::FromPodB, &other);
            let taken: u16 = decode(seen.frame()).get("tcp.sport").expect("a port").parse()?;
            assert_ne!(taken, port, "two clients never share a mapping");
        }
        let host = family.ip(Who::Host);
        let strangers = [
            Packet::tcp(world, family.at(Who::Host, 22)).flags(tcp::SYN),
            Packet::tcp(world, family.at(Who::Host, SNAT_MAX)).flags(tcp::SYN),
            Packet::tcp(world, family.at(Who::OtherNode, SNAT_MIN + 7)),
            Packet::protocol(world.ip(), host, 47).payload(b"tunnel"),
        ];
        for stranger in strangers {
            rig.run(Hook::FromUplink, &stranger).passed();
        }
        let unknown = from_a(Packet::protocol(family.ip(Who::PodA), world.ip(), 132).payload(b"sctp"));
        rig.run(Hook::FromPodA, &unknown).dropped(DropReason::Untranslatable);
        Ok(())
    })
}

/// A Pod's packet that the host's stack has routed is masqueraded on the uplink itself.
pub(crate) fn masquerade_behind_the_stack() -> Result<()> {
    tell("stack", |rig, family| {
        let (client, world) = (family.at(Who::PodA, SNAT_MIN + 9), family.at(Who::World, 443));
        let host = family.at(Who::Host, SNAT_MIN + 9);
        let sent = Packet::udp(client, world).ttl(63);
        for _ in 0..2 {
            let seen = rig.run(Hook::ToUplink(DEVICE_A), &sent);
            seen.went(path::UPLINK, OK, 0, &sent.clone().between(host, world));
        }
        let answer = Packet::udp(world, host);
        rig.run(Hook::FromUplink, &answer).to_pod_a(&answer.between(world, client).ttl(63));
        rig.run(Hook::ToUplink(0), &sent).passed();
        let own = Packet::udp(family.at(Who::Host, 5), world);
        rig.run(Hook::ToUplink(DEVICE_A), &own).passed();
        Ok(())
    })
}

/// E16, S38: with all ports in use only the new flow fails.
pub(crate) fn exhausted_ports() -> Result<()> {
    tell("ports", |rig, family| {
        let mut config = Rig::config();
        config.snat_port_max = SNAT_MIN + 3;
        rig.datapath.maps().config.set(0, &config)?;
        rig.bump(quilla_abi::epoch::GLOBAL)?;
        let world = family.at(Who::World, 443);
        let sent = |port| from_a(Packet::tcp(family.at(Who::PodA, port), world).flags(tcp::SYN));
        for port in 1000..1004 {
            let seen = rig.run(Hook::FromPodA, &sent(port));
            assert!(seen.reason.is_none(), "{seen:?}");
        }
        rig.run(Hook::FromPodA, &sent(1004)).dropped(DropReason::PortsExhausted);
        let seen = rig.run(Hook::FromPodA, &sent(1000));
        assert!(seen.reason.is_none(), "{seen:?}");
        Ok(())
    })
}

/// E6, E16: echoes of two Pods with one identifier keep apart; without a free one only the new flow fails.
pub(crate) fn identifiers_of_echoes() -> Result<()> {
    tell("identifiers", |rig, family| {
        let mut config = Rig::config();
        config.snat_port_max = SNAT_MIN + 1;
        rig.datapath.maps().config.set(0, &config)?;
        rig.bump(quilla_abi::epoch::GLOBAL)?;
        let (world, host) = (family.ip(Who::World), family.ip(Who::Host));
        let [a, b] = [Who::PodA, Who::PodB].map(|who| family.ip(who));
        let id = |seen: &Seen| -> u16 {
            decode(seen.frame()).get("icmp.id").expect("an identifier").parse().expect("a number")
        };
        let first = id(&rig.run(Hook::FromPodA, &from_a(Packet::echo_request(a, world, SNAT_MIN, 1))));
        let second = id(&rig.run(Hook::FromPodB, &from_b(Packet::echo_request(b, world, SNAT_MIN, 1))));
        assert_eq!((first, second), (SNAT_MIN, SNAT_MIN + 1), "kept where it is free");
        let third = from_b(Packet::echo_request(b, world, 7, 1));
        rig.run(Hook::FromPodB, &third).dropped(DropReason::PortsExhausted);
        let reply = |id| Packet::echo_reply(world, host, id, 1);
        let told = |pod| Packet::echo_reply(world, pod, SNAT_MIN, 1).ttl(63);
        rig.run(Hook::FromUplink, &reply(first)).to_pod_a(&told(a));
        rig.run(Hook::FromUplink, &reply(second)).to_pod_b(&told(b));
        // Towards somebody else both are free, and an identifier that was given up is, too.
        let other = family.ip(Who::OtherNode);
        assert!(rig.run(Hook::FromPodB, &from_b(Packet::echo_request(b, other, 7, 1))).reason.is_none());
        rig.pass(quilla_abi::flow::UDP_TIMEOUT_SECONDS + 1)?;
        assert!(rig.run(Hook::FromPodB, &third).reason.is_none());
        Ok(())
    })
}

/// What is said of a range outside concerns what begins from then on: whoever is connected keeps the name that the other
/// end knows, the node's or the Pod's.
pub(crate) fn settings_change_under_connections() -> Result<()> {
    tell("settings", |rig, family| {
        let world = |port| family.at(Who::World, port);
        let (lent, own) = (family.at(Who::PodA, SNAT_MIN + 3), family.at(Who::PodA, SNAT_MIN + 4));
        let host = family.at(Who::Host, lent.port());
        let masqueraded = |seen: &Seen, packet: &Packet| {
            seen.to_world(&from_a(packet.clone().between(host, packet.destination()).ttl(63)));
        };
        let opening = Packet::tcp(lent, world(443)).flags(tcp::SYN);
        masqueraded(&rig.run(Hook::FromPodA, &from_a(opening.clone())), &opening);
        rig.set_native(family.ip(Who::World), true)?;
        let more = Packet::tcp(lent, world(443)).payload(b"more");
        for _ in 0..2 {
            masqueraded(&rig.run(Hook::FromPodA, &from_a(more.clone())), &more);
        }
        let answer = Packet::tcp(world(443), host);
        rig.run(Hook::FromUplink, &answer).to_pod_a(&answer.between(world(443), lent).ttl(63));
        // One that begins now has the Pod's own name, as the stack forwards it, and keeps that.
        let opening = from_a(Packet::tcp(own, world(443)).flags(tcp::SYN));
        rig.run(Hook::FromPodA, &opening).to_stack(&opening);
        rig.run(Hook::ToUplink(DEVICE_A), &opening).passed();
        let answer = Packet::tcp(world(443), own).flags(tcp::SYN | tcp::ACK);
        rig.run(Hook::FromUplink, &answer).passed();
        rig.run(Hook::ToPodA, &answer).went(path::LOCAL_POD, OK, 0, &answer);
        rig.set_native(family.ip(Who::World), false)?;
        let more = from_a(Packet::tcp(own, world(443)).payload(b"more"));
        for _ in 0..2 {
            rig.run(Hook::FromPodA, &more).to_stack(&more);
            rig.run(Hook::ToUplink(DEVICE_A), &more).passed();
        }
        Ok(())
    })
}

/// Masquerading is switched off: who is connected keeps the node's name, at the Pod and behind the stack, and who begins
/// has the Pod's, also under a tuple that was another's before.
pub(crate) fn masquerade_switched_off() -> Result<()> {
    tell("off", |rig, family| {
        let world = family.at(Who::World, 443);
        let [near, behind, new] = [3, 4, 5].map(|offset| family.at(Who::PodA, SNAT_MIN + offset));
        let host = |pod: std::net::SocketAddr| family.at(Who::Host, pod.port());
        let syn = |pod| Packet::tcp(pod, world).flags(tcp::SYN);
        let more = |pod| Packet::tcp(pod, world).payload(b"more");
        rig.run(Hook::FromPodA, &from_a(syn(near)));
        let opening = syn(behind).ttl(63);
        let renamed = opening.clone().between(host(behind), world);
        rig.run(Hook::ToUplink(DEVICE_A), &opening).went(path::UPLINK, OK, 0, &renamed);
        rig.datapath.maps().config.set(0, &Config { flags: 0, ..Rig::config() })?;
        rig.bump(quilla_abi::epoch::GLOBAL)?;
        for native in [false, true, false] {
            rig.set_native(family.ip(Who::World), native)?;
            for _ in 0..2 {
                let seen = rig.run(Hook::FromPodA, &from_a(more(near)));
                seen.to_world(&from_a(more(near).between(host(near), world).ttl(63)));
                let seen = rig.run(Hook::ToUplink(DEVICE_A), &more(behind).ttl(63));
                seen.went(path::UPLINK, OK, 0, &more(behind).between(host(behind), world).ttl(63));
            }
            for pod in [near, behind] {
                let answer = Packet::tcp(world, host(pod));
                rig.run(Hook::FromUplink, &answer).to_pod_a(&answer.between(world, pod).ttl(63));
            }
        }
        let resets = |pod| Packet::tcp(pod, world).flags(tcp::RST);
        rig.run(Hook::FromPodA, &from_a(resets(near)));
        rig.run(Hook::ToUplink(DEVICE_A), &resets(behind).ttl(63));
        for pod in [near, new] {
            for packet in [syn(pod), more(pod)].map(from_a) {
                rig.run(Hook::FromPodA, &packet).to_stack(&packet);
                rig.run(Hook::ToUplink(DEVICE_A), &packet).passed();
            }
        }
        for packet in [syn(behind), more(behind)] {
            rig.run(Hook::ToUplink(DEVICE_A), &packet).passed();
        }
        Ok(())
    })
}

/// E11: masquerading is switched off, and the tuple of a connection that is over goes to one under the Pod's own address:
/// what comes late for the old one does not reach it, and the old one's name is free, or another Pod's that has it by now.
pub(crate) fn a_name_is_given_back() -> Result<()> {
    tell("given-back", |rig, family| {
        let world = family.at(Who::World, 443);
        let [pod, other] = [Who::PodA, Who::PodB].map(|who| family.at(who, SNAT_MIN + 4));
        let host = family.at(Who::Host, pod.port());
        let renamed = |packet: &Packet| packet.clone().between(host, packet.destination());
        let opens = |rig: &mut Rig, device, client| {
            let opening = Packet::tcp(client, world).flags(tcp::SYN);
            rig.run(Hook::ToUplink(device), &opening).went(path::UPLINK, OK, 0, &renamed(&opening));
        };
        let late = Packet::tcp(world, host).payload(b"late");
        for taken in [false, true] {
            opens(rig, DEVICE_A, pod);
            let reset = Packet::tcp(pod, world).flags(tcp::RST);
            rig.run(Hook::ToUplink(DEVICE_A), &reset).went(path::UPLINK, OK, 0, &renamed(&reset));
            if taken {
                rig.forget_answers()?;
                opens(rig, DEVICE_B, other);
            }
            rig.datapath.maps().config.set(0, &Config { flags: 0, ..Rig::config() })?;
            rig.bump(quilla_abi::epoch::GLOBAL)?;
            rig.run(Hook::ToUplink(DEVICE_A), &Packet::tcp(pod, world).flags(tcp::SYN)).passed();
            let seen = rig.run(Hook::FromUplink, &late);
            if taken {
                seen.to_pod_b(&late.clone().between(world, other).ttl(63));
            } else {
                seen.passed();
            }
            rig.datapath.maps().config.set(0, &Rig::config())?;
            rig.bump(quilla_abi::epoch::GLOBAL)?;
            if !taken {
                opens(rig, DEVICE_B, other);
                rig.clear()?;
            }
        }
        Ok(())
    })
}

/// A connection that came in under the Pod's own address, on a network that knows the way, is answered under it.
pub(crate) fn begun_in_the_world() -> Result<()> {
    tell("begun", |rig, family| {
        let (pod, world) = (family.at(Who::PodA, 80), family.at(Who::World, 4000));
        let opening = Packet::tcp(world, pod).flags(tcp::SYN);
        rig.run(Hook::FromUplink, &opening).passed();
        rig.run(Hook::ToPodA, &opening).went(path::LOCAL_POD, OK, 0, &opening);
        let answer = from_a(Packet::tcp(pod, world).flags(tcp::SYN | tcp::ACK));
        rig.run(Hook::FromPodA, &answer).to_stack(&answer);
        rig.run(Hook::ToUplink(DEVICE_A), &answer).passed();
        Ok(())
    })
}

/// The node's address or its range of ports changed: nothing leaves under a name that answers no longer find.
pub(crate) fn masquerade_under_a_new_name() -> Result<()> {
    tell("renamed", |rig, family| {
        let (client, world) = (family.at(Who::PodA, SNAT_MIN + 3), family.at(Who::World, 443));
        let stream = from_a(Packet::tcp(client, world).flags(tcp::SYN));
        let datagram = Packet::udp(client, world);
        let mut config = Rig::config();
        config.host_ipv4 = [192, 168, 77, 5];
        config.host_ipv6 = "fd00:77::5".parse::<std::net::Ipv6Addr>()?.octets();
        let renamed = match family {
            Family::V4 => config.host_ipv4.into(),
            Family::V6 => std::net::IpAddr::from(config.host_ipv6),
        };
        rig.run(Hook::FromPodA, &stream);
        rig.run(Hook::FromPodA, &from_a(datagram.clone()));
        rig.datapath.maps().config.set(0, &config)?;
        rig.bump(quilla_abi::epoch::GLOBAL)?;
        let ack = from_a(Packet::tcp(client, world));
        rig.run(Hook::FromPodA, &ack).dropped(DropReason::NoFlow);
        let host = std::net::SocketAddr::new(renamed, client.port());
        let seen = rig.run(Hook::FromPodA, &from_a(datagram.clone()));
        let expected = from_a(datagram.clone().between(host, world).ttl(63));
        seen.went(path::UPLINK, REDIRECT, UPLINK, &expected);
        let answer = Packet::udp(world, host);
        rig.run(Hook::FromUplink, &answer).to_pod_a(&answer.between(world, client).ttl(63));
        config.snat_port_min = SNAT_MIN + 500;
        rig.datapath.maps().config.set(0, &config)?;
        rig.bump(quilla_abi::epoch::GLOBAL)?;
        let seen = rig.run(Hook::FromPodA, &from_a(datagram));
        let port: u16 = decode(seen.frame()).get("udp.sport").expect("a port").parse()?;
        assert!((SNAT_MIN + 500..=SNAT_MAX).contains(&port), "{port}");
        Ok(())
    })
}

/// E4: a flow that must be computed anew still knows the names, as long as its backend is the same. Computing it anew
/// does so for both directions.
pub(crate) fn errors_about_stale_flows() -> Result<()> {
    tell("stale", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(12), 53));
        let backend = family.at(Who::PodB, 5353);
        let sent = Packet::udp(client, frontend).payload(b"question");
        let answer = from_b(Packet::udp(backend, client).payload(b"answer"));
        rig.run(Hook::FromPodA, &from_a(sent.clone()));
        rig.bump(quilla_abi::epoch::GLOBAL)?;
        let (inner, original) = (sent.clone().between(client, backend).ttl(63), sent.clone().ttl(63));
        let error = IcmpError::PortUnreachable;
        let message = from_b(Packet::icmp_error(backend.ip(), client.ip(), error, &inner));
        let expected = Packet::icmp_error(frontend.ip(), client.ip(), error, &original).ttl(63);
        rig.run(Hook::FromPodB, &message).to_pod_a(&expected);
        assert!(rig.run(Hook::FromPodA, &from_a(sent.clone())).slow());
        assert!(!rig.run(Hook::FromPodB, &answer).slow(), "the answers' entry is as fresh");
        // Of another generation of the backend the names say nothing.
        let id = rig.backend(backend, UDP)?;
        let first = match family {
            Family::V4 => quilla_abi::epoch::BACKENDS_V4,
            Family::V6 => quilla_abi::epoch::BACKENDS_V6,
        };
        rig.bump(first + id)?;
        rig.run(Hook::FromPodB, &message)
            .to_pod_a(&Packet::icmp_error(backend.ip(), client.ip(), error, &inner).ttl(63));
        Ok(())
    })
}

/// The datagram with another payload, for which the sum comes to 0. Its header says 0xffff (RFC 768): 0 is no sum.
fn with_a_sum_of_zero(datagram: &Packet) -> Packet {
    let header_sum = |packet: Packet| -> [u8; 2] {
        let frame = packet.build();
        frame[frame.len() - 4..frame.len() - 2].try_into().expect("two bytes")
    };
    let chosen = datagram.clone().payload(&header_sum(datagram.clone().payload(&[0, 0])));
    assert_eq!(header_sum(chosen.clone()), [0xff, 0xff]);
    chosen
}

/// E4: whoever sent the packet hears about it under the names it used.
pub(crate) fn errors_about_translated_flows() -> Result<()> {
    tell("errors", |rig, family| {
        rig.summed = true;
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(12), 53));
        let backend = family.at(Who::PodB, 5353);
        let question = Packet::udp(client, frontend).payload(b"question");
        for sent in [question.clone(), with_a_sum_of_zero(&question)] {
            rig.run(Hook::FromPodA, &from_a(sent.clone()));
            // As the backend received it, and as the client sent it.
            let (inner, original) = (sent.clone().between(client, backend).ttl(63), sent.ttl(63));
            for error in [IcmpError::PortUnreachable, IcmpError::TooBig { mtu: 1400 }] {
                let message = from_b(Packet::icmp_error(backend.ip(), client.ip(), error, &inner));
                let expected = Packet::icmp_error(frontend.ip(), client.ip(), error, &original).ttl(63);
                rig.run(Hook::FromPodB, &message).to_pod_a(&expected);
            }
        }
        // Through the masquerade, from a router on the way.
        let (client, world) = (family.at(Who::PodA, SNAT_MIN + 5), family.at(Who::World, 443));
        let host = family.at(Who::Host, SNAT_MIN + 5);
        let sent = Packet::tcp(client, world).flags(tcp::SYN);
        rig.run(Hook::FromPodA, &from_a(sent.clone()));
        let router = if family == Family::V4 { "198.51.100.1" } else { "2001:db8:1::1" }.parse()?;
        let message = Packet::icmp_error(
            router,
            host.ip(),
            IcmpError::TimeExceeded,
            &sent.clone().between(host, world),
        );
        let expected = Packet::icmp_error(router, client.ip(), IcmpError::TimeExceeded, &sent).ttl(63);
        rig.run(Hook::FromUplink, &message).to_pod_a(&expected);
        let stranger = Packet::icmp_error(
            router,
            host.ip(),
            IcmpError::PortUnreachable,
            &Packet::udp(family.at(Who::Host, 5), world),
        );
        rig.run(Hook::FromUplink, &stranger).passed();
        // About nothing that we know: by its address inside the cluster, never out of it.
        let (a, b) = (family.at(Who::PodA, 1), family.at(Who::PodB, 2));
        let about = Packet::udp(a, b);
        let message = Packet::icmp_error(b.ip(), a.ip(), IcmpError::PortUnreachable, &about);
        rig.run(Hook::FromPodB, &from_b(message.clone())).to_pod_a(&message.ttl(63));
        let about = Packet::udp(world, b);
        let message = from_b(Packet::icmp_error(b.ip(), world.ip(), IcmpError::PortUnreachable, &about));
        rig.run(Hook::FromPodB, &message).dropped(DropReason::NoFlow);
        // E19: nor does an error speak for another.
        let forged =
            Packet::icmp_error(world.ip(), a.ip(), IcmpError::PortUnreachable, &Packet::udp(a, world));
        rig.run(Hook::FromPodB, &from_b(forged)).dropped(DropReason::SpoofedAddress);
        Ok(())
    })
}
