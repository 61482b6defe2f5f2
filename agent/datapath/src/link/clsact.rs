//! Filters of the clsact queueing discipline, which belong to a device and go with it.
//!
//! A filter has a fixed priority and handle, so that attaching again finds and replaces it. Invariant: what is in that
//! place and does not run a program of ours is another's, and stays.

use std::error::Error;
use std::{io, iter, mem};

use aya::programs::links::Link;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{ProgramError, SchedClassifier};

use super::{Direction, Pair, ifindex};
use crate::datapath::Datapath;
use crate::error::{DatapathError, Result};
use crate::netlink::{Filter, Netlink};

/// Of devices that are ours alone: before any other filter.
pub(super) const FIRST: u16 = 1;
/// Of devices that we share: behind the filters of others, which usually have the small numbers.
pub(super) const LATE: u16 = 0x514c;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Who has the place of a filter of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// A filter with the program of that name, of whichever agent.
    Us,
    /// The same, though a filter of another of the same priority runs first.
    UsBehind,
    Another,
}

impl Datapath {
    /// Attaches both programs of a pair.
    pub(super) fn attach_clsact(&self, pair: Pair, device: &str, ifindex: u32, priority: u16) -> Result<()> {
        let holders = match tc::qdisc_add_clsact(device) {
            Ok(()) => [Holder::Nobody; 2],
            Err(error) if has(&error, libc::EEXIST) => holders(pair, device, ifindex, priority)?,
            Err(error) => return Err(failed(pair[0].0, device, error.into())),
        };
        for ((program, direction), holder) in pair.into_iter().zip(holders) {
            match holder {
                Holder::Nobody => self.create(program, device, direction, priority)?,
                Holder::Us => self.replace(program, device, direction, priority)?,
                Holder::UsBehind if priority != FIRST => {
                    self.replace(program, device, direction, priority)?;
                }
                Holder::UsBehind => return Err(taken(device, "a filter before ours")),
                Holder::Another => return Err(taken(device, "a filter")),
            }
        }
        Ok(())
    }

    fn create(&self, name: &'static str, device: &str, direction: Direction, priority: u16) -> Result<()> {
        let options = TcAttachOptions::Netlink(NlOptions { priority, handle: HANDLE, classid: None });
        let created = self.with_program(name, device, |program| {
            program.attach_with_options(device, direction.clsact(), options)
        });
        match created {
            // A filter of another kind or protocol has the priority, or the handle was taken just now.
            Err(error) if has(&error, libc::EINVAL) || has(&error, libc::EEXIST) => {
                Err(taken(device, "a filter"))
            }
            other => other,
        }
    }

    fn replace(&self, name: &'static str, device: &str, direction: Direction, priority: u16) -> Result<()> {
        let present = SchedClassifierLink::attached(device, direction.clsact(), priority, HANDLE, None)
            .map_err(|source| DatapathError::kernel("find device", device, source))?;
        self.with_program(name, device, |program| program.attach_to_link(present))
    }

    fn with_program(
        &self,
        name: &'static str,
        device: &str,
        attach: impl FnOnce(&mut SchedClassifier) -> std::result::Result<tc::SchedClassifierLinkId, ProgramError>,
    ) -> Result<()> {
        let failed = |error| failed(name, device, error);
        let mut object = self.object.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let program: &mut SchedClassifier = object
            .program_mut(name)
            .ok_or_else(|| DatapathError::Missing { kind: "program", name: name.to_owned() })?
            .try_into()
            .map_err(failed)?;
        let id = attach(program).map_err(failed)?;
        // aya detaches what it drops; the filter is to outlive us.
        mem::forget(program.take_link(id).map_err(failed)?);
        Ok(())
    }
}

/// Whether the device has a filter with each program of the pair; on a device of ours alone, before any other filter.
pub(super) fn runs(pair: Pair, ifindex: u32, priority: u16) -> Result<bool> {
    let netlink = Netlink::open()?;
    for (program, direction) in pair {
        match holder(&netlink, program, ifindex, direction, priority)? {
            Holder::Us => {}
            Holder::UsBehind if priority != FIRST => {}
            Holder::Nobody | Holder::UsBehind | Holder::Another => return Ok(false),
        }
    }
    Ok(true)
}

/// Of a device that is gone, or a filter that is or never was, there is nothing to detach.
pub(super) fn detach(name: &'static str, device: &str, direction: Direction, priority: u16) -> Result<()> {
    let Ok(ifindex) = ifindex(device) else { return Ok(()) };
    let holder = holder(&Netlink::open()?, name, ifindex, direction, priority)?;
    if !matches!(holder, Holder::Us | Holder::UsBehind) {
        return Ok(());
    }
    let Ok(link) = SchedClassifierLink::attached(device, direction.clsact(), priority, HANDLE, None) else {
        return Ok(());
    };
    match link.detach() {
        // The second is a device without the queueing discipline.
        Err(error) if has(&error, libc::ENOENT) || has(&error, libc::EINVAL) => Ok(()),
        other => other.map_err(|error| failed(name, device, error)),
    }
}

/// Where there is a queueing discipline already, which may be one without egress.
fn holders(pair: Pair, device: &str, ifindex: u32, priority: u16) -> Result<[Holder; 2]> {
    let netlink = Netlink::open()?;
    if let Some(kind) = netlink.discipline(ifindex)?.filter(|kind| kind != "clsact") {
        return Err(taken(device, &format!("queueing discipline {kind}")));
    }
    let [(first, ingress), (second, egress)] = pair;
    let first = holder(&netlink, first, ifindex, ingress, priority)?;
    Ok([first, holder(&netlink, second, ifindex, egress, priority)?])
}

fn holder(
    netlink: &Netlink,
    program: &str,
    ifindex: u32,
    direction: Direction,
    priority: u16,
) -> Result<Holder> {
    Ok(holder_among(&netlink.filters(ifindex, direction.side())?, program, priority))
}

/// The kernel lists filters of a priority in the order in which they run, and puts a new one before the others.
fn holder_among(filters: &[Filter], program: &str, priority: u16) -> Holder {
    // Of each priority it lists the classifier, too, as a filter without a handle.
    let same = |filter: &&Filter| filter.chain == 0 && filter.priority == priority && filter.handle != 0;
    let place =
        filters.iter().filter(same).enumerate().find(|(_, filter)| filter.handle == u32::from(HANDLE));
    match place {
        None => Holder::Nobody,
        Some((_, filter)) if filter.program.as_deref() != Some(program) => Holder::Another,
        Some((0, _)) => Holder::Us,
        Some(_) => Holder::UsBehind,
    }
}

/// Whether the kernel's answer at the bottom of `error` is `errno`.
fn has(error: &(dyn Error + 'static), errno: i32) -> bool {
    let mut causes = iter::successors(Some(error), |&error| error.source());
    causes.any(|cause| cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) == Some(errno))
}

fn failed(program: &'static str, device: &str, error: ProgramError) -> DatapathError {
    DatapathError::Clsact { program, device: device.to_owned(), source: Box::new(io::Error::other(error)) }
}

fn taken(device: &str, by: &str) -> DatapathError {
    DatapathError::PlaceTaken { device: device.to_owned(), by: by.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{FIRST, Filter, Holder, holder_among};

    /// E19: ours is found in its place, and not taken for the first where another of its priority runs before it.
    #[test]
    fn e19_who_runs_before_ours_is_seen() {
        let of = |priority, handle, program: &str| Filter {
            chain: 0,
            priority,
            handle,
            program: (!program.is_empty()).then(|| program.to_owned()),
        };
        let (head, ours, other) = (of(1, 0, ""), of(1, 1, "from_pod"), of(1, 2, "theirs"));
        let in_our_place = of(1, 1, "theirs");
        let elsewhere = Filter { chain: 7, ..other.clone() };
        let later = of(2, 1, "theirs");
        let cases = [
            (vec![], Holder::Nobody),
            (vec![&head, &other], Holder::Nobody),
            (vec![&head, &ours, &later], Holder::Us),
            (vec![&head, &ours, &other], Holder::Us),
            (vec![&elsewhere, &head, &ours], Holder::Us),
            (vec![&head, &other, &ours], Holder::UsBehind),
            (vec![&head, &in_our_place], Holder::Another),
        ];
        for (filters, holder) in cases {
            let filters: Vec<_> = filters.into_iter().cloned().collect();
            assert_eq!(holder_among(&filters, "from_pod", FIRST), holder, "{filters:?}");
        }
    }
}
