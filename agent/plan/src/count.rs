//! How many plans have the same backend or marker. Used by [`crate::planner`].

use std::cmp::Ordering;
use std::hash::Hash;

use quilla_model::SharedMap;

/// Counts what `new` has and `old` has not, and the reverse; both sorted, without duplicates. Tells of keys that came
/// (true) and of those that went with the last of their users.
pub(crate) fn count<'a, K: Ord + Hash + Clone + 'a>(
    counts: &mut SharedMap<K, u32>,
    old: impl IntoIterator<Item = &'a K>,
    new: impl IntoIterator<Item = &'a K>,
    mut changed: impl FnMut(&K, bool),
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
            (Some(key), None) => {
                let left = counts.get(key).map_or(0, |users| users.saturating_sub(1));
                if left > 0 {
                    counts.insert(key.clone(), left);
                } else {
                    counts.remove(key);
                    changed(key, false);
                }
            }
            (None, Some(key)) => {
                let users = counts.or_default(key.clone());
                *users += 1;
                if *users == 1 {
                    changed(key, true);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use quilla_model::SharedMap;

    use super::count;

    #[test]
    fn only_the_first_and_the_last_user_count() {
        let mut counts = SharedMap::new();
        let mut told = Vec::new();
        for (old, new) in
            [(vec![], vec![1, 2]), (vec![], vec![2, 3]), (vec![1, 2], vec![1]), (vec![2, 3], vec![])]
        {
            count(&mut counts, &old, &new, |key, came| told.push((*key, came)));
        }
        assert_eq!(told, [(1, true), (2, true), (3, true), (2, false), (3, false)]);
        assert_eq!(counts.sorted(), [(&1, &1)]);
    }
}
