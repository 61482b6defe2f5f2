//! E1, E2, E3: the parser on frames that are cut, that lie, and that are noise.

use proptest::prelude::*;
use quilla_abi::DropReason;

use super::{Headers, Message, Part, parse};
use crate::frame::Frame;
use crate::protocol::ip;
use crate::{Family, V4, V6};

fn ethernet(ethertype: u16) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// Options are whole words.
fn v4(proto: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut frame = ethernet(V4::ETHERTYPE);
    frame.push(0x40 | u8::try_from(header / 4).expect("at most 60 bytes"));
    frame.push(0);
    frame.extend(u16::try_from(header + payload.len()).expect("short").to_be_bytes());
    frame.extend([0x12, 0x34]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend(options);
    frame.extend(payload);
    frame
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(V6::ETHERTYPE);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(payload.len()).expect("short").to_be_bytes());
    frame.extend([next, 64]);
    frame.extend([0xfd; 16]);
    frame.extend([0xfe; 16]);
    frame.extend(payload);
    frame
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut header = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags];
    header.extend([0; 6]);
    header
}

fn udp(length: u16) -> Vec<u8> {
    let mut header = vec![0x9c, 0x40, 0, 53];
    header.extend(length.to_be_bytes());
    header.extend([0, 0]);
    header
}

fn read<F: Family>(frame: &[u8]) -> Result<Headers<F::Addr>, DropReason> {
    let mut headers = Headers::default();
    parse::<F, [u8]>(frame, &mut headers).map(|()| headers)
}

fn ports<A>(headers: &Headers<A>) -> (u16, u16) {
    (headers.key.sport.get(), headers.key.dport.get())
}

#[test]
fn plain_packets() {
    let headers = read::<V4>(&v4(ip::TCP, 0x4000, &[], &tcp(2))).expect("a good packet");
    assert_eq!((ports(&headers), headers.tcp, headers.length), ((40_000, 80), 2, 40));
    assert_eq!((headers.key.src, headers.key.dst), ([10, 0, 0, 1], [10, 0, 0, 2]));
    let headers = read::<V6>(&v6(ip::UDP, &udp(8))).expect("a good packet");
    assert_eq!((ports(&headers), headers.part, headers.length), ((40_000, 53), Part::Whole, 48));
    let headers = read::<V6>(&v6(ip::ICMPV6, &[128, 0, 0, 0, 0, 7, 0, 1])).expect("a good packet");
    assert_eq!((ports(&headers), headers.message), ((7, 0), Message::EchoRequest));
    let headers = read::<V4>(&v4(ip::ICMP, 0, &[], &[0, 0, 0, 0, 0, 7, 0, 1])).expect("a good packet");
    assert_eq!((ports(&headers), headers.message), ((0, 7), Message::EchoReply));
}

#[test]
fn every_prefix_of_a_packet_is_truncated() {
    let frames = [v4(ip::TCP, 0, &[1, 1, 1, 0], &tcp(2)), v4(ip::UDP, 0, &[], &udp(8))];
    for frame in frames {
        for length in 0..frame.len() {
            assert_eq!(read::<V4>(&frame[..length]), Err(DropReason::Truncated), "{length} of {frame:?}");
        }
    }
    let frame = v6(ip::TCP, &tcp(2));
    for length in 0..frame.len() {
        assert_eq!(read::<V6>(&frame[..length]), Err(DropReason::Truncated), "{length}");
    }
}

#[test]
fn lengths_are_checked() {
    let lie = |at: usize, value: u8, frame: &[u8]| {
        let mut frame = frame.to_vec();
        frame[at] = value;
        read::<V4>(&frame).map(|headers| headers.length)
    };
    let good = v4(ip::TCP, 0, &[], &tcp(2));
    for words in 0..5 {
        assert_eq!(lie(14, 0x40 | words, &good), Err(DropReason::BadIpHeader), "header of {words} words");
    }
    assert_eq!(lie(14, 0x65, &good), Err(DropReason::BadIpHeader), "version 6");
    assert_eq!(lie(17, 19, &good), Err(DropReason::BadIpHeader), "shorter than its header");
    assert_eq!(lie(17, 41, &good), Err(DropReason::Truncated), "longer than the frame");
    assert_eq!(lie(46, 0x40, &good), Err(DropReason::BadTransportHeader), "data offset 4");
    assert_eq!(lie(46, 0x60, &good), Err(DropReason::BadTransportHeader), "data offset 6");
    for length in [0, 7, 9] {
        let frame = v4(ip::UDP, 0, &[], &udp(length));
        assert_eq!(read::<V4>(&frame), Err(DropReason::BadTransportHeader), "length {length}");
    }
}

#[test]
fn options_are_walked() {
    let with = |options: &[u8]| read::<V4>(&v4(ip::TCP, 0, options, &tcp(2))).map(|headers| ports(&headers));
    assert_eq!(with(&[1, 7, 3, 4]), Ok((40_000, 80)));
    assert_eq!(with(&[0, 131, 3, 4]), Ok((40_000, 80)), "behind the end of the list is padding");
    assert_eq!(with(&[1, 131, 3, 4]), Err(DropReason::SourceRoute));
    assert_eq!(with(&[137, 3, 4, 0]), Err(DropReason::SourceRoute));
    assert_eq!(with(&[7, 0, 0, 0]), Err(DropReason::BadIpHeader), "no progress");
    assert_eq!(with(&[7, 5, 0, 0]), Err(DropReason::BadIpHeader), "past the end");
    assert_eq!(with(&[1, 1, 1, 7]), Err(DropReason::BadIpHeader), "no length");
    assert_eq!(with(&[1; 12]), Err(DropReason::BadIpHeader), "more than anybody sends");
}

#[test]
fn extension_chains_end() {
    let chain = |headers: usize| {
        let mut payload = Vec::new();
        for left in (0..headers).rev() {
            payload.extend([if left == 0 { ip::TCP } else { ip::DESTINATION }, 0, 1, 4, 0, 0, 0, 0]);
        }
        payload.extend(tcp(2));
        read::<V6>(&v6(ip::DESTINATION, &payload)).map(|headers| ports(&headers))
    };
    assert_eq!(chain(1), Ok((40_000, 80)));
    assert_eq!(chain(8), Ok((40_000, 80)));
    assert_eq!(chain(9), Err(DropReason::ExtensionHeaders));
}

#[test]
fn fragments_have_ports_in_the_first_only() {
    let first = read::<V4>(&v4(ip::UDP, 0x2000, &[], &udp(100))).expect("a first fragment");
    assert_eq!((first.part, ports(&first), first.id), (Part::First, (40_000, 53), 0x1234));
    let later = read::<V4>(&v4(ip::UDP, 0x0003, &[], &[0; 20])).expect("a later fragment");
    assert_eq!((later.part, ports(&later), later.position), (Part::Later, (0, 0), 24));
    let tiny = v4(ip::TCP, 0x2000, &[], &tcp(2)[..16]);
    assert_eq!(read::<V4>(&tiny), Err(DropReason::Fragment));
    for position in 1..3 {
        let overlap = v4(ip::TCP, position, &[], &[0; 24]);
        assert_eq!(read::<V4>(&overlap), Err(DropReason::Fragment), "at {position} eights");
    }
    let mut payload = vec![ip::UDP, 0, 0, 1, 0, 0, 0, 9];
    payload.extend(udp(100));
    let first = read::<V6>(&v6(ip::FRAGMENT, &payload)).expect("a first fragment");
    assert_eq!((first.part, ports(&first), first.id), (Part::First, (40_000, 53), 9));
    payload[0] = ip::DESTINATION;
    assert_eq!(read::<V6>(&v6(ip::FRAGMENT, &payload)), Err(DropReason::ExtensionHeaders));
}

proptest! {
    /// Noise never panics, and what is accepted lies inside the frame.
    #[test]
    fn noise(bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0_u8..2) {
        let mut bytes = bytes;
        if let Some(first) = bytes.get_mut(14) {
            *first = (if version == 0 { 0x40 } else { 0x60 }) | *first & 15;
        }
        let inside = |end: u32, transport: u32| end <= Frame::len(bytes.as_slice()) && transport <= end;
        if let Ok(headers) = read::<V4>(&bytes) {
            prop_assert!(inside(headers.end, headers.transport));
        }
        if let Ok(headers) = read::<V6>(&bytes) {
            prop_assert!(inside(headers.end, headers.transport));
        }
    }
}
