//! Counters before and after: a test says which moved by how much, and that nothing else did.

use std::collections::BTreeMap;

/// Values by name at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    values: BTreeMap<String, u64>,
}

impl<N: Into<String>> FromIterator<(N, u64)> for Counters {
    fn from_iter<I: IntoIterator<Item = (N, u64)>>(values: I) -> Self {
        Self { values: values.into_iter().map(|(name, value)| (name.into(), value)).collect() }
    }
}

impl Counters {
    /// The counters of a Prometheus text whose names begin with `prefix`, labels included.
    pub fn of_metrics(text: &str, prefix: &str) -> Self {
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect()
    }

    /// What is more now than in `before`; nothing may be less.
    pub fn since(&self, before: &Self) -> BTreeMap<&str, u64> {
        let grown = self.values.iter().map(|(name, now)| {
            let then = before.values.get(name).copied().unwrap_or(0);
            let by = now.checked_sub(then);
            (name.as_str(), by.unwrap_or_else(|| panic!("{name} went back from {then} to {now}")))
        });
        grown.filter(|(_, by)| *by > 0).collect()
    }
}

/// `expect_moved!(before, after, "drops/not_a_service" => 1)`: exactly these counters moved, by exactly that.
#[macro_export]
macro_rules! expect_moved {
    ($before:expr, $after:expr $(, $name:expr => $by:expr)* $(,)?) => {
        let expected = std::collections::BTreeMap::<&str, u64>::from([$(($name, $by)),*]);
        assert_eq!(expected, $after.since(&$before), "expected (left) and actual (right) movement of counters");
    };
}

#[cfg(test)]
mod tests {
    use super::Counters;

    fn counters(drops: u64, forwards: u64) -> Counters {
        [("drops", drops), ("forwards", forwards)].into_iter().collect()
    }

    #[test]
    fn exactly_what_moved() {
        expect_moved!(counters(1, 5), counters(1, 7), "forwards" => 2);
        expect_moved!(counters(1, 5), counters(1, 5));
    }

    #[test]
    #[should_panic(expected = "movement of counters")]
    fn another_counter_moved() {
        expect_moved!(counters(1, 5), counters(2, 7), "forwards" => 2);
    }

    #[test]
    fn metrics_are_read_with_their_labels() {
        let text = "# TYPE a counter\nquilla_drops_total{reason=\"x\"} 3\nquilla_ready 1\n";
        let counters = Counters::of_metrics(text, "quilla_drops");
        assert_eq!(counters, [("quilla_drops_total{reason=\"x\"}", 3)].into_iter().collect());
    }
}
