//! Rules about single files: size, name, module documentation, leftovers, and how much lies in the root.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::process::read;
use crate::workspace::Workspace;

const MOST_LINES: usize = 800;
const MOST_ROOT_ENTRIES: usize = 32;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["common", "helpers", "misc", "shared", "util", "utils"];

/// Unfinished work, and paths of somebody's machine. Written in halves, so that this file passes its own check.
const LEFTOVERS: [&str; 7] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
];

/// Crates that may contain `unsafe`: plain bytes, packets, system calls.
const UNSAFE: [&str; 3] = ["abi/", "ebpf/src/", "agent/datapath/"];

pub(super) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let listed =
        read(workspace.command("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let mut found = root_entries(&listed);
    for file in listed.lines() {
        let path = workspace.path(file);
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if !metadata.is_file() || !is_text(Path::new(file)) {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("read {file}"))?;
        found.extend(leftovers(file, &text));
        if Path::new(file).extension().is_some_and(|end| end == "md") {
            found.extend(dead_links(workspace, file, &text));
        }
        if Path::new(file).extension().is_some_and(|end| end == "rs") {
            found.extend(source(file, &text));
        }
    }
    Ok(found)
}

fn is_text(file: &Path) -> bool {
    let end = file.extension().and_then(|end| end.to_str()).unwrap_or_default();
    matches!(end, "rs" | "toml" | "md" | "yaml" | "yml" | "json" | "sh" | "sha256")
        || file == Path::new(".ci/run")
}

fn root_entries(listed: &str) -> Vec<String> {
    let mut entries: Vec<&str> = listed.lines().filter_map(|file| file.split('/').next()).collect();
    entries.sort_unstable();
    entries.dedup();
    let count = entries.len();
    let message =
        format!("{count} entries in the root, {MOST_ROOT_ENTRIES} is the limit: a root shows the project");
    (count > MOST_ROOT_ENTRIES).then_some(message).into_iter().collect()
}

fn leftovers(file: &str, text: &str) -> Vec<String> {
    let lines = text.lines().enumerate();
    let hits = lines.flat_map(|(index, line)| {
        LEFTOVERS.iter().filter(move |needle| line.contains(**needle)).map(move |needle| (index, needle))
    });
    hits.map(|(index, needle)| format!("{file}:{}: `{needle}` must not be committed", index + 1)).collect()
}

/// Links to files that are not there; those to other sites are not followed.
fn dead_links(workspace: &Workspace, file: &str, text: &str) -> Vec<String> {
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    let local = targets(text).filter(|target| !workspace.root().join(folder).join(target).exists());
    local.map(|target| format!("{file}: links to {target}, which is not there")).collect()
}

/// Files that a page links to, without the place in the page.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    links.filter(|target| !target.is_empty() && !target.contains("://"))
}

fn source(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = product_lines(text);
    if lines > MOST_LINES {
        found.push(format!("{file}: {lines} lines without tests, {MOST_LINES} is the limit"));
    }
    let path = Path::new(file);
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let folders = path.parent().into_iter().flat_map(Path::iter).filter_map(|folder| folder.to_str());
    if let Some(name) = folders.chain([stem]).find(|name| EMPTY_NAMES.contains(name)) {
        found.push(format!("{file}: `{name}` says nothing; name it after what it owns"));
    }
    let tests = stem == "tests" || stem.ends_with("_tests");
    if !tests && !text.lines().next().is_some_and(|line| line.starts_with("//!")) {
        found.push(format!("{file}: does not begin with `//!`: what it owns, who calls it, one invariant"));
    }
    let root = file.ends_with("src/lib.rs") || file.ends_with("src/main.rs");
    let free = UNSAFE.iter().any(|folder| file.starts_with(folder));
    if root && !free && !text.contains("#![forbid(unsafe_code)]") {
        found.push(format!("{file}: lacks `#![forbid(unsafe_code)]`"));
    }
    found
}

/// Lines up to the test module, which is the last item of a file.
fn product_lines(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let tests =
        lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests {"));
    tests.unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: &str = "//! What it owns.\n\n#![forbid(unsafe_code)]\n";

    #[test]
    fn a_plain_file_passes() {
        assert_eq!(source("agent/src/lib.rs", FINE), Vec::<String>::new());
        assert_eq!(leftovers("agent/src/lib.rs", FINE), Vec::<String>::new());
    }

    #[test]
    fn tests_do_not_count_as_lines() {
        let long = format!("{FINE}#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(MOST_LINES));
        assert_eq!(source("agent/src/lib.rs", &long), Vec::<String>::new());
        let long = format!("{FINE}{}", "\n".repeat(MOST_LINES));
        assert_eq!(source("agent/src/lib.rs", &long).len(), 1);
    }

    #[test]
    fn empty_names_missing_documentation_and_missing_forbid_are_found() {
        assert!(source("agent/src/utils.rs", FINE)[0].contains("`utils` says nothing"));
        assert!(source("agent/src/common/flow.rs", FINE)[0].contains("`common` says nothing"));
        assert!(source("agent/src/flow.rs", "use std::fmt;\n")[0].contains("does not begin with"));
        assert!(source("agent/src/lib.rs", "//! What.\n")[0].contains("forbid(unsafe_code)"));
        assert_eq!(source("abi/src/lib.rs", "//! What.\n"), Vec::<String>::new());
    }

    #[test]
    fn leftovers_are_found_with_their_line() {
        let text = format!("fine\nfine // {}\n", LEFTOVERS[0]);
        assert!(leftovers("a.md", &text)[0].starts_with("a.md:2: "));
    }

    #[test]
    fn links_to_files_are_seen() {
        let text = "[a](docs/a.md) and [b](b.md#part), [here](#part), [there](https://kubernetes.io/docs)";
        assert_eq!(targets(text).collect::<Vec<_>>(), ["docs/a.md", "b.md"]);
    }

    #[test]
    fn a_crowded_root_is_found() {
        let listed: Vec<String> = (0..=MOST_ROOT_ENTRIES).map(|entry| entry.to_string()).collect();
        assert_eq!(root_entries(&listed.join("\n")).len(), 1);
        assert_eq!(root_entries("agent/src/lib.rs\nagent/Cargo.toml\n"), Vec::<String>::new());
    }
}
