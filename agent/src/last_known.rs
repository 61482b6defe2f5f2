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

/// Between two writes, however often the cluster changes. A start without an apiserver and without maps goes back by as
/// much at most.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

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

/// Stores what is published, at once and then not more often than is good for the disk; at the end what is newest.
pub async fn keep(
    path: PathBuf,
    mut published: watch::Receiver<Option<Published>>,
    drain: CancellationToken,
) {
    let mut stored = None;
    while let Some(Ok(())) = drain.run_until_cancelled(published.changed()).await {
        keep_newest(&path, &mut published, &mut stored).await;
        if drain.run_until_cancelled(tokio::time::sleep(WRITE_INTERVAL)).await.is_none() {
            break;
        }
    }
    keep_newest(&path, &mut published, &mut stored).await;
}

async fn keep_newest(
    path: &Path,
    published: &mut watch::Receiver<Option<Published>>,
    stored: &mut Option<Arc<Snapshot>>,
) {
    let Some(Published { snapshot, .. }) = published.borrow_and_update().clone() else { return };
    if stored.as_ref().is_some_and(|stored| Arc::ptr_eq(stored, &snapshot)) {
        return;
    }
    let (to, written) = (path.to_owned(), Arc::clone(&snapshot));
    match tokio::task::spawn_blocking(move || store(&to, &written)).await {
        Ok(Ok(())) => *stored = Some(snapshot),
        Ok(Err(error)) => {
            tracing::warn!(path = %path.display(), error = %error, "store last-known snapshot");
        }
        Err(error) => tracing::error!(error = %error, "store last-known snapshot"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quilla_model::{Namespace, Snapshot};
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::{keep, load, path, store};
    use crate::snapshot::Published;

    fn snapshot(name: &str) -> Arc<Snapshot> {
        let namespace = Namespace { name: name.into(), labels: [].into() };
        let namespaces = [(name.to_owned(), Arc::new(namespace))].into();
        Arc::new(Snapshot { namespaces, ..Snapshot::default() })
    }

    #[test]
    fn what_is_stored_is_loaded_and_garbage_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = path(directory.path());
        assert_eq!(load(&file), None);

        store(&file, &snapshot("shop")).unwrap();
        assert_eq!(load(&file).as_ref(), Some(&*snapshot("shop")));

        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(load(&file), None);
    }

    /// What an agent that is stopped in the middle of changes programmed last is what the next one finds.
    #[tokio::test]
    async fn the_newest_snapshot_is_stored_before_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = path(directory.path());
        let publish = |name| Some(Published { snapshot: snapshot(name), ..Published::default() });
        let (sender, receiver) = watch::channel(None);
        let drain = CancellationToken::new();
        let keeping = tokio::spawn(keep(file.clone(), receiver, drain.clone()));
        sender.send_replace(publish("first"));
        let first = async {
            while load(&file).is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), first).await.expect("stored at once");
        sender.send_replace(publish("second"));
        drain.cancel();
        drop(sender);
        keeping.await.unwrap();
        assert_eq!(load(&file).as_ref(), Some(&*snapshot("second")));
    }
}
