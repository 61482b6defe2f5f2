//! A storage that cannot grow any more: the server says so, and keeps answering reads.

use std::process::Stdio;

use serde_json::json;
use tokio::process::Command;

use crate::fixture::{Api, CONFIG_MAPS, PATIENCE, text};

/// Set in the process that may write no large files.
const CHILD: &str = "QUILLA_API_FULL_DISK_CHILD";

/// The disk is "full" for a child process only: a limit on the size of its files, without the signal that goes with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_by_the_health_endpoints() {
    if std::env::var_os(CHILD).is_some() {
        return fill_the_disk().await;
    }
    let run = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8192; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().expect("own path"))
        .args(["--exact", "storage::a_full_disk_is_told_by_the_health_endpoints", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, run).await.expect("it ends").expect("it runs");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

async fn fill_the_disk() {
    let api = Api::start().await;
    for path in ["/healthz", "/livez", "/readyz", "/livez/ping"] {
        let answer = api.get(path).await;
        assert_eq!((answer.code, answer.body), (200, json!("ok")), "{path}");
    }
    let large =
        |number: u32| json!({"metadata": {"name": format!("c{number}")}, "data": {"k": "x".repeat(200_000)}});
    let mut stored = 0;
    let refused = loop {
        assert!(stored < 100, "the limit has no effect");
        let answer = api.post(CONFIG_MAPS, &large(stored)).await;
        if answer.code != 201 {
            break answer;
        }
        stored += 1;
    };
    assert_eq!(refused.code, 500, "{}", refused.body);
    let failure = tokio::time::timeout(PATIENCE, api.server().failed()).await.expect("the failure is told");
    assert!(failure.to_string().starts_with("cannot write"), "{failure}");
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(api.get(path).await.code, 500, "{path}");
    }
    assert_eq!(api.post(CONFIG_MAPS, &large(1000)).await.code, 500, "nothing is accepted any more");
    assert!(stored > 0);
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/c0")).await.code, 200, "what was acknowledged can be read");
}
