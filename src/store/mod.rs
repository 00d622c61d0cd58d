//! The store: the database is a conditional-append journal, everything else an in-memory fold of it.
//!
//! One writer task per process commits groups of transactions in one append; revisions are contiguous and in commit order;
//! every read is served from memory. The design and its measurements: ARCHITECTURE.md, "The store".

pub mod archive;
#[cfg(test)]
mod battery;
pub mod cache;
pub mod engine;
pub mod journal;
mod load;
pub mod memory;
pub mod postgres;
pub mod sqlite;
pub mod watch;
pub mod writer;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};

use self::{
    cache::State,
    journal::{Before, Entry},
    watch::Topics,
    writer::Writer,
};
use crate::{
    base::{Tasks, backoff::Backoff},
    meta::{Json, Map, Value},
};

pub use self::{
    cache::{Snapshot, Stamp},
    engine::Engine,
    watch::{Cursor, Event, EventKind, Scope},
};

/// Counts the writes of the whole store, in commit order. The wire's resourceVersion is its decimal text.
pub type Revision = u64;

/// Objects (as JSON, without resourceVersion) larger than this are refused, as etcd refuses them.
pub const OBJECT_MAX: usize = 3 << 19;
/// The bytes of all objects together beyond which nothing is created (etcd's `--quota-backend-bytes`). Memory holds about a quarter more,
/// and the events of the last minutes.
pub const QUOTA: usize = 2 << 30;
/// What updates may take beyond the quota, so that finalizers, deletions and leases go on: an eighth.
const HEADROOM: usize = 8;
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
    pub json: Json,
    /// Extracted once, when the object was written or loaded.
    pub header: Header,
    /// Other forms of the object (another version, a table row, protobuf), made once by the API floor, which shares them among its versions.
    pub forms: Arc<Forms>,
}

impl Stored {
    /// The object as a tree.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json.text()).unwrap_or_default()
    }

    /// The write that removes the object, as long as nobody has changed it.
    pub fn removal(&self) -> Write {
        let change = Change::Delete(Draft::new(&self.value(), self.header.clone()));
        Write { key: self.key.clone(), expect: Expect::At(self.revision), change }
    }

    /// The same object at a later revision: what watchers are told who see it leave their selection.
    pub fn moved(&self, revision: Revision) -> Self {
        let member = |it: Revision| format!("\"resourceVersion\":\"{it}\"");
        let (old, new) = (member(self.revision), member(revision));
        let text = self.json.text();
        let at = text.windows(old.len()).position(|it| it == old.as_bytes());
        let json = at.map(|at| [&text[..at], new.as_bytes(), &text[at + old.len()..]].concat().into()).unwrap_or(text);
        Self { key: self.key.clone(), revision, json: json.into(), header: self.header.clone(), forms: Arc::default() }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Header {
    pub uid: Arc<str>,
    /// Sorted by key.
    pub labels: Vec<(Box<str>, Box<str>)>,
    /// The selectable fields of the stored version, sorted by name, without `metadata.name` and `metadata.namespace`.
    pub fields: Vec<(Box<str>, Box<str>)>,
    /// The version and schema of its bytes ([`crate::kinds::Version::generation`]).
    pub schema: u64,
}

/// Encoded forms of one object, by the API floor's own numbering of forms; a handful at the most.
#[derive(Debug, Default)]
pub struct Forms(Mutex<Vec<(u64, Bytes)>>);

/// Forms kept of one object: its versions, a table row, protobuf, metadata only.
const FORMS_MAX: usize = 6;

impl Forms {
    pub fn get(&self, id: u64) -> Option<Bytes> {
        let forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forms.iter().find(|(it, _)| *it == id).map(|(_, bytes)| bytes.clone())
    }

    /// The form `id`, made by `make` the first time. Concurrent makers may both run; one result stays.
    pub fn get_or_make(&self, id: u64, make: impl FnOnce() -> Bytes) -> Bytes {
        if let Some(bytes) = self.get(id) {
            return bytes;
        }
        let bytes = make();
        let mut forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = forms.iter().find(|(it, _)| *it == id) {
            return bytes.clone();
        }
        if forms.len() == FORMS_MAX {
            forms.remove(0);
        }
        forms.push((id, bytes.clone()));
        bytes
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
    /// Anything.
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
    /// Serialises `object` (any resourceVersion in it is dropped) with `apiVersion`, `kind` and `metadata` in front.
    pub fn new(object: &Value, header: Header) -> Self {
        let empty = Map::new();
        let object = object.as_object().unwrap_or(&empty);
        let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
        let (mut head, mut tail) = (String::from("{"), String::with_capacity(2048));
        for name in ["apiVersion", "kind"] {
            if let Some(value) = object.get(name) {
                head.push_str(&format!("\"{name}\":{value},"));
            }
        }
        head.push_str("\"metadata\":{");
        for (name, value) in metadata.iter().filter(|(name, _)| *name != "resourceVersion") {
            push_member(&mut tail, name, value);
        }
        tail.push('}');
        for (name, value) in object.iter().filter(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata")) {
            push_member(&mut tail, name, value);
        }
        tail.push('}');
        Self { head: head.into(), tail: tail.into(), header }
    }
}

fn push_member(out: &mut String, name: &str, value: &Value) {
    // A name is a JSON string: it may need escapes.
    out.push_str(&format!(",{}:{value}", Value::from(name)));
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
    /// All objects together would take more than the quota.
    #[error("the store's quota of {0} bytes is exceeded; delete something, or raise --store-quota")]
    Full(usize),
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

/// What a store says of itself, for those who look after it.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    pub engine: &'static str,
    pub revision: Revision,
    /// Up to here the database's table of objects is what the journal says.
    pub folded: Revision,
    /// Of all objects.
    pub bytes: usize,
    pub quota: usize,
    /// Whether the database answered when it was last asked.
    pub answers: bool,
}

/// The handle to the store; clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    jobs: mpsc::Sender<writer::Job>,
}

/// What the handle, the writer and the fold share.
struct Inner {
    engine: Arc<dyn Engine>,
    extract: Extract,
    state: ArcSwap<State>,
    topics: Topics,
    revisions: tokio::sync::watch::Sender<Revision>,
    /// See [`QUOTA`].
    quota: AtomicUsize,
    batch_ids: AtomicI64,
    /// How far the database's table of objects is folded, and the keys that changed since.
    folded: AtomicU64,
    /// See [`Condition::answers`].
    answers: AtomicBool,
    dirty: Mutex<HashMap<Key, Entry>>,
    /// What is after this revision was written in the last minutes.
    recent: AtomicU64,
    probes: Probes,
    /// Asks the writer to look what others have appended.
    nudge: Notify,
    /// Lists at an exact revision that pages are read from, newest last.
    pages: Mutex<VecDeque<(Arc<str>, Revision, Page)>>,
}

type Page = Arc<[Arc<Stored>]>;

/// Exact lists kept for paging: clients that page at the same time.
const PAGES_MAX: usize = 16;
/// How often changed objects are folded into the database's table of objects.
const FOLD_EVERY: Duration = Duration::from_secs(1);
/// How often old events are dropped when nothing happens.
const TRIM_EVERY: Duration = Duration::from_secs(5);

impl Store {
    /// Loads the state and starts the writer and the fold.
    pub async fn open(engine: Arc<dyn Engine>, extract: Extract, tasks: &Tasks) -> Result<Self, engine::Error> {
        let inner = Arc::new(Inner::new(engine, extract));
        inner.load(true).await?;
        let (jobs, queue) = mpsc::channel(writer::QUEUE);
        tasks.spawn_finishing("store-writer", Writer::new(inner.clone(), queue).run(tasks.clone()));
        tasks.spawn_finishing("store-fold", Inner::fold_until(inner.clone(), tasks.clone()));
        Ok(Self { inner, jobs })
    }

    /// Sets the bytes that all objects may take.
    pub fn set_quota(&self, bytes: usize) {
        self.inner.quota.store(bytes, Ordering::Relaxed);
    }

    pub fn condition(&self) -> Condition {
        let (inner, snapshot) = (&self.inner, self.snapshot());
        Condition {
            engine: inner.engine.name(),
            revision: snapshot.revision(),
            folded: inner.folded.load(Ordering::Relaxed),
            bytes: snapshot.bytes(),
            quota: inner.quota.load(Ordering::Relaxed),
            answers: inner.answers.load(Ordering::Relaxed),
        }
    }

    /// The state now: a consistent picture of everything, for as long as it is held.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.inner.state.load_full())
    }

    /// A state that holds every write acknowledged anywhere before this call. While the database does not answer, it waits.
    pub async fn consistent(&self) -> Result<Snapshot, Rejected> {
        if self.inner.engine.is_exclusive() {
            return Ok(self.snapshot());
        }
        let silent = |_| Rejected::Unavailable("the database does not answer".to_owned());
        let asked = tokio::time::timeout(writer::GIVE_UP_AFTER, self.inner.probes.ask(&*self.inner.engine)).await.map_err(silent)?;
        let head = asked.map_err(|it| Rejected::Unavailable(it.to_string()))?;
        if head > self.revision() {
            self.inner.nudge.notify_one();
        }
        self.at_least(head).await.map_err(|it| Rejected::Unavailable(it.to_string()))
    }

    /// A state not older than `revision`; waits for it at most [`WAIT_FOR_REVISION`].
    pub async fn at_least(&self, revision: Revision) -> Result<Snapshot, ReadError> {
        let mut revisions = self.revisions();
        let reached = tokio::time::timeout(WAIT_FOR_REVISION, revisions.wait_for(|it| *it >= revision)).await.is_ok_and(|it| it.is_ok());
        if reached { Ok(self.snapshot()) } else { Err(ReadError::Future(self.revision())) }
    }

    /// All objects of one resource as they were at exactly `revision`, in key order; for paging, memoised.
    pub fn exact(&self, resource: &str, revision: Revision) -> Result<Page, ReadError> {
        let snapshot = self.snapshot();
        if revision > snapshot.revision() {
            return Err(ReadError::Future(snapshot.revision()));
        }
        self.inner.topics.check_age(revision)?;
        let mut pages = lock(&self.inner.pages);
        if let Some((_, _, page)) = pages.iter().find(|(its, at, _)| **its == *resource && *at == revision) {
            return Ok(page.clone());
        }
        let mut objects = snapshot.0.resources.get(resource).cloned().unwrap_or_default();
        // The topics may be ahead of the snapshot; undoing a change that it does not have yet does no harm.
        for event in self.inner.topics.undo(resource, revision)? {
            let place = (event.object.key.namespace.clone(), event.object.key.name.clone());
            match &event.previous {
                Some(previous) => objects.insert_mut(place, previous.clone()),
                None => _ = objects.remove_mut(&place),
            }
        }
        let page: Page = objects.values().cloned().collect();
        if pages.len() == PAGES_MAX {
            pages.pop_front();
        }
        pages.push_back((resource.into(), revision, page.clone()));
        Ok(page)
    }

    /// Commits `transaction`, or says why not. Never blocks readers.
    pub async fn submit(&self, transaction: Transaction) -> Result<Committed, Rejected> {
        let stopping = || Rejected::Unavailable("the store is stopping".to_owned());
        let (answer, answered) = oneshot::channel();
        self.jobs.send(writer::Job { transaction, answer }).await.map_err(|_| stopping())?;
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Follows the changes after revision `from` in `scope`.
    pub fn watch(&self, scope: Scope, from: Revision) -> Result<Cursor, ReadError> {
        // A state can be read a moment before the topics tell of it; the cursor passes over what its reader has seen.
        let current = self.snapshot().revision();
        if from > current {
            return Err(ReadError::Future(current));
        }
        self.inner.topics.subscribe(&scope, from, self.revisions())
    }

    pub fn revision(&self) -> Revision {
        *self.inner.revisions.borrow()
    }

    /// Wakes whenever the revision moves.
    pub fn revisions(&self) -> tokio::sync::watch::Receiver<Revision> {
        self.inner.revisions.subscribe()
    }
}

impl Inner {
    fn new(engine: Arc<dyn Engine>, extract: Extract) -> Self {
        Self {
            engine,
            extract,
            state: ArcSwap::default(),
            topics: Topics::default(),
            revisions: tokio::sync::watch::Sender::new(0),
            quota: AtomicUsize::new(QUOTA),
            batch_ids: AtomicI64::new(uuid::Uuid::new_v4().as_u64_pair().0 as i64),
            folded: AtomicU64::new(0),
            answers: AtomicBool::new(true),
            dirty: Mutex::default(),
            recent: AtomicU64::new(0),
            probes: Probes::default(),
            nudge: Notify::new(),
            pages: Mutex::default(),
        }
    }

    fn next_batch_id(&self) -> i64 {
        self.batch_ids.fetch_add(1, Ordering::Relaxed)
    }

    fn note_dirty(&self, events: &[Arc<Event>]) {
        let entries = events.iter().map(|it| (it.object.key.clone(), it.object.entry(it.kind == EventKind::Deleted, Before::Recent)));
        lock(&self.dirty).extend(entries);
    }

    /// Folds once a second, and once more at the end, so that a start after a clean stop has nothing to replay.
    async fn fold_until(inner: Arc<Self>, tasks: Tasks) {
        let (mut folds, mut trims) = (tokio::time::interval(FOLD_EVERY), tokio::time::interval(TRIM_EVERY));
        loop {
            let is_last = tokio::select! {
                _ = folds.tick() => false,
                _ = trims.tick() => {
                    let aged = inner.topics.trim(Instant::now(), *inner.revisions.borrow());
                    lock(&inner.pages).retain(|(_, revision, _)| *revision >= aged);
                    inner.recent.fetch_max(aged, Ordering::Relaxed);
                    continue;
                }
                () = tasks.stopping() => true,
            };
            if let Err(error) = inner.fold().await {
                tracing::warn!(%error, "the fold failed; trying again");
            }
            if is_last {
                return;
            }
        }
    }

    /// Folds what changed into the table of objects.
    async fn fold(&self) -> Result<(), engine::Error> {
        let changed: Vec<Entry> = lock(&self.dirty).values().cloned().collect();
        let Some(to) = changed.iter().map(|it| it.revision).max() else { return Ok(()) };
        let from = self.folded.load(Ordering::Relaxed);
        let folded = self.engine.fold(from, to, &changed).await?;
        if folded < from {
            self.refill(folded).await?;
        }
        self.folded.store(folded, Ordering::Relaxed);
        lock(&self.dirty).retain(|_, it| it.revision > folded);
        Ok(())
    }

    /// A fold that was not durable yet is gone with a crash of the database: what changed since is read from the journal again.
    async fn refill(&self, folded: Revision) -> Result<(), engine::Error> {
        let known = *self.revisions.borrow();
        let batches = self.engine.tail(folded).await?;
        let mut dirty = lock(&self.dirty);
        // What the writer has not published yet, it will note by itself.
        for entry in batches.into_iter().filter(|it| it.last <= known).flat_map(|it| it.entries) {
            let is_newer = dirty.get(&entry.key).is_none_or(|it| it.revision < entry.revision);
            if is_newer {
                dirty.insert(entry.key.clone(), entry);
            }
        }
        Ok(())
    }
}

/// Questions for the newest revision that share an answer: each is answered by a probe that began after it was asked.
#[derive(Default)]
struct Probes {
    begun: AtomicU64,
    /// The last probe that was answered: its number, and the revision.
    last: tokio::sync::Mutex<(u64, Revision)>,
}

impl Probes {
    /// Asks until there is an answer, or never can be one.
    async fn ask(&self, engine: &dyn Engine) -> Result<Revision, engine::Error> {
        let begun = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        let mut backoff = Backoff::new(writer::RETRY_AFTER, writer::RETRY_AFTER_MOST);
        while last.0 <= begun {
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            match engine.head().await {
                Ok(head) => *last = (number, head),
                Err(error @ engine::Error::Outdated(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the newest revision cannot be read; trying again");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
        Ok(last.1)
    }
}

/// No code panics while it holds a lock of this module, so that a poisoned one is still whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
