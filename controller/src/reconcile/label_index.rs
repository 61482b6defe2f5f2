//! Objects by their labels. Kept by a reconciler beside its cache, from the changes the cache tells. Candidates only:
//! who asks still compares the whole selector.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use super::cache::{Change, Key};
use crate::selector::Labels;

/// Namespace, label and value.
type Label = (String, String, String);

/// See the module.
#[derive(Debug, Default)]
pub struct LabelIndex(BTreeMap<Label, BTreeSet<Key>>);

impl LabelIndex {
    pub fn update<K: ResourceExt>(&mut self, change: &Change<K>) {
        let labels = |object: &K| -> Vec<Label> {
            let pairs = object.labels().iter();
            pairs.map(|(key, value)| (change.key.namespace.clone(), key.clone(), value.clone())).collect()
        };
        for label in change.old.iter().flat_map(|old| labels(old)) {
            let emptied = self.0.get_mut(&label).is_some_and(|keys| {
                keys.remove(&change.key);
                keys.is_empty()
            });
            if emptied {
                self.0.remove(&label);
            }
        }
        for label in change.new.iter().flat_map(|new| labels(new)) {
            self.0.entry(label).or_default().insert(change.key.clone());
        }
    }

    /// Whoever has the rarest pair of `selector`; nobody if it is empty.
    pub fn candidates(&self, namespace: &str, selector: &Labels) -> impl Iterator<Item = &Key> {
        let holders = selector
            .iter()
            .map(|(key, value)| self.0.get(&(namespace.to_owned(), key.clone(), value.clone())));
        let rarest = holders.min_by_key(|keys| keys.map_or(0, BTreeSet::len)).flatten();
        rarest.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::runtime::watcher::Event;

    use super::LabelIndex;
    use crate::reconcile::cache::Cache;
    use crate::selector::Labels;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn pod(name: &str, pairs: &[(&str, &str)]) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("default".to_owned());
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.labels = Some(labels(pairs));
        pod
    }

    #[test]
    fn it_follows_relabelling_and_deletion() {
        let (mut cache, mut index) = (Cache::default(), LabelIndex::default());
        let mut see = |index: &mut LabelIndex, event| {
            for one in cache.apply(event) {
                index.update(&one);
            }
        };
        let found = |index: &LabelIndex, pairs: &[(&str, &str)]| {
            let selector = labels(pairs);
            index.candidates("default", &selector).map(|key| key.name.clone()).collect::<Vec<_>>()
        };
        see(&mut index, Event::Apply(pod("a", &[("app", "web"), ("tier", "front")])));
        see(&mut index, Event::Apply(pod("b", &[("app", "web")])));
        assert_eq!(found(&index, &[("app", "web")]), ["a", "b"]);
        assert_eq!(found(&index, &[("app", "web"), ("tier", "front")]), ["a"]);
        assert!(found(&index, &[("app", "web"), ("tier", "back")]).is_empty());
        assert!(found(&index, &[]).is_empty());
        assert_eq!(index.candidates("other", &labels(&[("app", "web")])).count(), 0);
        see(&mut index, Event::Apply(pod("a", &[("app", "db")])));
        see(&mut index, Event::Delete(pod("b", &[("app", "web")])));
        assert!(found(&index, &[("app", "web")]).is_empty());
        assert_eq!(found(&index, &[("app", "db")]), ["a"]);
        assert_eq!(index.0.len(), 1, "nothing is left of what is gone");
    }
}
