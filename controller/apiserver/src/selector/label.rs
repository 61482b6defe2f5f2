//! Label selectors: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
//!
//! Invariant: the operators mean what `labels.Selector` of apimachinery means, in particular `!=` and `notin` match
//! objects without the label.

use serde_json::Value;

use crate::status::{Refusal, Result};

/// A conjunction of requirements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl LabelSelector {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let unusable =
            || Refusal::bad_request(format!("unable to parse requirement: label selector {text:?}"));
        let requirements: Option<Vec<_>> =
            split(text).ok_or_else(unusable)?.into_iter().map(Requirement::parse).collect();
        Ok(Self(requirements.ok_or_else(unusable)?))
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.0.iter().all(|requirement| requirement.matches(labels[&requirement.key].as_str()))
    }
}

impl Requirement {
    fn parse(text: &str) -> Option<Self> {
        let (key, operator) = if let Some(key) = text.strip_prefix('!') {
            (key, Operator::Absent)
        } else if let Some(at) = text.find("!=") {
            (&text[..at], Operator::NotIn(vec![value(&text[at + 2..])?]))
        } else if let Some(at) = text.find("==") {
            (&text[..at], Operator::In(vec![value(&text[at + 2..])?]))
        } else if let Some(at) = text.find('=') {
            (&text[..at], Operator::In(vec![value(&text[at + 1..])?]))
        } else if let Some(open) = text.find('(') {
            let values = text[open + 1..].strip_suffix(')')?.split(',').map(value).collect::<Option<_>>()?;
            let (key, word) = text[..open].trim().rsplit_once(char::is_whitespace)?;
            match word {
                "in" => (key, Operator::In(values)),
                "notin" => (key, Operator::NotIn(values)),
                _ => return None,
            }
        } else {
            (text, Operator::Exists)
        };
        let key = key.trim();
        let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
        (!name.is_empty() && key.chars().all(|c| is_label_character(c) || c == '/'))
            .then(|| Self { key: key.to_owned(), operator })
    }

    fn matches(&self, label: Option<&str>) -> bool {
        let among = |values: &[String]| label.is_some_and(|label| values.iter().any(|value| value == label));
        match &self.operator {
            Operator::In(values) => among(values),
            Operator::NotIn(values) => !among(values),
            Operator::Exists => label.is_some(),
            Operator::Absent => label.is_none(),
        }
    }
}

/// Splits at the commas outside parentheses; None where those do not pair.
fn split(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        match character {
            '(' if !inside => inside = true,
            ')' if inside => inside = false,
            '(' | ')' => return None,
            ',' if !inside => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    if !last.is_empty() {
        parts.push(last);
    }
    (!inside).then_some(parts)
}

fn value(text: &str) -> Option<String> {
    let text = text.trim();
    text.chars().all(is_label_character).then(|| text.to_owned())
}

fn is_label_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(selector: &str) -> bool {
        let object =
            json!({"metadata": {"labels": {"app": "web", "tier": "front", "x.io/y": "1", "none": ""}}});
        LabelSelector::parse(selector).unwrap_or_else(|e| panic!("{selector}: {e}")).matches(&object)
    }

    #[test]
    fn every_operator() {
        for selector in [
            "",
            "app=web",
            "app==web",
            "app!=db",
            "gone!=x",
            "app in (db, web)",
            "app notin (db)",
            "gone notin (x)",
            "app",
            "!gone",
            "app=web,tier in (front,back),!gone",
            "x.io/y=1",
            "none=",
            " app = web ",
        ] {
            assert!(matches(selector), "{selector:?} should match");
        }
        for selector in
            ["app=db", "app!=web", "app in (db)", "app notin (web,db)", "gone", "!app", "app=web,gone"]
        {
            assert!(!matches(selector), "{selector:?} should not match");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for selector in
            ["app in web", "app in (a", "a)b", "=x", "!", "app=a b", "app is (x)", "a=b=c", ",", "a/=b"]
        {
            assert!(LabelSelector::parse(selector).is_err(), "{selector:?} should be refused");
        }
    }
}
