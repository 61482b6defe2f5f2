//! What the viewer sees: steps with their outcome and time, tables, the output of kubectl.

use std::io::{IsTerminal, Write, stdout};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::Result;

static START: OnceLock<Instant> = OnceLock::new();

fn paint(code: &str, text: &str) -> String {
    if stdout().is_terminal() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Bad news.
pub(crate) fn bad(text: &str) -> String {
    paint("31", text)
}

/// A line of prose.
pub(crate) fn say(text: &str) {
    START.get_or_init(Instant::now);
    println!("{text}");
}

/// Says what is being done, does it, and says what came of it.
pub(crate) fn step(what: &str, action: impl FnOnce() -> Result<String>) -> Result<()> {
    let start = Instant::now();
    print!("{} {what} ... ", paint("36", "▸"));
    // Nobody looks at a terminal that is gone.
    drop(stdout().flush());
    let outcome = action();
    let seconds = start.elapsed().as_secs_f32();
    match &outcome {
        Ok(result) => println!("{} {result} ({seconds:.1} s)", paint("32", "ok:")),
        Err(_) => println!("{} ({seconds:.1} s)", bad("failed")),
    }
    outcome.map(drop)
}

/// A command as it would be typed, with its output.
pub(crate) fn command(line: &str, output: &str) {
    println!("  {}", paint("1", &format!("$ {line}")));
    for line in output.lines() {
        println!("    {line}");
    }
}

/// Columns as wide as their widest cell.
pub(crate) fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |text| text.chars().count());
    let widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().map(|row| cell(row, column)).max().unwrap_or(0)).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}"));
        println!("    {}", cells.collect::<Vec<_>>().join("   ").trim_end());
    }
}

/// The last line.
pub(crate) fn farewell() {
    let seconds = START.get_or_init(Instant::now).elapsed().as_secs_f32();
    println!("\n{} Everything above was checked as it happened, in {seconds:.0} s.", paint("32", "Done."));
}
