//! A token bucket filter (`tc-tbf`) as the queue of a link: what leaves by the link waits until its rate allows it.

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::{Existing, Netlink, NetlinkError};

/// Attributes of `sch_tbf` (`linux/pkt_sched.h`).
const PARAMETERS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;

/// Where `struct tc_tbf_qopt` has its rate, in bytes per second.
const RATE: std::ops::Range<usize> = 8..12;

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

    /// Takes the filter away, if the link is there and has it.
    pub(crate) fn unshape(&mut self, name: &str) -> Result<(), NetlinkError> {
        let index = match self.index(name) {
            Err(error) if error.is_missing() => return Ok(()),
            index => index?,
        };
        if self.shaped(index)?.is_none() {
            return Ok(());
        }
        let mut message = TcMessage::default();
        message.header.index = index.cast_signed();
        message.header.parent = TcHandle::ROOT;
        let request = RouteNetlinkMessage::DelQueueDiscipline(message);
        self.change("lift the limit of link", name, request, 0)
    }

    /// What the filter of the link lets pass, in bytes per second; `None` without one.
    pub(crate) fn shaped(&mut self, index: u32) -> Result<Option<u64>, NetlinkError> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let answers = self.dump("list queues", request)?;
        let root = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message)
                if message.header.index == index.cast_signed() && message.header.parent == TcHandle::ROOT =>
            {
                Some(message.attributes)
            }
            _ => None,
        });
        Ok(root.and_then(|attributes| rate(&attributes)))
    }
}

/// The rate of a token bucket filter; faster ones than 32 bits can say have an attribute of their own.
fn rate(attributes: &[TcAttribute]) -> Option<u64> {
    let is_filter = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "tbf");
    attributes.iter().find(|attribute| is_filter(attribute))?;
    let options = attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.first(),
        _ => None,
    })?;
    let mut bytes = vec![0; options.value_len()];
    options.emit_value(&mut bytes);
    let value = |wanted| super::attributes(&bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let wide = value(RATE64).and_then(|rate| Some(u64::from_ne_bytes(rate.try_into().ok()?)));
    let narrow = || Some(u32::from_ne_bytes(value(PARAMETERS)?.get(RATE)?.try_into().ok()?).into());
    wide.or_else(narrow)
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
