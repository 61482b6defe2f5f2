//! What many objects of a kind have in common, kept once: of 100,000 endpoints most are on nodes that others are on too.
//!
//! Used by the watches while they read. Invariant: what nobody has any more is forgotten before it is as much as what
//! somebody has.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use quilla_model::Hints;

/// The values that were seen.
#[derive(Debug, Default)]
pub(super) struct Shared {
    texts: Pool<str>,
    hints: Pool<Hints>,
}

impl Shared {
    pub(super) fn text(&mut self, text: &mut Arc<str>) {
        self.texts.share(text);
    }

    /// Hints that are new may still have names that are not.
    pub(super) fn hints(&mut self, hints: &mut Arc<Hints>) {
        if let Some(own) = Arc::get_mut(hints) {
            own.nodes.iter_mut().chain(&mut own.zones).for_each(|name| self.texts.share(name));
        }
        self.hints.share(hints);
    }
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    /// With so many, those that nobody has are looked for.
    limit: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), limit: LEAST }
    }
}

/// Fewer values than these are not worth looking through.
const LEAST: usize = 1024;

impl<T: Hash + Eq + ?Sized> Pool<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.values.get(&**value) {
            *value = Arc::clone(known);
            return;
        }
        if self.values.len() >= self.limit {
            self.values.retain(|known| Arc::strong_count(known) > 1);
            self.limit = LEAST.max(2 * self.values.len());
        }
        self.values.insert(Arc::clone(value));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quilla_model::Hints;

    use super::{LEAST, Pool, Shared};

    #[test]
    fn equal_values_become_one() {
        let mut shared = Shared::default();
        let hints = || Arc::new(Hints { nodes: vec![], zones: vec!["a".into()] });
        let (mut one, mut other) = (hints(), hints());
        shared.hints(&mut one);
        shared.hints(&mut other);
        assert!(Arc::ptr_eq(&one, &other));
        let mut zone: Arc<str> = "a".into();
        shared.text(&mut zone);
        assert!(Arc::ptr_eq(&zone, &one.zones[0]));
    }

    #[test]
    fn what_nobody_has_is_forgotten() {
        let mut pool = Pool::default();
        let mut kept: Arc<str> = "kept".into();
        pool.share(&mut kept);
        for number in 0..10 * LEAST {
            pool.share(&mut number.to_string().into());
        }
        assert!(pool.values.len() <= LEAST, "{}", pool.values.len());
        assert!(pool.values.contains("kept"));
    }
}
