//! The last snapshot of the cluster, on disk: what an agent starts from when no apiserver answers.
//!
//! Invariant: the file is replaced whole or not at all; one that cannot be read is as good as none.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quilla_model::Snapshot;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::snapshot::Published;

/// Between two writes, however often the cluster changes.
const WRITE_INTERVAL: Duration = Duration::from_secs(15);

/// The file in a state directory.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("snapshot.json")
}

/// The stored snapshot, if there is one.
pub fn load(path: &Path) -> Option<Snapshot> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %error, "last-known snapshot not readable");
            return None;
        }
    };
    match serde_json::from_reader(BufReader::new(file)) {
        Ok(snapshot) => Some(snapshot),
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %error, "last-known snapshot not understood");
            None
        }
    }
}

/// Replaces the stored snapshot.
pub fn store(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut writer = BufWriter::new(File::create(&new)?);
    serde_json::to_writer(&mut writer, snapshot)?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    std::fs::rename(&new, path)
}

/// Stores every snapshot that is published, but not more often than is good for the disk.
pub async fn keep(
    path: PathBuf,
    mut published: watch::Receiver<Option<Published>>,
    drain: CancellationToken,
) {
    while let Some(Ok(())) = drain.run_until_cancelled(published.changed()).await {
        let Some(Published { snapshot, .. }) = published.borrow_and_update().clone() else { continue };
        let (to, written) = (path.clone(), Arc::clone(&snapshot));
        let stored = tokio::task::spawn_blocking(move || store(&to, &written)).await;
        match stored {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), error = %error, "store last-known snapshot");
            }
            Err(error) => tracing::error!(error = %error, "store last-known snapshot"),
        }
        if drain.run_until_cancelled(tokio::time::sleep(WRITE_INTERVAL)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quilla_model::{Namespace, Snapshot};

    use super::{load, path, store};

    #[test]
    fn what_is_stored_is_loaded_and_garbage_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = path(directory.path());
        assert_eq!(load(&file), None);

        let mut snapshot = Snapshot::default();
        let namespace = Namespace { name: "shop".into(), labels: [].into() };
        snapshot.namespaces.insert("shop".into(), Arc::new(namespace));
        store(&file, &snapshot).unwrap();
        assert_eq!(load(&file), Some(snapshot));

        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(load(&file), None);
    }
}
