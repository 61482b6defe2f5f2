//! A token bucket filter (`tc-tbf`) as the queue of a link: what leaves by the link waits until its rate allows it.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::{Existing, Netlink, NetlinkError};

/// Attributes of `sch_tbf` (`linux/pkt_sched.h`).
const PARAMETERS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;

/// `TC_LINKLAYER_ETHERNET`: a frame counts as many bytes as it has.
const ETHERNET: u8 = 1;

/// The longest time that a packet waits: what does not get out in 25 ms is dropped.
const WAITS_PER_SECOND: u64 = 40;

impl Netlink {
    /// Makes the filter the link's queue, in place of another.
    pub(crate) fn shape(
        &mut self,
        index: u32,
        bytes_per_second: u64,
        burst_bytes: u32,
    ) -> Result<(), NetlinkError> {
        let options = [
            (PARAMETERS, parameters(bytes_per_second, burst_bytes)),
            (RATE64, bytes_per_second.to_ne_bytes().to_vec()),
            (BURST, burst_bytes.to_ne_bytes().to_vec()),
        ];
        let options = options.map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value)));
        let mut message = TcMessage::default();
        // Indices are positive numbers of 31 bits.
        message.header.index = index.cast_signed();
        message.header.parent = TcHandle::ROOT;
        message
            .attributes
            .extend([TcAttribute::Kind("tbf".to_owned()), TcAttribute::Options(options.to_vec())]);
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.change("limit the rate of link", index, request, Existing::Replace.flags())
    }
}

/// `struct tc_tbf_qopt`: rate and peak rate (`struct tc_ratespec`), then limit, buffer and MTU.
fn parameters(bytes_per_second: u64, burst_bytes: u32) -> Vec<u8> {
    let saturated = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let limit = saturated(bytes_per_second / WAITS_PER_SECOND + u64::from(burst_bytes));
    let mut bytes = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    bytes.extend(saturated(bytes_per_second).to_ne_bytes());
    bytes.extend([0; 12]);
    bytes.extend(limit.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}
