//! Listening to the kernel: changes of devices, and programs that others take away. Two threads that tell the
//! reconciler, started by the wiring.
//!
//! Invariant: they only say that something happened; the reconciler looks. Where nothing can be heard, audits find out
//! later.

use std::thread;
use std::time::Duration;

use quilla_cni_protocol::is_host_ifname;
use quilla_datapath::{DatapathError, DeviceChanges, FilterChanges, Touched};
use tokio_util::sync::CancellationToken;

use crate::reconcile::{Command, Handle};

/// How long a stopping agent may wait for them.
const PATIENCE: Duration = Duration::from_millis(250);

/// Tells the reconciler when the node's devices change.
pub async fn devices(reconciler: Handle, drain: CancellationToken) {
    let until = drain.clone();
    let listen = move || {
        let mut changes = DeviceChanges::open()?;
        while !until.is_cancelled() {
            // Pods come and go without changing the node.
            if changes.wait(PATIENCE, is_host_ifname) && !reconciler.tell(Command::DevicesChanged) {
                break;
            }
        }
        Ok(())
    };
    on_a_thread("watch devices", listen, drain).await;
}

/// Tells the reconciler at which devices somebody took programs away.
pub async fn programs(reconciler: Handle, drain: CancellationToken) {
    let until = drain.clone();
    let listen = move || {
        let mut deaf = false;
        while !until.is_cancelled() {
            match listen_to_filters(&reconciler, &until) {
                Ok(()) => break,
                Err(error) if !deaf => tracing::warn!(error = %error, "listen to changes of filters"),
                Err(_) => {}
            }
            deaf = true;
            thread::sleep(PATIENCE);
        }
        Ok(())
    };
    on_a_thread("watch filters", listen, drain).await;
}

/// Until `drain`, or until nobody can be told.
fn listen_to_filters(reconciler: &Handle, drain: &CancellationToken) -> Result<(), DatapathError> {
    let mut changes = FilterChanges::open()?;
    // What went before was not heard.
    let mut touched = Some(Touched::any());
    while !drain.is_cancelled() {
        if let Some(touched) = touched.take()
            && !reconciler.tell(Command::ProgramsTouched(touched))
        {
            break;
        }
        touched = changes.wait(PATIENCE)?;
    }
    Ok(())
}

async fn on_a_thread(
    operation: &'static str,
    listen: impl FnOnce() -> Result<(), DatapathError> + Send + 'static,
    drain: CancellationToken,
) {
    match tokio::task::spawn_blocking(listen).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(operation, error = %error, "listen to the kernel"),
        Err(error) => tracing::error!(operation, error = %error, "listen to the kernel"),
    }
    drain.cancelled().await;
}
