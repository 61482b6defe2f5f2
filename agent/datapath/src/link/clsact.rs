//! The way to attach before Linux 6.6: filters of the clsact queueing discipline.
//!
//! A filter has a fixed priority, so that attaching again finds and replaces it. It belongs to the device and goes with
//! it; there is nothing to pin, and nothing that tells us when another tool removes it.

use std::error::Error;
use std::{io, iter, mem};

use aya::programs::links::Link;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

use crate::datapath::Datapath;
use crate::error::{DatapathError, Result};

/// Behind the filters of others, which usually have the small numbers.
const PRIORITY: u16 = 0x514c;
const HANDLE: TcHandle = TcHandle::new(0, 1);

impl Datapath {
    pub(super) fn attach_clsact(
        &self,
        name: &'static str,
        device: &str,
        direction: TcAttachType,
    ) -> Result<()> {
        let failed = |error| failed(name, device, error);
        match tc::qdisc_add_clsact(device) {
            Err(error) if !has(&error, libc::EEXIST) => return Err(failed(error.into())),
            _ => {}
        }
        let mut object = self.object.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let program: &mut SchedClassifier = object
            .program_mut(name)
            .ok_or_else(|| DatapathError::Missing { kind: "program", name: name.to_owned() })?
            .try_into()
            .map_err(failed)?;
        let present = SchedClassifierLink::attached(device, direction, PRIORITY, HANDLE, None)
            .map_err(|source| DatapathError::kernel("find device", device, source))?;
        let id = match program.attach_to_link(present) {
            Ok(id) => id,
            Err(_none_yet) => {
                let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
                program
                    .attach_with_options(device, direction, TcAttachOptions::Netlink(options))
                    .map_err(failed)?
            }
        };
        // aya detaches what it drops; the filter is to outlive us.
        mem::forget(program.take_link(id).map_err(failed)?);
        Ok(())
    }
}

/// Of a device that is gone, or a filter that is or never was, there is nothing to detach.
pub(super) fn detach(name: &'static str, device: &str, direction: TcAttachType) -> Result<()> {
    let Ok(link) = SchedClassifierLink::attached(device, direction, PRIORITY, HANDLE, None) else {
        return Ok(());
    };
    match link.detach() {
        // The second is a device without the queueing discipline.
        Err(error) if has(&error, libc::ENOENT) || has(&error, libc::EINVAL) => Ok(()),
        other => other.map_err(|error| failed(name, device, error)),
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
