//! How many plans have the same backend or marker. Used by [`crate::planner`].

use std::cmp::Ordering;

/// Tells of each key that only one of the two has, and whether it is the new one; both sorted, without duplicates.
pub(crate) fn compare<'a, K: Ord + 'a>(
    old: impl IntoIterator<Item = &'a K>,
    new: impl IntoIterator<Item = &'a K>,
    mut differs: impl FnMut(&'a K, bool),
) {
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(before), Some(after)) => before.cmp(after),
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        match (before, after) {
            (Some(key), None) => differs(key, false),
            (None, Some(key)) => differs(key, true),
            _ => {}
        }
    }
}

/// How many users there are when one came or went; none when it was the last.
pub(crate) fn users(before: Option<u32>, came: bool) -> Option<u32> {
    let before = before.unwrap_or(0);
    let after = if came { before + 1 } else { before.saturating_sub(1) };
    (after > 0).then_some(after)
}

#[cfg(test)]
mod tests {
    use quilla_model::SharedMap;

    use super::{compare, users};

    #[test]
    fn a_key_is_there_for_as_long_as_it_has_users() {
        let mut counts = SharedMap::new();
        let mut told = Vec::new();
        for (old, new) in
            [(vec![], vec![1, 2]), (vec![], vec![2, 3]), (vec![1, 2], vec![1]), (vec![2, 3], vec![])]
        {
            let mut changes = Vec::new();
            compare(&old, &new, |key, came| changes.push((*key, came)));
            counts.update(changes.iter().copied(), users);
            told.push(changes);
        }
        let expected = [
            vec![(1, true), (2, true)],
            vec![(2, true), (3, true)],
            vec![(2, false)],
            vec![(2, false), (3, false)],
        ];
        assert_eq!(told, expected);
        assert_eq!(counts.sorted(), [(&1, &1)]);
    }
}
