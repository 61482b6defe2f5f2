//! The admin socket: what the command line tool asks. Read-only.
//!
//! One request per connection: a line of JSON, `{"query": "services"}` or `{"query": "flows", "filter": {"port": 80}}`,
//! answered by one JSON document `{"columns": [...], "rows": [[...], ...], "omitted": 0}` or `{"error": "..."}`: the tool
//! can print any of them.

mod query;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quilla_datapath::Datapath;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cni::Ledger;
use crate::reconcile::View;
use crate::selftest::Readiness;
use crate::sockets::Support;

use query::{Filter, Query};

/// Nobody needs longer to send one line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// No request is longer.
const REQUEST_BYTES: u64 = 4096;

/// What the answers are made from.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Name of the node.
    pub node: String,
    /// Maps, for flows and counters.
    pub datapath: Arc<Datapath>,
    /// State of the reconciler.
    pub view: watch::Receiver<Arc<View>>,
    /// The journal of endpoints.
    pub ledger: Ledger,
    /// Outcome of the self-test.
    pub readiness: watch::Receiver<Readiness>,
    /// Whether sockets of deleted backends are ended.
    pub sockets: watch::Receiver<Support>,
}

#[derive(Debug, Deserialize)]
struct Request {
    query: Query,
    /// Which flows, of those.
    #[serde(default)]
    filter: Filter,
}

/// Listens; the socket is root's from the moment it has its name.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let aside: PathBuf = path.with_extension("new");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&aside)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))?;
    fs::rename(&aside, path)?;
    Ok(listener)
}

/// Serves until `drain`.
pub async fn serve(listener: UnixListener, admin: Admin, drain: CancellationToken) {
    while let Some(accepted) = drain.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => drop(tokio::spawn(converse(stream, admin.clone()))),
            Err(error) => {
                tracing::warn!(error = %error, "accept admin connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, admin: Admin) {
    let answered = tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, admin)).await;
    if let Ok(Err(error)) = answered {
        tracing::debug!(error = %error, "admin connection");
    }
}

async fn answer(stream: UnixStream, admin: Admin) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(REQUEST_BYTES)).read_line(&mut line).await?;
    let document = match serde_json::from_str::<Request>(&line) {
        Ok(request) => look_up(request, admin).await,
        Err(error) => failure(&error),
    };
    writer.write_all(document.to_string().as_bytes()).await?;
    writer.shutdown().await
}

async fn look_up(request: Request, admin: Admin) -> Value {
    let found = tokio::task::spawn_blocking(move || query::answer(&request, &admin)).await;
    match found {
        Ok(Ok(answer)) => json!(answer),
        Ok(Err(error)) => failure(&error),
        Err(error) => failure(&error),
    }
}

fn failure(error: &dyn std::error::Error) -> Value {
    json!({ "error": error.to_string() })
}
