//! Finding cited numbers in the comments of Rust sources.

/// The prefixes of cited numbers, the longest first.
const PREFIXES: [&str; 3] = ["CNI-", "S", "E"];

/// The numbers that a source cites, each with the test that does, or none for the whole module.
///
/// Functions count that somebody runs as a test: those that are `listed`, and those under `#[test]` and the like. Comments
/// inside a function count as its own, those of a module only if it has a test.
pub(super) fn cites(source: &str, listed: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let (mut comment, mut is_test) = (String::new(), false);
    let mut inside = None;
    let has_tests = !listed.is_empty() || source.lines().map(str::trim).any(is_test_attribute);
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("//!") {
            if has_tests {
                found.extend(numbers(text).into_iter().map(|item| (item, String::new())));
            }
        } else if let Some(text) = line.strip_prefix("///") {
            comment.push_str(text);
            comment.push('\n');
        } else if line.starts_with("#[") || line.starts_with('#') {
            is_test |= is_test_attribute(line);
        } else if let Some(name) = function(line) {
            inside = (is_test || listed.contains(&name)).then_some(name);
            if inside.is_some() {
                let items = numbers(&comment).into_iter().chain(of_name(name));
                found.extend(items.map(|item| (item, name.to_owned())));
            }
            (comment, is_test) = (String::new(), false);
        } else if let Some(text) = line.strip_prefix("//") {
            let test = inside.map(|name| numbers(text).into_iter().map(move |item| (item, name.to_owned())));
            found.extend(test.into_iter().flatten());
        } else {
            (comment, is_test) = (String::new(), false);
        }
    }
    found
}

/// `#[test]`, `#[tokio::test]`, with arguments or without.
fn is_test_attribute(line: &str) -> bool {
    let path = line.strip_prefix("#[").and_then(|rest| rest.split([']', '(']).next());
    path.is_some_and(|path| path == "test" || path.ends_with("::test"))
}

/// The tests that a tier's `main.rs` lists, each with the module that it is in; none for those of `main.rs` itself.
pub(super) fn listed(main: &str) -> Vec<(String, &str)> {
    let list = main.split_once("tests![").and_then(|(_, rest)| rest.split_once(']'));
    let entries =
        list.map_or("", |(list, _)| list).split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| entry.rsplit_once("::").unwrap_or(("", entry)))
        .map(|(module, name)| (module.replace("::", "/"), name))
        .collect()
}

/// The name of the function that a line begins.
fn function(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let modifiers = ["pub", "pub(crate)", "pub(super)", "async", "const"];
    if !before.split_whitespace().all(|word| modifiers.contains(&word)) {
        return None;
    }
    let end = after.find(|c: char| !(c.is_alphanumeric() || c == '_'))?;
    Some(&after[..end])
}

/// A name such as `s13_sets` or `cni_18_del`.
fn of_name(name: &str) -> Vec<String> {
    let upper = name.to_uppercase().replace("CNI_", "CNI-");
    upper.split('_').flat_map(numbers).collect()
}

/// Numbers in a text: `S13`, `E3-E5`, `S1-5`, `CNI-18`, `S20, 21` and `CNI-1, 2, 3`.
fn numbers(text: &str) -> Vec<String> {
    let mut found: Vec<(&str, u32)> = Vec::new();
    let mut last: Option<&str> = None;
    let mut to = false;
    for word in words(text) {
        let prefix = PREFIXES.into_iter().find(|prefix| {
            word.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        });
        let digits = prefix.map_or(word, |prefix| &word[prefix.len()..]);
        match (digits.parse::<u32>(), prefix.or(last)) {
            (Ok(number), Some(prefix)) => {
                let start =
                    found.last().filter(|(before, _)| to && *before == prefix).map_or(number, |(_, n)| n + 1);
                found.extend((start..=number.max(start)).map(|n| (prefix, n)));
                (last, to) = (Some(prefix), false);
            }
            _ if word == "-" || word == "to" => to = last.is_some(),
            _ if word == "," || word == "and" => to = false,
            _ => (last, to) = (None, false),
        }
    }
    found.into_iter().map(|(prefix, number)| format!("{prefix}{number}")).collect()
}

/// Words, and the marks that join numbers as words of their own. A dash belongs to the prefix `CNI-`.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for word in text.split(|c: char| c.is_whitespace() || "();.".contains(c)) {
        let mut rest = word;
        while !rest.is_empty() {
            let skip = if rest.starts_with("CNI-") { 4 } else { 0 };
            let at = rest[skip..].find(['-', '–', ',', ':']).map_or(rest.len(), |at| at + skip);
            let (before, mark) = rest.split_at(at);
            let mut marks = mark.chars();
            words.extend((!before.is_empty()).then_some(before));
            words.extend(marks.next().map(|mark| match mark {
                ',' => ",",
                ':' => ":",
                _ => "-",
            }));
            rest = marks.as_str();
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::{cites, listed, numbers};

    #[test]
    fn every_way_to_cite() {
        assert_eq!(numbers("S13: and so on"), ["S13"]);
        assert_eq!(numbers("E3-E5, S1-3"), ["E3", "E4", "E5", "S1", "S2", "S3"]);
        assert_eq!(numbers("CNI-18 and 20 (S20, S22)"), ["CNI-18", "CNI-20", "S20", "S22"]);
        assert_eq!(numbers("CNI-1, 2: 3 words, SYN and ESP, 5 more"), ["CNI-1", "CNI-2"]);
        assert_eq!(numbers("TCP 80 of IPv4"), Vec::<String>::new());
    }

    #[test]
    fn who_cites() {
        let source = "//! E1\n/// S2: two\n#[tokio::test(start_paused = true)]\nfn two() {}\n/// S3\nfn helper() {}\n#[test]\nfn s4_four() {\n// E5: five\n}\n";
        let of = |source, listed: &[&str]| {
            cites(source, listed).into_iter().map(|(item, by)| format!("{item} {by}")).collect::<Vec<_>>()
        };
        assert_eq!(of(source, &[]), ["E1 ", "S2 two", "S4 s4_four", "E5 s4_four"]);
        assert_eq!(of(source, &["helper"]), ["E1 ", "S2 two", "S3 helper", "S4 s4_four", "E5 s4_four"]);
        let helpers = "//! E1\n/// S3\nfn helper() {}\n";
        assert!(of(helpers, &[]).is_empty(), "a model or a generator proves nothing");
        assert_eq!(of(helpers, &["helper"]), ["E1 ", "S3 helper"]);
    }

    #[test]
    fn what_a_tier_lists() {
        let main = "mod a;\nfn main() {\n suite::main(tests![\n agreement,\n a::one,\n a::b::two,\n ])\n}\n";
        let found = listed(main);
        let found: Vec<_> = found.iter().map(|(module, name)| (module.as_str(), *name)).collect();
        assert_eq!(found, [("", "agreement"), ("a", "one"), ("a/b", "two")]);
        assert!(listed("fn main() {}").is_empty());
    }
}
