//! The state in memory: per resource an ordered map of objects. A snapshot is one pointer.

use std::{collections::HashMap, ops::Bound, sync::Arc};

use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

use super::{
    Event, Key, Revision, Stored,
    journal::{Before, Entry},
};

/// Namespace and name.
type Place = (Arc<str>, Arc<str>);
pub(super) type Objects = RedBlackTreeMapSync<Place, Arc<Stored>>;

#[derive(Clone, Default)]
pub(super) struct State {
    pub revision: Revision,
    /// Of the JSON of all objects.
    pub bytes: usize,
    pub resources: HashTrieMapSync<Arc<str>, Objects>,
}

impl State {
    pub fn get(&self, key: &Key) -> Option<&Arc<Stored>> {
        self.resources.get(&key.resource)?.get(&(key.namespace.clone(), key.name.clone()))
    }

    /// This state with some objects put or removed; `None` is a deletion.
    pub fn with(&self, revision: Revision, bytes: usize, changes: impl IntoIterator<Item = (Key, Option<Arc<Stored>>)>) -> Self {
        let mut touched: HashMap<Arc<str>, Objects> = HashMap::new();
        for (key, change) in changes {
            let objects = touched.entry(key.resource).or_insert_with_key(|it| self.resources.get(it).cloned().unwrap_or_default());
            let place = (key.namespace, key.name);
            match change {
                Some(object) => objects.insert_mut(place, object),
                None => _ = objects.remove_mut(&place),
            }
        }
        let mut resources = self.resources.clone();
        for (resource, objects) in touched {
            resources.insert_mut(resource, objects);
        }
        Self { revision, bytes, resources }
    }
}

/// Changes that are laid over a state until they are published.
pub(super) struct Overlay {
    state: Arc<State>,
    /// The newest state of the keys that changed; `None` is deleted.
    newest: HashMap<Key, Option<Arc<Stored>>>,
    pub events: Vec<Arc<Event>>,
    pub revision: Revision,
    /// Of the JSON of all objects.
    pub bytes: usize,
}

impl Overlay {
    pub fn new(state: Arc<State>) -> Self {
        let (revision, bytes) = (state.revision, state.bytes);
        Self { state, newest: HashMap::new(), events: Vec::new(), revision, bytes }
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Stored>> {
        match self.newest.get(key) {
            Some(newest) => newest.as_ref(),
            None => self.state.get(key),
        }
    }

    /// The revision of the state below.
    pub fn base(&self) -> Revision {
        self.state.revision
    }

    /// One change; of a deletion the object's last state.
    pub fn put(&mut self, object: Arc<Stored>, is_delete: bool) {
        let previous = self.get(&object.key).cloned();
        self.revision = object.revision;
        self.bytes += if is_delete { 0 } else { object.json.len() };
        self.bytes -= previous.as_ref().map_or(0, |it| it.json.len());
        self.newest.insert(object.key.clone(), (!is_delete).then(|| object.clone()));
        self.events.push(Event::new(object, is_delete, previous));
    }

    /// The state with the changes, and the events that tell of them.
    pub fn into_state(self) -> (State, Vec<Arc<Event>>) {
        (self.state.with(self.revision, self.bytes, self.newest), self.events)
    }
}

/// Everything at one revision. Cheap to clone; never changes.
#[derive(Clone)]
pub struct Snapshot(pub(super) Arc<State>);

impl Snapshot {
    pub fn revision(&self) -> Revision {
        self.0.revision
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.0.get(key).cloned()
    }

    /// The objects of a resource in key order, of one namespace or of all, after `after` (namespace, name) exclusively.
    pub fn list<'a>(
        &'a self,
        resource: &str,
        namespace: Option<&'a str>,
        after: Option<(&str, &str)>,
    ) -> Box<dyn Iterator<Item = &'a Arc<Stored>> + Send + 'a> {
        let Some(objects) = self.0.resources.get(resource) else { return Box::new(std::iter::empty()) };
        let place = |(namespace, name): (&str, &str)| (Arc::from(namespace), Arc::from(name));
        let start = match (after, namespace) {
            (Some(after), _) => Bound::Excluded(place(after)),
            (None, Some(namespace)) => Bound::Included(place((namespace, ""))),
            (None, None) => Bound::Unbounded,
        };
        let range = objects.range((start, Bound::Unbounded)).map(|(_, object)| object);
        Box::new(range.take_while(move |it| namespace.is_none_or(|namespace| *it.key.namespace == *namespace)))
    }

    /// The bytes of all objects: memory holds about a quarter more.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    pub fn count(&self, resource: &str) -> usize {
        self.0.resources.get(resource).map_or(0, Objects::size)
    }

    /// The keys of resources that hold any object.
    pub fn resources(&self) -> Vec<Arc<str>> {
        self.0.resources.iter().filter(|(_, objects)| !objects.is_empty()).map(|(resource, _)| resource.clone()).collect()
    }
}

/// Differs whenever objects of some resources do: a write raises the newest revision among them, a deletion lowers their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    newest: Revision,
    count: usize,
}

impl Snapshot {
    /// What tells whether anything of these resources has changed.
    pub fn stamp(&self, resources: &[&str]) -> Stamp {
        let objects = resources.iter().flat_map(|it| self.list(it, None, None));
        objects.fold(Stamp::default(), |stamp, it| Stamp { newest: stamp.newest.max(it.revision), count: stamp.count + 1 })
    }
}

impl Stored {
    /// The entry of the journal that holds this object.
    pub(super) fn entry(&self, is_delete: bool, before: Before) -> Entry {
        Entry { revision: self.revision, key: self.key.clone(), is_delete, schema: self.header.schema, json: self.json.clone(), before }
    }
}
