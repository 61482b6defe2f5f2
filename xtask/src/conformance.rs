//! `docs/conformance.md`: which test proves which promise, read off the tests' own words.
//!
//! A test cites the numbers it proves in its doc comment or in that of its module. The table is made from that, so it
//! cannot name a test that is gone; `tidy` fails when the table is old or a number has no test. Only what is run counts:
//! the stories that a tier's `main.rs` lists, and functions under `#[test]`; not what they are made with.

mod cite;
mod items;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::process::read;
use crate::workspace::Workspace;

use items::{LISTS, List};

const TABLE: &str = "docs/conformance.md";

const HEAD: &str = "# Which test proves which promise

Made by `cargo xtask gen` from the numbers that tests cite; `cargo xtask tidy` fails when it is old or when a number has
no test. A name is a file and the test in it; a file alone cites the number for all of its tests.
";

/// A promise and the tests that cite it.
type Cited = BTreeMap<String, Vec<String>>;

/// Writes the table.
pub(crate) fn generate(workspace: &Workspace) -> Result<()> {
    let path = workspace.path(TABLE);
    fs::write(&path, table(&cited(workspace)?)).with_context(|| format!("write {}", path.display()))
}

/// What is wrong with the table.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let cited = cited(workspace)?;
    let mut findings = Vec::new();
    for list in &LISTS {
        for (number, what) in list.items {
            let item = format!("{}{number}", list.prefix);
            if !cited.contains_key(&item) {
                findings.push(format!("no test cites {item} ({what})"));
            }
        }
    }
    if fs::read_to_string(workspace.path(TABLE)).unwrap_or_default() != table(&cited) {
        findings.push(format!("{TABLE} is old: run `cargo xtask gen`"));
    }
    Ok(findings)
}

fn cited(workspace: &Workspace) -> Result<Cited> {
    let mut cited = Cited::new();
    let listed = read(workspace.command("git").args(["ls-files", "-co", "--exclude-standard", "*.rs"]))?;
    let source = |name: &str| fs::read_to_string(workspace.path(name)).ok();
    for name in listed.lines().filter(|name| !name.starts_with("xtask/")) {
        let Some(text) = source(name) else { continue };
        let main =
            tier_of(name).and_then(|(tier, _)| source(&format!("tests/{tier}/main.rs"))).unwrap_or_default();
        let stories = cite::listed(&main);
        let here =
            stories.iter().filter(|(module, _)| tier_of(name).is_some_and(|(_, own)| is_in(own, module)));
        let here: Vec<_> = here.map(|(_, story)| *story).collect();
        for (item, test) in cite::cites(&text, &here) {
            let place = short(name);
            let test = if test.is_empty() { place } else { format!("{place}::{test}") };
            cited.entry(item).or_default().push(test);
        }
    }
    for tests in cited.values_mut() {
        tests.sort();
        tests.dedup();
    }
    Ok(cited)
}

/// Of a file under `tests/`, the tier and the module; `main.rs` is none.
fn tier_of(name: &str) -> Option<(&str, &str)> {
    let (tier, file) = name.strip_prefix("tests/")?.split_once('/')?;
    let module = file.strip_suffix(".rs")?;
    Some((tier, if module == "main" { "" } else { module }))
}

/// A story may be in a module below the one that it is listed by.
fn is_in(file: &str, module: &str) -> bool {
    file == module
        || !module.is_empty() && file.strip_prefix(module).is_some_and(|rest| rest.starts_with('/'))
}

/// The file without what all have in common.
fn short(name: &str) -> String {
    let path = Path::new(name).with_extension("");
    path.to_string_lossy().replace("/src/", "/")
}

fn table(cited: &Cited) -> String {
    let sections = LISTS.iter().map(|list| section(list, cited));
    std::iter::once(HEAD.to_owned()).chain(sections).collect()
}

fn section(list: &List, cited: &Cited) -> String {
    let head = format!("\n## {}\n\n| number | promise | tests |\n|---|---|---|\n", list.title);
    let row = |(number, what): &(u32, &str)| {
        let item = format!("{}{number}", list.prefix);
        let tests = cited.get(&item).map_or_else(String::new, |tests| format!("`{}`", tests.join("`, `")));
        format!("| {item} | {what} | {tests} |\n")
    };
    std::iter::once(head).chain(list.items.iter().map(row)).collect()
}
