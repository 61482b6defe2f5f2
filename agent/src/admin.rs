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
use quilla_plan::Routing;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cni::Ledger;
use crate::overlay::Encapsulation;
use crate::reconcile::View;
use crate::selftest::Readiness;
use crate::sockets::Support;

use query::{Answer, Filter, Query, QueryError};

/// Nobody needs longer to send one line, or to take an answer.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than the command line tool waits: it gets an error rather than nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
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
    /// Who writes outer headers.
    pub encapsulation: watch::Receiver<Encapsulation>,
    /// How packets should get to other nodes.
    pub routing: Routing,
    /// The MTU of new Pods.
    pub mtu: watch::Receiver<u32>,
}

#[derive(Debug, Deserialize)]
struct Request {
    query: Query,
    /// Which rows, of Services, backends, flows and counts.
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
    let answered = |request| async move {
        let found = tokio::task::spawn_blocking(move || query::answer(&request, &admin));
        within(ANSWER_TIMEOUT, found).await
    };
    if let Err(error) = exchange(stream, answered).await {
        tracing::debug!(error = %error, "admin connection");
    }
}

/// One request and its answer.
async fn exchange<A: Future<Output = Value>>(
    stream: UnixStream,
    answered: impl FnOnce(Request) -> A,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(REQUEST_BYTES));
    tokio::time::timeout(TRANSFER_TIMEOUT, reader.read_line(&mut line)).await??;
    let document = match serde_json::from_str::<Request>(&line) {
        Ok(request) => answered(request).await,
        Err(error) => failure(&error),
    };
    let document = document.to_string();
    tokio::time::timeout(TRANSFER_TIMEOUT, writer.write_all(document.as_bytes())).await??;
    writer.shutdown().await
}

/// The document of an answer that is being made; an error if that takes too long.
async fn within(limit: Duration, found: JoinHandle<Result<Answer, QueryError>>) -> Value {
    match tokio::time::timeout(limit, found).await {
        Ok(Ok(Ok(answer))) => json!(answer),
        Ok(Ok(Err(error))) => failure(&error),
        Ok(Err(error)) => failure(&error),
        Err(_) => failure(&Late { limit }),
    }
}

/// The node is too busy, or its maps are too full, to answer a person.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s; the node is busy, ask again", .limit.as_secs())]
struct Late {
    limit: Duration,
}

fn failure(error: &dyn std::error::Error) -> Value {
    json!({ "error": error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::{exchange, within};

    /// What comes back for a line, if the answer to it never comes.
    async fn conversation(line: &str) -> Value {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(line.as_bytes()).await.unwrap();
        let never = |_| within(Duration::ZERO, tokio::spawn(std::future::pending()));
        exchange(server, never).await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        serde_json::from_str(&text).expect("a document, whatever happens")
    }

    #[tokio::test]
    async fn who_asks_gets_a_document_also_when_the_answer_takes_too_long() {
        let late = conversation("{\"query\": \"services\"}\n").await;
        assert_eq!(late, json!({"error": "no answer within 0 s; the node is busy, ask again"}));
        let wrong = conversation("{\"query\": \"service\"}\n").await;
        assert!(wrong["error"].as_str().unwrap().contains("unknown variant"), "{wrong}");
    }
}
