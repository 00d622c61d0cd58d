//! The journal in memory: for tests, and `up --store memory`. Several stores over one are several servers.

use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use tokio::sync::watch;

use super::{
    Revision,
    engine::{Answer, Appended, Engine, Error, Loaded},
    journal::{Batch, Entry},
};

/// What goes wrong with the next append, for tests of the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The append fails and nothing is written.
    Lost,
    /// The append is written, but its answer is an error.
    Ambiguous,
    /// The append is written, and nobody is woken.
    Unheard,
}

#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
    wakeups: watch::Sender<()>,
    is_shared: bool,
}

#[derive(Default)]
struct State {
    journal: Vec<Batch>,
    faults: Vec<Fault>,
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    /// A journal that several stores append to.
    pub fn shared() -> Self {
        Self { is_shared: true, ..Self::default() }
    }

    /// Makes the next appends fail, the last of `faults` first.
    pub fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// The whole journal so far.
    pub fn journal(&self) -> Vec<Batch> {
        self.lock().journal.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let loaded = Loaded { batches: self.journal(), ..Loaded::default() };
        async { Ok(loaded) }.boxed()
    }

    fn tail(&self, revision: Revision) -> Answer<'_, Vec<Batch>> {
        let state = self.lock();
        let from = state.journal.partition_point(|it| it.last <= revision);
        let tail = state.journal[from..].to_vec();
        async { Ok(tail) }.boxed()
    }

    fn append<'a>(&'a self, batch: &'a Batch) -> Answer<'a, Appended> {
        let fault = self.lock().faults.pop();
        let appended = {
            let mut state = self.lock();
            let head = state.journal.last().map_or(0, |it| it.last);
            match fault {
                Some(Fault::Lost) => Err(Error::Database("lost".to_owned())),
                _ if head != batch.prev => Ok(Appended::Behind),
                _ => {
                    state.journal.push(batch.clone());
                    if fault == Some(Fault::Ambiguous) { Err(Error::Database("ambiguous".to_owned())) } else { Ok(Appended::Committed) }
                }
            }
        };
        if self.is_shared && fault != Some(Fault::Unheard) {
            self.wakeups.send_replace(());
        }
        async move { appended }.boxed()
    }

    fn head(&self) -> Answer<'_, Revision> {
        let head = self.lock().journal.last().map_or(0, |it| it.last);
        async move { Ok(head) }.boxed()
    }

    fn wakeups(&self) -> watch::Receiver<()> {
        self.wakeups.subscribe()
    }

    /// The journal is the state; there is nothing to fold into.
    fn fold<'a>(&'a self, _: Revision, to: Revision, _: &'a [Entry]) -> Answer<'a, Revision> {
        async move { Ok(to) }.boxed()
    }
}
