//! The writer: the one place where revisions are made.
//!
//! It drains the queue of transactions, decides each on the state with the earlier ones of the same group laid over it, appends
//! the group as one batch, and only then publishes and answers. Deciding compares revisions and nothing else.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use super::{
    Change, Committed, Draft, Event, EventKind, Expect, Forms, Inner, Key, OBJECT_MAX, Rejected, Revision, Stored, Transaction, Write,
    cache::State,
    engine::{Appended, Error},
    journal::{Batch, Entry},
};
use crate::base::Tasks;

/// Transactions in one append: beyond this the append itself takes longer than the sync that it saves.
const GROUP_MAX: usize = 256;
/// Transactions that wait; each holds at most an object of 1.5 MiB, usually 3 KiB: 12 MiB.
pub(super) const QUEUE: usize = 4096;
/// Attempts to append a group while the database fails, 50 ms apart: about what a restart of it takes.
const ATTEMPTS: u32 = 100;
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// How often the journal of several writers is looked at without being woken: a wake-up may get lost.
const PROBE_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Job {
    pub transaction: Transaction,
    pub answer: oneshot::Sender<Verdict>,
}

type Verdict = Result<Committed, Rejected>;

pub(super) struct Writer {
    inner: Arc<Inner>,
    jobs: mpsc::Receiver<Job>,
}

impl Writer {
    pub fn new(inner: Arc<Inner>, jobs: mpsc::Receiver<Job>) -> Self {
        Self { inner, jobs }
    }

    /// Runs until `tasks` stop; what is queued by then is still committed.
    pub async fn run(mut self, tasks: Tasks) {
        let mut wakeups = self.inner.engine.wakeups();
        // What was appended since the load woke nobody.
        wakeups.mark_changed();
        let mut ticks = tokio::time::interval(PROBE_EVERY);
        let mut group = Vec::with_capacity(GROUP_MAX);
        loop {
            tokio::select! {
                taken = self.jobs.recv_many(&mut group, GROUP_MAX) => match taken {
                    0 => return,
                    _ => self.commit(std::mem::take(&mut group)).await,
                },
                woken = wakeups.changed() => match woken {
                    Ok(()) => _ = self.catch_up().await,
                    Err(_) => return,
                },
                () = tasks.stopping(), if !self.jobs.is_closed() => self.jobs.close(),
                _ = ticks.tick(), if !self.inner.engine.is_exclusive() => {
                    let _ = self.catch_up().await;
                }
            }
        }
    }

    /// Commits a group of transactions, in one append, and answers them.
    async fn commit(&self, jobs: Vec<Job>) {
        for _ in 0..ATTEMPTS {
            let state = self.inner.state.load_full();
            let mut group = Group::new(&state);
            let verdicts: Vec<Verdict> = jobs.iter().map(|job| group.decide(&job.transaction)).collect();
            match self.append(&group).await {
                Ok(Appended::Committed) => {
                    self.inner.publish(group.revision, group.changes);
                    return jobs.into_iter().zip(verdicts).for_each(|(job, verdict)| _ = job.answer.send(verdict));
                }
                Ok(Appended::Behind) => _ = self.catch_up().await,
                Err(error) => {
                    tracing::warn!(%error, "the database did not take an append; trying again");
                    tokio::time::sleep(RETRY_AFTER).await;
                    let _ = self.catch_up().await;
                }
            }
        }
        for job in jobs {
            let _ = job.answer.send(Err(Rejected::Unavailable("the database does not answer".to_owned())));
        }
    }

    /// Appends a group. Where an error leaves it open whether the batch is there, the journal is asked for its id.
    async fn append(&self, group: &Group<'_>) -> Result<Appended, Error> {
        if group.changes.is_empty() {
            return Ok(Appended::Committed);
        }
        let batch = group.batch(self.inner.next_batch_id());
        match self.inner.engine.append(&batch).await {
            Ok(appended) => Ok(appended),
            Err(error) => {
                let tail = self.inner.engine.tail(batch.prev).await.map_err(|_| error.clone())?;
                if tail.first().is_some_and(|it| it.id == batch.id) { Ok(Appended::Committed) } else { Err(error) }
            }
        }
    }

    /// Applies what others have appended.
    async fn catch_up(&self) -> Result<(), Error> {
        let revision = self.inner.state.load().revision;
        for batch in self.inner.engine.tail(revision).await? {
            if batch.prev != self.inner.state.load().revision {
                return Err(Error::Damaged(format!("a batch begins at {}, the state is at {}", batch.prev, self.inner.state.load().revision)));
            }
            let changes = batch.entries.iter().map(|it| (Arc::new(self.inner.stored(it)), it.is_delete)).collect();
            self.inner.publish(batch.last, changes);
        }
        Ok(())
    }
}

/// Transactions that are decided but not yet appended.
struct Group<'a> {
    state: &'a State,
    /// The newest state of the keys that the group writes; `None` is deleted.
    overlay: HashMap<Key, Option<Arc<Stored>>>,
    /// Each change, and whether it is a deletion.
    changes: Vec<(Arc<Stored>, bool)>,
    revision: Revision,
}

impl<'a> Group<'a> {
    fn new(state: &'a State) -> Self {
        Self { state, overlay: HashMap::new(), changes: Vec::new(), revision: state.revision }
    }

    fn batch(&self, id: i64) -> Batch {
        Batch {
            prev: self.state.revision,
            last: self.revision,
            id,
            entries: self.changes.iter().map(|(object, is_delete)| object.entry(*is_delete)).collect(),
        }
    }

    /// All writes of the transaction, or none.
    fn decide(&mut self, transaction: &Transaction) -> Verdict {
        for write in &transaction.writes {
            self.check(write)?;
        }
        let objects = transaction.writes.iter().map(|write| self.write(write)).collect();
        Ok(Committed { revision: self.revision, objects })
    }

    fn current(&self, key: &Key) -> Option<&Arc<Stored>> {
        match self.overlay.get(key) {
            Some(current) => current.as_ref(),
            None => self.state.get(key),
        }
    }

    fn check(&self, write: &Write) -> Result<(), Rejected> {
        if let Change::Put(draft) | Change::Delete(draft) = &write.change
            && draft.len() > OBJECT_MAX
        {
            return Err(Rejected::TooLarge(draft.len()));
        }
        match (write.expect, self.current(&write.key)) {
            (Expect::Any, _) | (Expect::Absent, None) => Ok(()),
            (Expect::Absent, Some(current)) => Err(Rejected::Exists(current.clone())),
            (Expect::At(revision), Some(current)) if current.revision == revision => Ok(()),
            (Expect::At(_), current) => Err(Rejected::Changed { key: write.key.clone(), current: current.cloned() }),
        }
    }

    fn write(&mut self, write: &Write) -> Option<Arc<Stored>> {
        let (draft, is_delete) = match &write.change {
            Change::Check => return None,
            Change::Put(draft) => (draft, false),
            Change::Delete(draft) => (draft, true),
        };
        self.revision += 1;
        let object = Arc::new(draft.stored(write.key.clone(), self.revision));
        self.changes.push((object.clone(), is_delete));
        self.overlay.insert(write.key.clone(), (!is_delete).then(|| object.clone()));
        Some(object)
    }
}

impl Draft {
    fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// The object at a revision, which is written into its place.
    fn stored(&self, key: Key, revision: Revision) -> Stored {
        let mut json = BytesMut::with_capacity(self.len() + 40);
        json.extend_from_slice(&self.head);
        json.extend_from_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
        json.extend_from_slice(&self.tail);
        Stored { key, revision, json: json.freeze(), header: self.header.clone(), forms: Forms::default() }
    }
}

impl Inner {
    /// Makes a committed batch visible: the state first, then the events, then the revision that bookmarks may name.
    fn publish(&self, revision: Revision, changes: Vec<(Arc<Stored>, bool)>) {
        if changes.is_empty() {
            return;
        }
        let old = self.state.load_full();
        let mut newest: HashMap<Key, Option<Arc<Stored>>> = HashMap::new();
        let mut events = Vec::with_capacity(changes.len());
        for (object, is_delete) in changes {
            let previous = newest.get(&object.key).cloned().unwrap_or_else(|| old.get(&object.key).cloned());
            let kind = match (is_delete, &previous) {
                (true, _) => EventKind::Deleted,
                (false, None) => EventKind::Added,
                (false, Some(_)) => EventKind::Modified,
            };
            newest.insert(object.key.clone(), (!is_delete).then(|| object.clone()));
            events.push(Arc::new(Event { kind, revision: object.revision, object, previous, frames: Forms::default() }));
        }
        self.note_dirty(&events);
        let mut state = State::clone(&old);
        state.apply(revision, newest);
        self.state.store(Arc::new(state));
        self.topics.publish(&events, self.floor, Instant::now());
        self.revisions.send_replace(revision);
    }

    /// An entry of the journal as an object in memory.
    pub(super) fn stored(&self, entry: &Entry) -> Stored {
        let value = serde_json::from_slice(&entry.json).unwrap_or_default();
        let mut header = (self.extract)(&entry.key, &value);
        header.schema = entry.schema;
        Stored { key: entry.key.clone(), revision: entry.revision, json: Bytes::clone(&entry.json), header, forms: Forms::default() }
    }
}
