//! Watches: cursors over the log of recent events. Nothing is buffered per watcher.

use std::sync::Arc;

use super::{Forms, ReadError, Revision, Stored};

/// What a watcher follows; the store picks the narrowest topic that holds it. The watcher filters the rest by itself.
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

/// A watcher's place in the log. It holds no events; one that falls behind the kept history gets `Compacted`.
pub struct Cursor {
    _private: (),
}

impl Cursor {
    /// The next events in order, at least one; waits for them.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, ReadError> {
        todo!()
    }

    /// The events at hand, perhaps none, and the revision up to which nothing in scope is missing: what a bookmark may say.
    pub fn ready(&mut self) -> Result<(Vec<Arc<Event>>, Revision), ReadError> {
        todo!()
    }
}
