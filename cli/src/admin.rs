//! One conversation with the agent's admin socket: a line of JSON there, a document of JSON back.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

/// Columns, and rows with a cell for each of them.
#[derive(Debug, Deserialize, PartialEq)]
pub(crate) struct Answer {
    /// Names of the columns.
    pub(crate) columns: Vec<String>,
    /// The rows.
    pub(crate) rows: Vec<Vec<Value>>,
}

/// The agent answers at once or not at all.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody listens, or the connection broke.
    #[error("{operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The agent could not answer.
    #[error("the agent says: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// The answer is none that this program understands.
    #[error("the answer is not a list of rows")]
    NotRows,
}

/// The answer to a query.
pub(crate) fn ask(socket: &Path, query: &str) -> Result<Answer, AskError> {
    let failed = |operation| move |source| AskError::Io { operation, source };
    let mut stream = UnixStream::connect(socket).map_err(failed("connect"))?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed("set a time-out"))?;
    writeln!(stream, "{}", json!({ "query": query })).map_err(failed("send the query"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed("read the answer"))?;
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
    use super::{AskError, understand};

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
