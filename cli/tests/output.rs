//! The program as a shell runs it: what it prints of an agent's answers, and what becomes of output that nobody takes.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// The program with these arguments, an agent's answer for it, and the question that the agent was asked.
fn conversation(arguments: &str, answer: &Value, stdout: Stdio) -> (Output, Value) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("admin.sock");
    let listener = UnixListener::bind(&socket).expect("listen");
    let mut command = Command::new(env!("CARGO_BIN_EXE_quilla"));
    command.arg("--socket").arg(&socket).args(arguments.split(' '));
    let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("start");
    // The answer comes after the reader has gone, where the reader is this process and does not want to read.
    let reader = (arguments == "nodes").then(|| child.stdout.take());
    drop(reader);
    let (mut stream, _) = listener.accept().expect("the question");
    let mut question = String::new();
    BufReader::new(&stream).read_line(&mut question).expect("a line");
    stream.write_all(answer.to_string().as_bytes()).expect("answer");
    drop(stream);
    let output = child.wait_with_output().expect("wait");
    (output, serde_json::from_str(&question).expect("a question"))
}

fn quilla(stdout: Stdio) -> Output {
    conversation("nodes", &json!({"columns": ["node"], "rows": [["a"]]}), stdout).0
}

/// What the program prints for an answer.
fn printed(arguments: &str, answer: &Value) -> String {
    let (output, _) = conversation(arguments, answer, Stdio::piped());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn services() -> Value {
    json!({
        "columns": ["service", "port", "address", "scope", "selection", "affinity", "sources", "when_empty", "backends"],
        "rows": [
            ["Agent self-test", "", "192.0.0.8:7", "internal", "random", null, [], null, ["127.0.0.1:4321"]],
            ["shop/web", "http", "10.96.0.1:80", "internal", "random", "10800s", [], null,
             ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080", "10.0.0.5:8080"]],
            ["shop/web", "http", "198.51.100.1:80", "external", "maglev", null, ["192.0.2.0/24"], "drop", []]
        ],
        "omitted": 0
    })
}

#[test]
fn services_for_people() {
    let expected = "\
SERVICE                   PORT  ADDRESS          SCOPE     SELECTION  AFFINITY  SOURCES       WHEN_EMPTY  BACKENDS
(self-test of the agent)  -     192.0.0.8:7      internal  random     -         -             -           127.0.0.1:4321
shop/web                  http  10.96.0.1:80     internal  random     10800s    -             -           \
10.0.0.1:8080,10.0.0.2:8080,10.0.0.3:8080,10.0.0.4:8080,+1
shop/web                  http  198.51.100.1:80  external  maglev     -         192.0.2.0/24  drop        -
";
    assert_eq!(printed("services", &services()), expected);
}

#[test]
fn services_for_programs() {
    let printed: Value = serde_json::from_str(&printed("services -o json", &services())).expect("JSON");
    assert_eq!(printed[1]["backends"].as_array().map(Vec::len), Some(5), "all of them");
    assert_eq!(printed[0]["service"], "Agent self-test", "as the agent says");
    assert_eq!((&printed[1]["sources"], &printed[2]["sources"]), (&json!([]), &json!(["192.0.2.0/24"])));
    let keys = printed.as_array().expect("rows").iter().map(|row| row.as_object().expect("an object").len());
    assert_eq!(keys.collect::<Vec<_>>(), [6, 8, 8], "what is absent has no key");
}

/// Nothing to list is said beside the table, and is an empty array for programs.
#[test]
fn nothing_is_said_and_not_printed() {
    let answer = json!({"columns": ["object", "reason", "detail"], "rows": [], "omitted": 0});
    for (arguments, stdout, stderr) in [
        ("problems", "", "quilla: no problems\n"),
        ("drops", "", "quilla: nothing was dropped\n"),
        ("drops -A", "", "quilla: nothing was counted\n"),
        ("problems -o json", "[]\n", ""),
    ] {
        let (output, _) = conversation(arguments, &answer, Stdio::piped());
        let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(said, (stdout.into(), stderr.into()), "{arguments}");
    }
}

/// Whoever has no agent hears what to do; what the agent refuses is said in its own words.
#[test]
fn errors_say_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("admin.sock");
    let output =
        Command::new(env!("CARGO_BIN_EXE_quilla")).arg("status").arg("--socket").arg(&socket).output();
    let said = String::from_utf8(output.expect("run").stderr).expect("text");
    let expected = format!("quilla: no agent at {}: start quilla-agent on this node, or", socket.display());
    assert!(said.starts_with(&expected), "{said}");
    let (output, _) = conversation("services x", &json!({"error": "no Service \"x\""}), Stdio::piped());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "quilla: no Service \"x\"\n");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn flows_as_yaml_with_what_is_left_out() {
    let rows = json!([["UDP", "10.0.0.2:9", 3], ["TCP", "[fd00::1]:9", 1]]);
    let answer = json!({"columns": ["protocol", "source", "packets"], "rows": rows, "omitted": 7});
    let (output, question) = conversation("flows --from 10.0.0.0/8 -o yaml", &answer, Stdio::piped());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "quilla: 7 more are not listed; narrow the question\n");
    assert_eq!(question["filter"]["from"], "10.0.0.0/8");
    let yaml = String::from_utf8(output.stdout).expect("text");
    let expected = "\
- packets: 1
  protocol: TCP
  source: \"[fd00::1]:9\"
- packets: 3
  protocol: UDP
  source: 10.0.0.2:9
";
    assert_eq!(yaml, expected);
}

#[test]
fn a_limit_says_what_it_cut() {
    let rows = json!([["TCP", "10.0.0.1:9"], ["TCP", "10.0.0.2:9"], ["TCP", "10.0.0.3:9"]]);
    let answer = json!({"columns": ["protocol", "source"], "rows": rows, "omitted": 0});
    let (output, _) = conversation("flows --limit 1", &answer, Stdio::piped());
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "quilla: 2 more are not listed; narrow the question\n"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "PROTOCOL  SOURCE\nTCP       10.0.0.1:9\n");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let output = quilla(Stdio::piped());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success(), "{}", output.status);
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = File::create("/dev/full").expect("open /dev/full");
    let output = quilla(full.into());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("quilla: write: No space left on device"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}
