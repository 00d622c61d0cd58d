//! The journal in memory, for `up --store memory` and for tests: several stores over one are several servers.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use futures::FutureExt;
use tokio::sync::watch;

use super::{
    Key, Revision,
    engine::{Answer, Appended, Engine, Error, Loaded},
    journal::{Batch, Entry},
};

#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
    wakeups: watch::Sender<()>,
    is_shared: bool,
}

#[derive(Default)]
struct State {
    journal: Vec<Batch>,
    /// Every object as it was at `folded`.
    objects: BTreeMap<Key, Entry>,
    folded: Revision,
}

impl State {
    fn head(&self) -> Revision {
        self.journal.last().map_or(0, |it| it.last)
    }

    /// Drops what is folded. The last batch stays: it is the end of the chain.
    fn trim(&mut self) {
        let folded = self.journal.partition_point(|it| it.last < self.folded);
        self.journal.drain(..folded);
    }
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Memory {
    /// A journal that several stores append to. It keeps all, until it is trimmed.
    pub fn shared() -> Self {
        Self { is_shared: true, ..Self::default() }
    }

    pub fn trim(&self) {
        self.lock().trim();
    }
}

impl Engine for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn is_exclusive(&self) -> bool {
        !self.is_shared
    }

    fn load(&self) -> Answer<'_, Loaded> {
        let state = self.lock();
        let loaded = Loaded { revision: state.folded, objects: state.objects.values().cloned().collect(), batches: state.journal.clone() };
        async { Ok(loaded) }.boxed()
    }

    fn tail(&self, revision: Revision) -> Answer<'_, Vec<Batch>> {
        let state = self.lock();
        let from = state.journal.partition_point(|it| it.prev < revision);
        let tail = state.journal[from..].to_vec();
        async move { if tail.first().is_some_and(|it| it.prev != revision) { Err(Error::Broken(revision)) } else { Ok(tail) } }.boxed()
    }

    fn append<'a>(&'a self, batch: &'a Batch) -> Answer<'a, Appended> {
        let mut state = self.lock();
        let is_next = state.head() == batch.prev;
        if is_next {
            state.journal.push(batch.clone());
        }
        if self.is_shared {
            self.wakeups.send_replace(());
        }
        async move { Ok(if is_next { Appended::Committed } else { Appended::Behind }) }.boxed()
    }

    fn head(&self) -> Answer<'_, Revision> {
        let head = self.lock().head();
        async move { Ok(head) }.boxed()
    }

    fn wakeups(&self) -> watch::Receiver<()> {
        self.wakeups.subscribe()
    }

    fn fold<'a>(&'a self, _: Revision, to: Revision, changed: &'a [Entry]) -> Answer<'a, Revision> {
        let mut state = self.lock();
        let folded = state.folded;
        for entry in changed.iter().filter(|it| it.revision > folded) {
            match entry.is_delete {
                true => _ = state.objects.remove(&entry.key),
                false => _ = state.objects.insert(entry.key.clone(), entry.clone()),
            }
        }
        state.folded = state.folded.max(to);
        if !self.is_shared {
            state.trim();
        }
        let folded = state.folded;
        async move { Ok(folded) }.boxed()
    }
}
