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
    let listen = move |until: &CancellationToken| {
        let mut changes = DeviceChanges::open()?;
        // What went before was not heard.
        let mut changed = true;
        while !until.is_cancelled() {
            if changed && !reconciler.tell(Command::DevicesChanged) {
                break;
            }
            // Pods come and go without changing the node.
            changed = changes.wait(PATIENCE, is_host_ifname)?;
        }
        Ok(())
    };
    on_a_thread("listen to changes of devices", listen, drain).await;
}

/// Tells the reconciler at which devices somebody took programs away.
pub async fn programs(reconciler: Handle, drain: CancellationToken) {
    let listen = move |until: &CancellationToken| {
        let mut changes = FilterChanges::open()?;
        // What went before was not heard.
        let mut touched = Some(Touched::any());
        while !until.is_cancelled() {
            if let Some(touched) = touched.take()
                && !reconciler.tell(Command::ProgramsTouched(touched))
            {
                break;
            }
            touched = changes.wait(PATIENCE)?;
        }
        Ok(())
    };
    on_a_thread("listen to changes of filters", listen, drain).await;
}

/// Listens until `drain`, or until nobody can be told; anew after each error, of which the first is logged.
async fn on_a_thread(
    operation: &'static str,
    listen: impl Fn(&CancellationToken) -> Result<(), DatapathError> + Send + 'static,
    drain: CancellationToken,
) {
    let until = drain.clone();
    let listening = move || {
        let mut deaf = false;
        while !until.is_cancelled() {
            match listen(&until) {
                Ok(()) => break,
                Err(error) if !deaf => tracing::warn!(operation, error = %error, "the kernel is not heard"),
                Err(_) => {}
            }
            deaf = true;
            thread::sleep(PATIENCE);
        }
    };
    if let Err(error) = tokio::task::spawn_blocking(listening).await {
        tracing::error!(operation, error = %error, "the kernel is not heard");
    }
    drain.cancelled().await;
}
