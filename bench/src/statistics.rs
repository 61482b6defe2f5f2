//! The few numbers that a series of measurements comes to.

/// The middle of the values, and their extremes. The middle is what others' use of the machine moves least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Summary {
    /// Of at least one value.
    pub(crate) fn of(values: &[f64]) -> Self {
        assert!(!values.is_empty(), "a summary of nothing");
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Self { median, least: sorted[0], most: sorted[sorted.len() - 1] }
    }
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn one_outlier_does_not_move_the_middle() {
        let summary = Summary::of(&[3.0, 900.0, 1.0]);
        assert_eq!(summary, Summary { median: 3.0, least: 1.0, most: 900.0 });
    }

    #[test]
    fn an_even_number_has_its_middle_between_two() {
        assert!((Summary::of(&[4.0, 1.0, 2.0, 3.0]).median - 2.5).abs() < f64::EPSILON);
    }
}
