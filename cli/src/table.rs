//! Answers as columns for people, or as objects for programs.

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::admin::Answer;

/// Columns of a terminal.
const WIDTH: usize = 80;
/// How many items of a list a cell shows.
const LIST: usize = 4;

/// One line per row under a line of headings.
pub(crate) fn columns(answer: &Answer) -> String {
    let headings = answer.columns.iter().map(|heading| heading.to_uppercase()).collect();
    let mut lines: Vec<Vec<String>> = vec![headings];
    lines.extend(answer.rows.iter().map(|row| row.iter().map(cell).collect()));
    let widths: Vec<usize> = (0..answer.columns.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines {
        let mut padded = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a string cannot fail.
            write!(padded, "{cell:width$}  ").unwrap_or_default();
        }
        text.push_str(padded.trim_end());
        text.push('\n');
    }
    text
}

/// One line per value, with its heading before it: for an answer of one row. What is longer goes on below.
pub(crate) fn lines(answer: &Answer) -> String {
    let width = answer.columns.iter().map(|heading| heading.chars().count() + 1).max().unwrap_or(0);
    let mut text = String::new();
    for (heading, value) in answer.rows.iter().flat_map(|row| answer.columns.iter().zip(row)) {
        let mut label = format!("{heading}:");
        for line in wrapped(&cell(value), WIDTH.saturating_sub(width + 2)) {
            // Writing to a string cannot fail.
            writeln!(text, "{label:width$}  {line}").unwrap_or_default();
            label.clear();
        }
    }
    text
}

/// Lines of so many characters, or of one word.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// An array with one object per row: lists are there, also without items, and what is absent has no key.
pub(crate) fn objects(answer: Answer) -> Value {
    let Answer { columns, rows, .. } = answer;
    let present = |(_, value): &(String, Value)| !value.is_null() && value != "";
    let object = |row: Vec<Value>| columns.iter().cloned().zip(row).filter(present).collect::<Map<_, _>>();
    rows.into_iter().map(|row| Value::Object(object(row))).collect()
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.into(),
        Value::Array(items) => list(items),
        other => other.to_string(),
    }
}

/// The first few; the whole list is for programs.
fn list(items: &[Value]) -> String {
    let shown: Vec<_> = items.iter().take(LIST).map(cell).collect();
    let more = items.len().saturating_sub(LIST);
    match (shown.is_empty(), more) {
        (true, _) => "-".into(),
        (false, 0) => shown.join(","),
        (false, more) => format!("{},+{more}", shown.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{WIDTH, columns, lines, objects};
    use crate::admin::Answer;

    fn answer() -> Answer {
        let rows =
            vec![vec![json!("web"), json!(1)], vec![json!(null), json!(200)], vec![json!(""), json!(3)]];
        Answer { columns: vec!["pod".into(), "id".into()], rows, omitted: 0 }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        assert_eq!(columns(&answer()), "POD  ID\nweb  1\n-    200\n-    3\n");
    }

    #[test]
    fn one_row_has_a_line_for_each_value_that_fits_the_terminal() {
        let reason = "word ".repeat(30).trim_end().to_owned();
        let row = vec![json!("a"), json!(true), json!(reason)];
        let answer = Answer {
            columns: ["node", "ready", "reason"].map(String::from).into(),
            rows: vec![row],
            omitted: 0,
        };
        let text = lines(&answer);
        assert!(text.starts_with("node:    a\nready:   yes\nreason:  word word "), "{text}");
        assert!(text.lines().all(|line| line.len() <= WIDTH) && text.contains("\n         word"), "{text}");
        assert_eq!(text.split_whitespace().filter(|word| *word == "word").count(), 30);
    }

    #[test]
    fn lists_are_shortened_for_people_only() {
        let rows = vec![
            vec![json!([])],
            vec![json!(["a", "b"])],
            vec![json!([1, 2, 3, 4, 5, 6])],
            vec![json!(true)],
        ];
        let answer = || Answer { columns: vec!["backends".into()], rows: rows.clone(), omitted: 0 };
        assert_eq!(columns(&answer()), "BACKENDS\n-\na,b\n1,2,3,4,+2\nyes\n");
        assert_eq!(objects(answer())[2], json!({"backends": [1, 2, 3, 4, 5, 6]}));
    }

    #[test]
    fn objects_have_the_columns_as_keys_but_for_what_is_absent() {
        assert_eq!(objects(answer()), json!([{"pod": "web", "id": 1}, {"id": 200}, {"id": 3}]));
        let list = Answer { columns: vec!["backends".into()], rows: vec![vec![json!([])]], omitted: 0 };
        assert_eq!(objects(list), json!([{"backends": []}]));
    }
}
