//! The writer: the one place where revisions are made.
//!
//! It drains the queue of transactions, decides each on the state with the earlier ones of the same group laid over it, appends
//! the group as one batch, and only then publishes and answers. Deciding compares revisions and nothing else.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio::sync::{mpsc, oneshot};

use super::{
    Change, Committed, Draft, Event, EventKind, Expect, HEADROOM, Inner, Key, OBJECT_MAX, Rejected, Revision, Stored, Transaction, Write,
    cache::Overlay,
    engine::{Appended, Error},
    journal::{Batch, Before, Entry},
};
use crate::base::{Tasks, backoff::Backoff};

/// Transactions in one append: beyond this the append itself takes longer than the sync that it saves.
const GROUP_MAX: usize = 256;
/// Transactions that wait; each holds at most an object of 1.5 MiB, usually 3 KiB: 12 MiB.
pub(super) const QUEUE: usize = 4096;
/// How long a group is tried while the database fails: what a restart or a failover of it takes, and less than clients wait.
pub(super) const GIVE_UP_AFTER: Duration = Duration::from_secs(30);
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(50);
pub(super) const RETRY_AFTER_MOST: Duration = Duration::from_secs(1);

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
                    _ => {
                        self.gather(&mut group).await;
                        self.commit(std::mem::take(&mut group)).await;
                    }
                },
                woken = wakeups.changed() => match woken {
                    Ok(()) => self.catch_up().await,
                    Err(_) => return,
                },
                () = self.inner.nudge.notified() => self.catch_up().await,
                () = tasks.stopping(), if !self.jobs.is_closed() => self.jobs.close(),
                _ = ticks.tick(), if !self.inner.engine.is_exclusive() => self.catch_up().await,
            }
        }
    }

    /// Those who were just answered run first: what they write next shares the append.
    async fn gather(&mut self, group: &mut Vec<Job>) {
        tokio::task::yield_now().await;
        while group.len() < GROUP_MAX
            && let Ok(job) = self.jobs.try_recv()
        {
            group.push(job);
        }
    }

    /// Commits a group of transactions, in one append, and answers them.
    async fn commit(&self, jobs: Vec<Job>) {
        let mut why = "the database does not answer; whether the write is stored is not known".to_owned();
        let ends = tokio::time::Instant::now() + GIVE_UP_AFTER;
        while tokio::time::Instant::now() < ends {
            let mut group = Group::new(&self.inner);
            let verdicts: Vec<Verdict> = jobs.iter().map(|job| group.decide(&job.transaction)).collect();
            match self.append(&group, ends).await {
                Fate::Overtaken => continue,
                Fate::Refused(outdated) => {
                    why = outdated;
                    break;
                }
                Fate::Committed => self.inner.publish(group.overlay),
                Fate::Loaded => (),
            }
            return jobs.into_iter().zip(verdicts).for_each(|(job, verdict)| _ = job.answer.send(verdict));
        }
        for job in jobs {
            let _ = job.answer.send(Err(Rejected::Unavailable(why.clone())));
        }
    }

    /// Appends a group. Where an error leaves it open whether the batch is there, the journal is asked for its id, and the very same
    /// batch is sent again: whichever arrives, it takes the same place.
    async fn append(&self, group: &Group, ends: tokio::time::Instant) -> Fate {
        if group.overlay.events.is_empty() {
            return self.confirm(group).await;
        }
        let batch = group.batch(self.inner.next_batch_id());
        let mut backoff = Backoff::new(RETRY_AFTER, RETRY_AFTER_MOST);
        while tokio::time::Instant::now() < ends {
            let followers = match self.inner.engine.append(&batch).await {
                Ok(Appended::Committed) => return Fate::Committed,
                Ok(Appended::Behind) => self.inner.engine.claim(batch.prev).await,
                Err(error) => {
                    tracing::warn!(%error, "the database did not take an append; trying again");
                    tokio::time::sleep(backoff.next_delay()).await;
                    self.inner.engine.tail(batch.prev).await
                }
            };
            match followers {
                Ok(batches) if batches.first().is_some_and(|it| it.id == batch.id) => {
                    let _ = self.inner.engine.release().await;
                    self.inner.nudge.notify_one();
                    return Fate::Committed;
                }
                Ok(batches) if !batches.is_empty() => {
                    self.apply(batches).await;
                    return Fate::Overtaken;
                }
                Err(Error::Outdated(why)) => return Fate::Refused(why),
                Err(Error::Broken(_)) => return if self.reload().await.contains(&batch.id) { Fate::Loaded } else { Fate::Overtaken },
                Ok(_) | Err(_) => (),
            }
        }
        Fate::Overtaken
    }

    /// A group that writes nothing was decided rightly if nothing came between; an append would have shown it.
    async fn confirm(&self, group: &Group) -> Fate {
        if self.inner.engine.is_exclusive() {
            return Fate::Committed;
        }
        let _ = self.inner.engine.release().await;
        match self.inner.engine.head().await {
            Ok(head) if head == group.overlay.revision => return Fate::Committed,
            Ok(_) => (),
            Err(Error::Outdated(why)) => return Fate::Refused(why),
            Err(_) => tokio::time::sleep(RETRY_AFTER).await,
        }
        self.catch_up().await;
        Fate::Overtaken
    }

    /// Applies what others have appended.
    async fn catch_up(&self) {
        let tail = self.inner.engine.tail(self.inner.state.load().revision).await;
        self.inner.answers.store(!matches!(tail, Err(Error::Database(_) | Error::Unfit(_) | Error::Outdated(_))), Ordering::Relaxed);
        match tail {
            Ok(batches) => self.apply(batches).await,
            Err(Error::Broken(_)) => _ = self.reload().await,
            Err(error) => tracing::warn!(%error, "the journal cannot be read; trying again"),
        }
    }

    async fn apply(&self, batches: Vec<Batch>) {
        for batch in batches {
            let mut overlay = Overlay::new(self.inner.state.load_full());
            if batch.prev != overlay.revision {
                tracing::error!(prev = batch.prev, state = overlay.revision, "the journal has a gap");
                self.reload().await;
                return;
            }
            batch.entries.iter().for_each(|it| overlay.put(Arc::new(self.inner.stored(it)), it.is_delete));
            overlay.revision = batch.last;
            self.inner.publish(overlay);
        }
    }

    /// Starts over from the database, whose journal does not continue what is known here; until it answers. Returns the ids of recent
    /// batches.
    async fn reload(&self) -> Vec<i64> {
        let mut backoff = Backoff::new(RETRY_AFTER, RETRY_AFTER_MOST);
        loop {
            match self.inner.load(false).await {
                Ok(ids) => return ids,
                Err(error) => tracing::warn!(%error, "the state cannot be loaded; trying again"),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}

/// What became of a group.
enum Fate {
    /// It is in the journal, or writes nothing.
    Committed,
    /// It is in the journal, and in the state already.
    Loaded,
    /// It is not there; others were first, and it must be decided anew.
    Overtaken,
    /// It is not there, and this program writes nothing any more.
    Refused(String),
}

/// Transactions that are decided but not yet appended.
struct Group {
    overlay: Overlay,
    /// What is after this is in the journal not long ago.
    recent: Revision,
    quota: usize,
}

impl Group {
    fn new(inner: &Inner) -> Self {
        let (recent, quota) = (inner.recent.load(Ordering::Relaxed), inner.quota.load(Ordering::Relaxed));
        Self { overlay: Overlay::new(inner.state.load_full()), recent, quota }
    }

    fn batch(&self, id: i64) -> Batch {
        let entry = |it: &Arc<Event>| it.object.entry(it.kind == EventKind::Deleted, self.before(it.previous.as_deref()));
        let entries = self.overlay.events.iter().map(entry).collect();
        Batch { prev: self.overlay.base(), last: self.overlay.revision, id, entries }
    }

    /// What the journal must say of what was before a change.
    fn before(&self, previous: Option<&Stored>) -> Before {
        match previous {
            None => Before::Absent,
            Some(it) if it.revision > self.recent => Before::Recent,
            Some(it) => Before::Object { revision: it.revision, schema: it.header.schema, json: it.json.clone() },
        }
    }

    /// All writes of the transaction, or none.
    fn decide(&mut self, transaction: &Transaction) -> Verdict {
        transaction.writes.iter().try_for_each(|write| self.check(write))?;
        let objects = transaction.writes.iter().map(|write| self.write(write)).collect();
        Ok(Committed { revision: self.overlay.revision, objects })
    }

    fn check(&self, write: &Write) -> Result<(), Rejected> {
        let current = self.overlay.get(&write.key);
        match (write.expect, current) {
            (Expect::Absent, Some(current)) => return Err(Rejected::Exists(current.clone())),
            (Expect::At(revision), current) if current.is_none_or(|it| it.revision != revision) => {
                return Err(Rejected::Changed { key: write.key.clone(), current: current.cloned() });
            }
            _ => (),
        }
        match &write.change {
            Change::Put(draft) | Change::Delete(draft) if draft.len() > OBJECT_MAX => Err(Rejected::TooLarge(draft.len())),
            Change::Put(draft) => self.check_quota(draft, current.map(|it| it.json.len())),
            Change::Delete(_) | Change::Check => Ok(()),
        }
    }

    /// Nothing is created beyond the quota. What is there may still change, within the headroom, or become smaller.
    fn check_quota(&self, draft: &Draft, old: Option<usize>) -> Result<(), Rejected> {
        let limit = if old.is_none() { self.quota } else { self.quota + self.quota / HEADROOM };
        let growth = draft.len().saturating_sub(old.unwrap_or_default());
        if growth > 0 && self.overlay.bytes + growth > limit { Err(Rejected::Full(self.quota)) } else { Ok(()) }
    }

    fn write(&mut self, write: &Write) -> Option<Arc<Stored>> {
        let (draft, is_delete) = match &write.change {
            Change::Check => return None,
            Change::Put(draft) => (draft, false),
            Change::Delete(draft) => (draft, true),
        };
        let object = Arc::new(draft.stored(write.key.clone(), self.overlay.revision + 1));
        self.overlay.put(object.clone(), is_delete);
        Some(object)
    }
}

impl Draft {
    fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// The object at a revision, which is written into its place.
    pub(super) fn stored(&self, key: Key, revision: Revision) -> Stored {
        let mut json = BytesMut::with_capacity(self.len() + 40);
        json.extend_from_slice(&self.head);
        json.extend_from_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
        json.extend_from_slice(&self.tail);
        Stored { key, revision, json: json.freeze().into(), header: self.header.clone(), forms: Arc::default() }
    }
}

impl Inner {
    /// Makes a committed batch visible: the state first, then the events, then the revision that bookmarks may name. After a jump
    /// nothing older can be told.
    fn publish(&self, overlay: Overlay) {
        if overlay.revision == overlay.base() {
            return;
        }
        let (state, events) = overlay.into_state();
        let revision = state.revision;
        self.note_dirty(&events);
        self.state.store(Arc::new(state));
        match events.is_empty() {
            true => self.topics.reset(revision, &HashMap::new()),
            false => self.topics.publish(&events, Instant::now()),
        }
        self.revisions.send_replace(revision);
    }

    /// An entry of the journal as an object in memory.
    pub(super) fn stored(&self, entry: &Entry) -> Stored {
        let value = serde_json::from_slice(&entry.json.text()).unwrap_or_default();
        let mut header = (self.extract)(&entry.key, &value);
        header.schema = entry.schema;
        Stored { key: entry.key.clone(), revision: entry.revision, json: entry.json.clone(), header, forms: Arc::default() }
    }
}
