//! One server's way to the database, and what goes wrong on it.

use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use tokio::sync::watch;

use crate::{
    base::Tasks,
    store::{
        Revision,
        engine::{Answer, Appended, Engine, Error, Loaded},
        journal::{Batch, Entry},
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next append fails and nothing is written.
    Lost,
    /// The next append is written, but its answer is an error.
    Ambiguous,
    /// The server dies when it appends next, before that is written.
    Dead,
    /// The server dies when it appends next, and that is written.
    DeadAfter,
    /// The next wake-up does not reach the server.
    Deaf,
}

/// An engine as one server has it.
pub struct Faulty {
    name: &'static str,
    is_exclusive: bool,
    /// Gone with the server's death; who waits for an answer then waits for ever.
    engine: Mutex<Option<Arc<dyn Engine>>>,
    faults: Mutex<Vec<Fault>>,
    wakeups: watch::Sender<()>,
    pub died: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faulty {
    pub fn new(engine: Arc<dyn Engine>, tasks: &Tasks) -> Arc<Self> {
        let mut heard = engine.wakeups();
        let faulty = Arc::new(Self {
            name: engine.name(),
            is_exclusive: engine.is_exclusive(),
            engine: Mutex::new(Some(engine)),
            faults: Mutex::default(),
            wakeups: watch::Sender::default(),
            died: watch::Sender::default(),
        });
        let server = faulty.clone();
        tasks.spawn("wake-ups", async move {
            while heard.changed().await.is_ok() {
                if server.take(|it| it == Fault::Deaf).is_none() {
                    server.wakeups.send_replace(());
                }
            }
        });
        faulty
    }

    pub fn fail(&self, fault: Fault) {
        lock(&self.faults).push(fault);
    }

    /// The first fault of a sort, once.
    fn take(&self, is_it: impl Fn(Fault) -> bool) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let at = faults.iter().position(|it| is_it(*it))?;
        Some(faults.remove(at))
    }

    pub fn die(&self) {
        *lock(&self.engine) = None;
        self.died.send_replace(true);
    }

    async fn engine(&self) -> Arc<dyn Engine> {
        let engine = lock(&self.engine).clone();
        match engine {
            Some(engine) => engine,
            None => std::future::pending().await,
        }
    }
}

impl Engine for Faulty {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_exclusive(&self) -> bool {
        self.is_exclusive
    }

    fn load(&self) -> Answer<'_, Loaded> {
        async { self.engine().await.load().await }.boxed()
    }

    fn tail(&self, revision: Revision) -> Answer<'_, Vec<Batch>> {
        async move { self.engine().await.tail(revision).await }.boxed()
    }

    fn append<'a>(&'a self, batch: &'a Batch) -> Answer<'a, Appended> {
        async move {
            let engine = self.engine().await;
            let fault = self.take(|it| it != Fault::Deaf);
            if matches!(fault, Some(Fault::Lost | Fault::Dead)) {
                engine.release().await?;
            }
            if fault == Some(Fault::Dead) {
                self.die();
            }
            if fault == Some(Fault::Lost) {
                return Err(Error::Database("lost".to_owned()));
            }
            let appended = self.engine().await.append(batch).await;
            match fault {
                Some(Fault::Ambiguous) => return Err(Error::Database("ambiguous".to_owned())),
                Some(Fault::DeadAfter) => self.die(),
                _ => return appended,
            }
            std::future::pending().await
        }
        .boxed()
    }

    fn claim(&self, revision: Revision) -> Answer<'_, Vec<Batch>> {
        async move { self.engine().await.claim(revision).await }.boxed()
    }

    fn release(&self) -> Answer<'_, ()> {
        async { self.engine().await.release().await }.boxed()
    }

    fn head(&self) -> Answer<'_, Revision> {
        async { self.engine().await.head().await }.boxed()
    }

    fn wakeups(&self) -> watch::Receiver<()> {
        self.wakeups.subscribe()
    }

    fn fold<'a>(&'a self, from: Revision, to: Revision, changed: &'a [Entry]) -> Answer<'a, Revision> {
        async move { self.engine().await.fold(from, to, changed).await }.boxed()
    }
}
