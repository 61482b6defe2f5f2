//! The objects of one kind as last seen. Fed by a watch, owned by one reconciler. A relist replaces the whole at once
//! and tells what it missed, deletions too: nothing is forgotten because a watch broke.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display, Formatter};
use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// Where an object is; the namespace is empty for kinds that have none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of(object: &impl ResourceExt) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl Display for Key {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => out.write_str(&self.name),
            namespace => write!(out, "{namespace}/{}", self.name),
        }
    }
}

/// One object before and after.
#[derive(Debug)]
pub struct Change<K> {
    pub key: Key,
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

type Objects<K> = BTreeMap<Key, Arc<K>>;

/// See the module.
#[derive(Debug)]
pub struct Cache<K> {
    objects: Objects<K>,
    listing: Option<Objects<K>>,
    listed: bool,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listing: None, listed: false }
    }
}

impl<K: ResourceExt> Cache<K> {
    /// Takes one event in and tells what it changed.
    pub fn apply(&mut self, event: Event<K>) -> Vec<Change<K>> {
        match event {
            Event::Init => self.listing = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                self.listing.get_or_insert_default().insert(Key::of(&object), Arc::new(object));
            }
            Event::InitDone => return self.replace(),
            Event::Apply(object) => return vec![self.put(object)],
            Event::Delete(object) => return self.remove(&Key::of(&object)).into_iter().collect(),
        }
        Vec::new()
    }

    /// Sees an object before the watch does: the answer to an own write.
    pub fn put(&mut self, object: K) -> Change<K> {
        let (key, new) = (Key::of(&object), Arc::new(object));
        let old = self.objects.insert(key.clone(), Arc::clone(&new));
        Change { key, old, new: Some(new) }
    }

    /// Sees a deletion before the watch does.
    pub fn remove(&mut self, key: &Key) -> Option<Change<K>> {
        let old = self.objects.remove(key)?;
        Some(Change { key: key.clone(), old: Some(old), new: None })
    }

    /// Whether a whole list was seen, so that what is not here does not exist.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<K>)> {
        self.objects.iter()
    }

    pub fn within<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a Key, &'a Arc<K>)> {
        self.objects.range(Key::new(namespace, "")..).take_while(move |(key, _)| key.namespace == namespace)
    }

    fn replace(&mut self) -> Vec<Change<K>> {
        self.listed = true;
        let mut before = std::mem::replace(&mut self.objects, self.listing.take().unwrap_or_default());
        let mut changes = Vec::new();
        for (key, new) in &self.objects {
            let old = before.remove(key);
            let same = old.as_ref().is_some_and(|old| {
                old.resource_version().is_some() && old.resource_version() == new.resource_version()
            });
            if !same {
                changes.push(Change { key: key.clone(), old, new: Some(Arc::clone(new)) });
            }
        }
        changes.extend(before.into_iter().map(|(key, old)| Change { key, old: Some(old), new: None }));
        changes
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::watcher::Event;

    use super::{Cache, Change};

    fn object(name: &str, version: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("default".into());
        object.metadata.name = Some(name.into());
        object.metadata.resource_version = Some(version.into());
        object
    }

    fn told(changes: &[Change<ConfigMap>]) -> Vec<(String, bool, bool)> {
        changes.iter().map(|one| (one.key.to_string(), one.old.is_some(), one.new.is_some())).collect()
    }

    #[test]
    fn a_relist_tells_what_the_watch_missed() {
        let mut cache = Cache::default();
        for event in [Event::Init, Event::InitApply(object("a", "1")), Event::InitApply(object("b", "2"))] {
            assert!(cache.apply(event).is_empty());
        }
        assert!(!cache.is_listed());
        assert_eq!(cache.apply(Event::InitDone).len(), 2);
        assert!(cache.is_listed());
        assert_eq!(told(&cache.apply(Event::Apply(object("c", "3")))), [("default/c".into(), false, true)]);
        cache.apply(Event::Init);
        cache.apply(Event::InitApply(object("a", "1")));
        cache.apply(Event::InitApply(object("b", "9")));
        let changes = cache.apply(Event::InitDone);
        assert_eq!(told(&changes), [("default/b".into(), true, true), ("default/c".into(), true, false)]);
        assert_eq!(cache.within("default").count(), 2);
        assert_eq!(cache.within("defaul").count(), 0);
    }
}
