//! One conversation with the agent's admin socket: a line of JSON there, a document of JSON back.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

/// Columns, and rows with a cell for each of them.
#[derive(Debug, Default, Deserialize, PartialEq)]
pub(crate) struct Answer {
    /// Names of the columns.
    pub(crate) columns: Vec<String>,
    /// The rows.
    pub(crate) rows: Vec<Vec<Value>>,
    /// Rows that the agent left out.
    #[serde(default)]
    pub(crate) omitted: usize,
}

/// Longer than the agent allows itself, so that its own words arrive.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody listens.
    #[error(
        "no agent at {}: start quilla-agent on this node, or name its socket with --socket (admin.sock in the agent's \
         --run-dir)", .socket.display()
    )]
    Nobody {
        /// Where it should be.
        socket: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// It is for others to ask.
    #[error("the agent at {} answers root only", .socket.display())]
    Forbidden {
        /// Where it is.
        socket: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Whoever listens there says nothing; perhaps it is not the agent.
    #[error("no answer from {} within {} s: is it the agent's admin socket? See --socket", .socket.display(), .within.as_secs())]
    Silent {
        /// Who was asked.
        socket: PathBuf,
        /// How long was waited.
        within: Duration,
    },
    /// The agent ended, or it is not the agent.
    #[error("the connection to {} ended without an answer: does quilla-agent still run?", .socket.display())]
    HungUp {
        /// Who was asked.
        socket: PathBuf,
    },
    /// The connection broke.
    #[error("{operation} {}", .socket.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Who was asked.
        socket: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The agent could not answer.
    #[error("{message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// The answer is none that this program understands.
    #[error("the answer is not a list of rows: are quilla and quilla-agent of one version?")]
    NotRows,
}

/// The answer to a question.
pub(crate) fn ask(socket: &Path, question: &Value) -> Result<Answer, AskError> {
    ask_within(TIMEOUT, socket, question)
}

fn ask_within(within: Duration, socket: &Path, question: &Value) -> Result<Answer, AskError> {
    let at = || socket.to_owned();
    let failed = |operation| move |source| AskError::Io { operation, socket: at(), source };
    let mut stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
        ErrorKind::PermissionDenied => AskError::Forbidden { socket: at(), source },
        _ => AskError::Nobody { socket: at(), source },
    })?;
    stream.set_read_timeout(Some(within)).map_err(failed("set a time-out for"))?;
    writeln!(stream, "{question}").map_err(failed("send the query to"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|source| match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => AskError::Silent { socket: at(), within },
        _ => AskError::Io { operation: "read the answer of", socket: at(), source },
    })?;
    if answer.is_empty() {
        return Err(AskError::HungUp { socket: at() });
    }
    understand(&answer)
}

fn understand(answer: &str) -> Result<Answer, AskError> {
    let document: Value = serde_json::from_str(answer).map_err(|_| AskError::NotRows)?;
    if let Some(message) = document["error"].as_str() {
        return Err(AskError::Refused { message: message.to_owned() });
    }
    let answer: Answer = serde_json::from_value(document).map_err(|_| AskError::NotRows)?;
    let complete = answer.rows.iter().all(|row| row.len() == answer.columns.len());
    if complete { Ok(answer) } else { Err(AskError::NotRows) }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use serde_json::json;

    use super::{AskError, ask_within, understand};

    #[test]
    fn nobody_silence_and_an_early_end_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        let ask = || ask_within(Duration::from_millis(20), &socket, &json!({"query": "status"})).unwrap_err();
        let nobody = ask().to_string();
        assert!(
            nobody.starts_with(&format!("no agent at {}: start quilla-agent", socket.display())),
            "{nobody}"
        );
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(matches!(ask(), AskError::Silent { .. }));
        // The silent conversation is still in the queue.
        let hang_up = std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                BufReader::new(stream.unwrap()).read_line(&mut String::new()).unwrap();
            }
        });
        let error = ask_within(Duration::from_secs(10), &socket, &json!({"query": "status"})).unwrap_err();
        assert!(matches!(error, AskError::HungUp { .. }), "{error}");
        hang_up.join().unwrap();
        let error = AskError::Silent { socket, within: Duration::from_secs(10) };
        assert!(error.to_string().contains(" within 10 s: is it the agent's admin socket?"), "{error}");
    }

    #[test]
    fn answers_are_rows_or_a_reason() {
        assert_eq!(understand(r#"{"columns": ["a"], "rows": [[1], [2]]}"#).unwrap().rows.len(), 2);
        assert!(
            matches!(understand(r#"{"error": "no"}"#), Err(AskError::Refused { message }) if message == "no")
        );
        for bad in ["", "[]", "{}", r#"{"columns": ["a"], "rows": [[1, 2]]}"#, r#"{"rows": "#] {
            assert!(matches!(understand(bad), Err(AskError::NotRows)), "{bad:?}");
        }
    }
}
