//! The store: the database is a conditional-append journal, everything else an in-memory fold of it.
//!
//! One writer task per process commits groups of transactions in one append; revisions are contiguous and in commit order;
//! every read is served from memory. The design and its measurements: ARCHITECTURE.md, "The store".

pub mod cache;
pub mod engine;
pub mod journal;
pub mod memory;
pub mod sqlite;
pub mod watch;
pub mod writer;

use std::{sync::Arc, time::Duration};

pub use cache::Snapshot;
pub use engine::Engine;
pub use watch::{Cursor, Event, EventKind, Scope};

use bytes::Bytes;

use crate::{base::Tasks, meta::Value};

/// Counts the writes of the whole store, in commit order. The wire's resourceVersion is its decimal text.
pub type Revision = u64;

/// Objects (as JSON, without resourceVersion) larger than this are refused, as etcd refuses them.
pub const OBJECT_MAX: usize = 3 << 19;
/// How long a read waits for a revision that has not been reached (`blockTimeout`).
pub const WAIT_FOR_REVISION: Duration = Duration::from_secs(3);

/// Where an object lives. `resource` is `pods` or `apps/deployments`; `namespace` is empty for cluster-scoped ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub resource: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl Key {
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self { resource: resource.into(), namespace: namespace.into(), name: name.into() }
    }
}

/// An object as stored, at one revision. Immutable; shared by all readers.
#[derive(Debug)]
pub struct Stored {
    pub key: Key,
    pub revision: Revision,
    /// JSON in the stored version, resourceVersion included.
    pub json: Bytes,
    /// Extracted once, when the object was written or loaded.
    pub header: Header,
    /// Other forms of the object (another version, a table row, protobuf), made once by the API floor.
    pub forms: Forms,
}

#[derive(Clone, Debug, Default)]
pub struct Header {
    pub uid: Arc<str>,
    /// Sorted by key.
    pub labels: Vec<(Box<str>, Box<str>)>,
    /// The selectable fields of the stored version, sorted by name, without `metadata.name` and `metadata.namespace`.
    pub fields: Vec<(Box<str>, Box<str>)>,
    /// The generation of the schema it was written under ([`crate::kinds::Version::generation`]).
    pub schema: u64,
}

/// Encoded forms of one object, by the API floor's own numbering of forms; bounded to a handful.
#[derive(Debug, Default)]
pub struct Forms {
    _private: (),
}

impl Forms {
    /// The form `id`, made by `make` the first time. Concurrent makers may both run; one result stays.
    pub fn get_or_make(&self, id: u64, make: impl FnOnce() -> Bytes) -> Bytes {
        let _ = id;
        make()
    }
}

/// What the store needs to know of an object beyond its bytes: labels, selectable fields, schema generation. Given by the
/// process from its registry of kinds; pure.
pub type Extract = Arc<dyn Fn(&Key, &Value) -> Header + Send + Sync>;

/// Writes that happen all or none.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    pub writes: Vec<Write>,
}

#[derive(Clone, Debug)]
pub struct Write {
    pub key: Key,
    /// What must be true of the key now, or the whole transaction is rejected.
    pub expect: Expect,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// The object at exactly this revision.
    At(Revision),
    /// The key is read, not written: it must be absent or at this revision when the transaction commits.
    Any,
}

#[derive(Clone, Debug)]
pub enum Change {
    /// The object from now on; its resourceVersion is filled in by the writer.
    Put(Draft),
    /// Removes the object. The draft is its last state, as watchers see it in the DELETED event.
    Delete(Draft),
    /// Only checks `expect`.
    Check,
}

/// An object ready to be stored: serialised with a place for its resourceVersion, and its header.
#[derive(Clone, Debug)]
pub struct Draft {
    pub head: Bytes,
    pub tail: Bytes,
    pub header: Header,
}

impl Draft {
    /// Serialises `object` (any resourceVersion in it is dropped).
    pub fn new(object: &Value, header: Header) -> Self {
        let _ = (object, header);
        todo!()
    }
}

/// A committed transaction: its last revision, and the stored objects in the order of its writes (`None` for checks; the
/// last state for deletes).
#[derive(Clone, Debug)]
pub struct Committed {
    pub revision: Revision,
    pub objects: Vec<Option<Arc<Stored>>>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum Rejected {
    /// A write expected absence and the object exists.
    #[error("{} exists", .0.key.name)]
    Exists(Arc<Stored>),
    /// A write expected a revision and the object is at another, or gone.
    #[error("{} has changed", .key.name)]
    Changed { key: Key, current: Option<Arc<Stored>> },
    #[error("an object of {0} bytes is too large")]
    TooLarge(usize),
    /// The queue is full, the store is stopping, or the database does not answer.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
}

/// Why a read at a revision cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Older than the kept history; the oldest revision that can be read.
    #[error("revision is compacted; the oldest is {0}")]
    Compacted(Revision),
    /// Not reached within [`WAIT_FOR_REVISION`]; the current revision.
    #[error("revision is not reached; the current is {0}")]
    Future(Revision),
}

/// The handle to the store; clones share it.
#[derive(Clone)]
pub struct Store {
    _inner: Arc<()>,
}

impl Store {
    /// Loads the state and starts the writer and the fold.
    pub async fn open(engine: Arc<dyn Engine>, extract: Extract, tasks: &Tasks) -> Result<Self, engine::Error> {
        let _ = (engine, extract, tasks);
        todo!()
    }

    /// The state now: a consistent picture of everything, for as long as it is held.
    pub fn snapshot(&self) -> Snapshot {
        todo!()
    }

    /// A state that holds every write acknowledged anywhere before this call.
    pub async fn consistent(&self) -> Result<Snapshot, Rejected> {
        todo!()
    }

    /// A state not older than `revision`; waits for it at most [`WAIT_FOR_REVISION`].
    pub async fn at_least(&self, revision: Revision) -> Result<Snapshot, ReadError> {
        let _ = revision;
        todo!()
    }

    /// All objects of one resource as they were at exactly `revision`, in key order; for paging, memoised.
    pub fn exact(&self, resource: &str, revision: Revision) -> Result<Arc<[Arc<Stored>]>, ReadError> {
        let _ = (resource, revision);
        todo!()
    }

    /// Commits `transaction`, or says why not. Never blocks readers.
    pub async fn submit(&self, transaction: Transaction) -> Result<Committed, Rejected> {
        let _ = transaction;
        todo!()
    }

    /// Follows the changes after revision `from` in `scope`.
    pub fn watch(&self, scope: Scope, from: Revision) -> Result<Cursor, ReadError> {
        let _ = (scope, from);
        todo!()
    }

    pub fn revision(&self) -> Revision {
        todo!()
    }

    /// Wakes whenever the revision moves.
    pub fn revisions(&self) -> tokio::sync::watch::Receiver<Revision> {
        todo!()
    }

    /// Extracts all headers anew: a kind's schema or selectable fields changed.
    pub fn reindex(&self, resource: &str) {
        let _ = resource;
        todo!()
    }
}
