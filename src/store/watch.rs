//! Watches: cursors over the log of recent events. Nothing is buffered per watcher.
//!
//! A [`Topic`] is a ring of events and a wake-up. Each resource has a root topic with all its events; narrower ones (a namespace,
//! an object, a field's value) are made for their first watcher, filled from the root, and dropped after their last.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{Forms, ReadError, Revision, Stored};

/// How long events are kept (etcd's compaction interval of kube-apiserver).
const KEEP: Duration = Duration::from_secs(5 * 60);
/// What the events of one resource may hold beyond that time, counted by their JSON: half of it is usually shared with the state.
const KEEP_BYTES: usize = 128 << 20;
/// Events handed over at once; a watcher far behind reads on afterwards.
const READ_MAX: usize = 256;

/// What a watcher follows; the store picks the narrowest topic that holds it, and its cursor passes over the rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    pub resource: Arc<str>,
    pub namespace: Option<Arc<str>>,
    pub name: Option<Arc<str>>,
    /// A selectable field that must have this value (`spec.nodeName`).
    pub field: Option<(Arc<str>, Arc<str>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

/// One change of one object, shared by all its watchers.
#[derive(Debug)]
pub struct Event {
    pub kind: EventKind,
    pub revision: Revision,
    /// After the change; for a deletion, the last state, at the revision of the deletion.
    pub object: Arc<Stored>,
    pub previous: Option<Arc<Stored>>,
    /// Encoded frames, by the API floor's numbering.
    pub frames: Forms,
}

impl Event {
    pub(super) fn new(object: Arc<Stored>, is_delete: bool, previous: Option<Arc<Stored>>) -> Arc<Self> {
        let kind = match (is_delete, &previous) {
            (true, _) => EventKind::Deleted,
            (false, None) => EventKind::Added,
            (false, Some(_)) => EventKind::Modified,
        };
        Arc::new(Self { kind, revision: object.revision, object, previous, frames: Forms::default() })
    }
}

impl Scope {
    pub fn resource(resource: &str) -> Self {
        Self { resource: resource.into(), namespace: None, name: None, field: None }
    }

    /// The one part by which a topic is made; the rest is filtered by the cursor.
    fn narrowest(&self) -> Self {
        let root = Self::resource(&self.resource);
        match (&self.namespace, &self.name, &self.field) {
            (namespace, Some(name), _) => Self { namespace: namespace.clone(), name: Some(name.clone()), ..root },
            (_, None, Some(field)) => Self { field: Some(field.clone()), ..root },
            (Some(namespace), None, None) => Self { namespace: Some(namespace.clone()), ..root },
            (None, None, None) => root,
        }
    }

    fn holds(&self, object: &Stored) -> bool {
        let key = &object.key;
        self.resource == key.resource
            && self.namespace.as_ref().is_none_or(|it| *it == key.namespace)
            && self.name.as_ref().is_none_or(|it| *it == key.name)
            && self.field.as_ref().is_none_or(|(name, value)| object.header.field(name) == Some(value))
    }

    /// Whether the event matters here: the object is in scope, or has just left it.
    fn concerns(&self, event: &Event) -> bool {
        self.holds(&event.object) || event.previous.as_ref().is_some_and(|it| self.holds(it))
    }
}

impl super::Header {
    /// The value of a selectable field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let at = self.fields.binary_search_by(|(it, _)| it.as_ref().cmp(name)).ok()?;
        Some(&self.fields[at].1)
    }

    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(it, _)| it.as_ref().cmp(name)).ok()?;
        Some(&self.labels[at].1)
    }
}

struct Topic {
    scope: Scope,
    ring: Mutex<Ring>,
    newest: watch::Sender<Revision>,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<(Instant, Arc<Event>)>,
    bytes: usize,
    /// Events up to this revision may be missing.
    compacted: Revision,
}

impl Ring {
    fn push(&mut self, event: Arc<Event>, now: Instant) {
        self.bytes += event.object.json.len();
        self.events.push_back((now, event));
        self.trim(now);
    }

    fn trim(&mut self, now: Instant) {
        while let Some((at, event)) = self.events.front() {
            if now.duration_since(*at) < KEEP && self.bytes <= KEEP_BYTES {
                return;
            }
            self.compacted = event.revision;
            self.bytes -= event.object.json.len();
            self.events.pop_front();
        }
    }

    fn after(&self, revision: Revision, most: usize) -> Result<Vec<Arc<Event>>, ReadError> {
        if revision < self.compacted {
            return Err(ReadError::Compacted(self.compacted));
        }
        let from = self.events.partition_point(|(_, event)| event.revision <= revision);
        Ok(self.events.range(from..).take(most).map(|(_, event)| event.clone()).collect())
    }
}

/// No code panics while it holds a lock of this module, so that a poisoned one is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All topics. The writer publishes; watchers subscribe.
#[derive(Default)]
pub(super) struct Topics {
    all: Mutex<All>,
    /// The revisions of the last minutes, oldest first: one a trim.
    ages: Mutex<VecDeque<(Instant, Revision)>>,
    /// The revision of [`KEEP`] ago. Lists at older ones are gone, also of a resource where nothing happened since (etcd's compaction).
    aged: AtomicU64,
}

#[derive(Default)]
struct All {
    /// The revision from which a new root topic is complete.
    floor: Revision,
    by_resource: HashMap<Arc<str>, HashMap<Scope, Arc<Topic>>>,
}

impl All {
    /// The topics of a resource, the root among them.
    fn of(&mut self, resource: &Arc<str>) -> &mut HashMap<Scope, Arc<Topic>> {
        let floor = self.floor;
        self.by_resource.entry(resource.clone()).or_insert_with(|| {
            let root = Scope::resource(resource);
            HashMap::from([(root.clone(), Arc::new(Topic::new(root, floor)))])
        })
    }
}

impl Topics {
    /// Starts over: nothing before `floor` can be told, of some resources nothing before a later revision, and all who watch must
    /// list again.
    pub fn reset(&self, floor: Revision, later: &HashMap<Arc<str>, Revision>) {
        let mut all = lock(&self.all);
        let old = std::mem::replace(&mut *all, All { floor, ..All::default() });
        for (resource, revision) in later {
            lock(&all.of(resource)[&Scope::resource(resource)].ring).compacted = *revision;
        }
        for topic in old.by_resource.values().flat_map(HashMap::values) {
            *lock(&topic.ring) = Ring { compacted: floor, ..Ring::default() };
            topic.newest.send_replace(floor);
        }
    }

    /// Hands events to all topics that they concern.
    pub fn publish(&self, events: &[Arc<Event>], now: Instant) {
        let mut all = lock(&self.all);
        for event in events {
            let topics = all.of(&event.object.key.resource);
            for topic in topics.values().filter(|it| it.scope.concerns(event)) {
                lock(&topic.ring).push(event.clone(), now);
                topic.newest.send_replace(event.revision);
            }
        }
    }

    pub fn subscribe(&self, scope: &Scope, from: Revision, revisions: watch::Receiver<Revision>) -> Result<Cursor, ReadError> {
        let mut all = lock(&self.all);
        let topics = all.of(&scope.resource);
        let root = topics[&Scope::resource(&scope.resource)].clone();
        let narrowest = scope.narrowest();
        let rest = (narrowest != *scope).then(|| scope.clone());
        let topic = topics.entry(narrowest.clone()).or_insert_with(|| Arc::new(root.narrowed(narrowest))).clone();
        let compacted = lock(&topic.ring).compacted;
        if from < compacted {
            return Err(ReadError::Compacted(compacted));
        }
        Ok(Cursor { newest: topic.newest.subscribe(), topic, rest, after: from, revisions })
    }

    /// Drops old events, and topics that nobody follows. Returns the revision before which no list can be read.
    pub fn trim(&self, now: Instant, revision: Revision) -> Revision {
        let mut ages = lock(&self.ages);
        ages.push_back((now, revision));
        while let Some((_, aged)) = ages.pop_front_if(|(at, _)| now.duration_since(*at) >= KEEP) {
            self.aged.store(aged, Ordering::Relaxed);
        }
        drop(ages);
        self.drop_old(now);
        self.aged.load(Ordering::Relaxed)
    }

    /// Whether a list at `revision` is still to be had by its age.
    pub fn check_age(&self, revision: Revision) -> Result<(), ReadError> {
        let aged = self.aged.load(Ordering::Relaxed);
        if revision < aged { Err(ReadError::Compacted(aged)) } else { Ok(()) }
    }

    fn drop_old(&self, now: Instant) {
        for topics in lock(&self.all).by_resource.values_mut() {
            topics.retain(|scope, topic| *scope == Scope::resource(&scope.resource) || Arc::strong_count(topic) > 1);
            topics.values().for_each(|topic| lock(&topic.ring).trim(now));
        }
    }

    /// The events of a resource after `revision`, newest first; for undoing them.
    pub fn undo(&self, resource: &str, revision: Revision) -> Result<Vec<Arc<Event>>, ReadError> {
        let mut all = lock(&self.all);
        let root = &all.of(&resource.into())[&Scope::resource(resource)];
        let mut events = lock(&root.ring).after(revision, usize::MAX)?;
        events.reverse();
        Ok(events)
    }
}

impl Topic {
    fn new(scope: Scope, compacted: Revision) -> Self {
        Self { scope, ring: Mutex::new(Ring { compacted, ..Ring::default() }), newest: watch::Sender::new(compacted) }
    }

    /// A narrower topic with what the root holds of it.
    fn narrowed(&self, scope: Scope) -> Self {
        let root = lock(&self.ring);
        let topic = Self::new(scope, root.compacted);
        {
            let mut ring = lock(&topic.ring);
            for (at, event) in root.events.iter().filter(|(_, event)| topic.scope.concerns(event)) {
                ring.bytes += event.object.json.len();
                ring.events.push_back((*at, event.clone()));
            }
        }
        topic
    }
}

/// A watcher's place in the log. It holds no events; one that falls behind the kept history gets `Compacted`.
pub struct Cursor {
    topic: Arc<Topic>,
    /// What is followed, where the topic holds more.
    rest: Option<Scope>,
    newest: watch::Receiver<Revision>,
    revisions: watch::Receiver<Revision>,
    after: Revision,
}

impl Cursor {
    /// The next events in order, at least one; waits for them. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, ReadError> {
        loop {
            self.newest.borrow_and_update();
            let (events, is_all) = self.read()?;
            if !events.is_empty() {
                return Ok(events);
            }
            if is_all && self.newest.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// The events at hand, perhaps none, and the revision up to which nothing in scope is missing: what a bookmark may say.
    pub fn ready(&mut self) -> Result<(Vec<Arc<Event>>, Revision), ReadError> {
        let revision = *self.revisions.borrow();
        let (events, is_all) = self.read()?;
        let reached = if is_all { revision.max(self.after) } else { self.after };
        self.after = self.after.max(reached);
        Ok((events, reached))
    }

    /// Some of the next events, and whether they are all there are.
    fn read(&mut self) -> Result<(Vec<Arc<Event>>, bool), ReadError> {
        let mut events = lock(&self.topic.ring).after(self.after, READ_MAX)?;
        let is_all = events.len() < READ_MAX;
        if let Some(last) = events.last() {
            self.after = last.revision;
        }
        if let Some(rest) = &self.rest {
            events.retain(|it| rest.concerns(it));
        }
        Ok((events, is_all))
    }
}
