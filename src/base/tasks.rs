//! The one place that spawns. Every task has a name and an owner, and its death is noticed.

use std::{future::Future, panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A group of tasks that stop together. Clones share the group.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that stops when this one does, and that can be stopped by itself.
    pub fn child(&self) -> Self {
        Self { tracker: TaskTracker::new(), cancel: self.cancel.child_token() }
    }

    /// Runs `work` until it ends or the group stops, whichever is first. A panic is logged under `name`.
    pub fn spawn<F>(&self, name: &'static str, work: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => (),
                result = AssertUnwindSafe(work).catch_unwind() => report(name, result),
            }
        })
    }

    /// Like [`Tasks::spawn`], for work without which the group is useless: its end stops the group.
    pub fn spawn_vital<F>(&self, name: &'static str, work: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let group = self.cancel.clone();
        self.spawn(name, async move {
            let result = AssertUnwindSafe(work).catch_unwind().await;
            report(name, result);
            if !group.is_cancelled() {
                tracing::error!(task = name, "a vital task ended; stopping");
                group.cancel();
            }
        })
    }

    /// Runs `work` to its end even while the group stops: it watches [`Tasks::stopping`] by itself.
    pub fn spawn_finishing<F>(&self, name: &'static str, work: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(async move { report(name, AssertUnwindSafe(work).catch_unwind().await) })
    }

    /// Completes when the group begins to stop.
    pub async fn stopping(&self) {
        self.cancel.cancelled().await;
    }

    pub fn is_stopping(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Asks every task to stop, without waiting.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Asks every task to stop and waits for them, at most `grace`. Returns whether all have ended.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.cancel.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

/// Runs `work`, which blocks, on a thread of its own pool. A panic in it becomes an error.
pub async fn blocking<T, F>(work: F) -> std::io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)
}

/// Runs `work` on a new thread that ends with it, and waits: for what changes the thread itself, such as its namespaces.
pub fn on_own_thread<T, F>(work: F) -> std::io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let thread = std::thread::Builder::new().spawn(work)?;
    thread.join().map_err(|_| std::io::Error::other("the thread panicked"))
}

fn report(name: &'static str, result: std::thread::Result<()>) {
    if let Err(panic) = result {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(task = name, panic = text.unwrap_or("(no text)"), "a task panicked");
    }
}
