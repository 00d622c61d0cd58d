//! A work queue of keys: each key waits at most once and is worked on by one worker at a time; failures come back later and later.
//! Follows client-go `util/workqueue`.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    future::Future,
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::Result;
use crate::base::{Tasks, backoff::Backoff};

/// `DefaultTypedControllerRateLimiter`: 5 ms doubling to 1,000 s for each key.
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MOST: Duration = Duration::from_secs(1000);

/// So many failures in a row are told to people.
const WORTH_A_WARNING: u32 = 6;

/// Clones share the queue.
pub struct WorkQueue<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for WorkQueue<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<T> {
    state: Mutex<State<T>>,
    ready: Notify,
    delayed: Notify,
}

struct State<T> {
    waiting: VecDeque<T>,
    /// Waiting, or to be worked on again once its present work ends.
    dirty: HashSet<T>,
    working: HashSet<T>,
    retries: HashMap<T, Backoff>,
    later: BTreeMap<(Instant, u64), T>,
    /// Where each key stands in `later`: only its earliest due time counts.
    due: HashMap<T, (Instant, u64)>,
    sequence: u64,
}

impl<T> Default for WorkQueue<T> {
    fn default() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            retries: HashMap::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            sequence: 0,
        };
        Self { inner: Arc::new(Inner { state: Mutex::new(state), ready: Notify::new(), delayed: Notify::new() }) }
    }
}

impl<T: Clone + Eq + Hash + std::fmt::Debug + Send + 'static> WorkQueue<T> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(&self, key: T) {
        if self.inner.state.lock().add(key) {
            self.inner.ready.notify_one();
        }
    }

    pub fn add_all(&self, keys: impl IntoIterator<Item = T>) {
        keys.into_iter().for_each(|it| self.add(it));
    }

    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        if self.inner.state.lock().add_at(key, Instant::now() + delay) {
            self.inner.delayed.notify_one();
        }
    }

    pub fn add_rate_limited(&self, key: T) {
        let delay = self.inner.state.lock().retries.entry(key.clone()).or_insert(Backoff::new(RETRY_FIRST, RETRY_MOST)).next_delay();
        self.add_after(key, delay);
    }

    pub fn forget(&self, key: &T) {
        self.inner.state.lock().retries.remove(key);
    }

    pub fn failures(&self, key: &T) -> u32 {
        self.inner.state.lock().retries.get(key).map_or(0, Backoff::failures)
    }

    /// Works with `workers` tasks until `tasks` stop. `reconcile` says when the key is due again by itself, if it is.
    pub fn run<F, W>(&self, tasks: &Tasks, name: &'static str, workers: usize, reconcile: F)
    where
        F: Fn(T) -> W + Clone + Send + Sync + 'static,
        W: Future<Output = Result<Option<Duration>>> + Send + 'static,
        T: Sync,
    {
        let timer = self.clone();
        tasks.spawn_vital(name, async move { timer.release_delayed().await });
        for _ in 0..workers {
            let (queue, reconcile) = (self.clone(), reconcile.clone());
            tasks.spawn_vital(name, async move { queue.work(name, reconcile).await });
        }
    }

    async fn work<F, W>(&self, name: &'static str, reconcile: F)
    where
        F: Fn(T) -> W,
        W: Future<Output = Result<Option<Duration>>> + Send,
    {
        loop {
            let key = self.next().await;
            match reconcile(key.clone()).await {
                Ok(again) => {
                    self.forget(&key);
                    if let Some(delay) = again {
                        self.add_after(key.clone(), delay);
                    }
                }
                Err(error) => {
                    match self.failures(&key) {
                        WORTH_A_WARNING => tracing::warn!(controller = name, ?key, %error, "reconcile fails again and again"),
                        _ => tracing::debug!(controller = name, ?key, %error, "reconcile failed, trying again"),
                    }
                    self.add_rate_limited(key.clone());
                }
            }
            self.done(&key);
        }
    }

    /// The next key. The caller calls [`WorkQueue::done`] when it has dealt with it.
    pub async fn next(&self) -> T {
        loop {
            let ready = self.inner.ready.notified();
            if let Some(key) = self.take() {
                return key;
            }
            ready.await;
        }
    }

    fn take(&self) -> Option<T> {
        let mut state = self.inner.state.lock();
        let key = state.waiting.pop_front()?;
        state.dirty.remove(&key);
        state.working.insert(key.clone());
        if !state.waiting.is_empty() {
            self.inner.ready.notify_one();
        }
        Some(key)
    }

    pub fn done(&self, key: &T) {
        let mut state = self.inner.state.lock();
        state.working.remove(key);
        if state.dirty.contains(key) {
            state.waiting.push_back(key.clone());
            self.inner.ready.notify_one();
        }
    }

    async fn release_delayed(&self) {
        loop {
            let changed = self.inner.delayed.notified();
            match self.release_due() {
                Some(next) => tokio::select! { () = tokio::time::sleep_until(next) => (), () = changed => () },
                None => changed.await,
            }
        }
    }

    /// Adds what is due; returns when the next one is.
    fn release_due(&self) -> Option<Instant> {
        let now = Instant::now();
        loop {
            let mut state = self.inner.state.lock();
            let entry = state.later.first_entry()?;
            if entry.key().0 > now {
                return Some(entry.key().0);
            }
            let key = entry.remove();
            state.due.remove(&key);
            drop(state);
            self.add(key);
        }
    }
}

impl<T: Clone + Eq + Hash> State<T> {
    /// Whether a worker has something new to take.
    fn add(&mut self, key: T) -> bool {
        if !self.dirty.insert(key.clone()) || self.working.contains(&key) {
            return false;
        }
        self.waiting.push_back(key);
        true
    }

    /// Whether `key` is now due earlier than it was.
    fn add_at(&mut self, key: T, at: Instant) -> bool {
        if self.due.get(&key).is_some_and(|(due, _)| *due <= at) {
            return false;
        }
        self.sequence += 1;
        let place = (at, self.sequence);
        if let Some(earlier) = self.due.insert(key.clone(), place) {
            self.later.remove(&earlier);
        }
        self.later.insert(place, key);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_waits_once_and_never_runs_twice_at_a_time() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!((queue.next().await, queue.next().await), ("a", "b"));
        queue.add("a");
        assert!(queue.take().is_none(), "`a` is being worked on");
        queue.done(&"a");
        assert_eq!(queue.take(), Some("a"));
    }

    #[tokio::test]
    async fn failures_come_back_later_and_success_forgets() {
        let tasks = Tasks::new();
        let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let queue = WorkQueue::new();
        let inner = queue.clone();
        queue.run(&tasks, "test", 2, move |key: u32| {
            let (sender, failures) = (sender.clone(), inner.failures(&key));
            async move {
                sender.send(failures).unwrap();
                if failures < 3 { Err(super::super::Error::Invalid("no".into())) } else { Ok(None) }
            }
        });
        queue.add(7);
        for expected in 0..=3 {
            assert_eq!(seen.recv().await, Some(expected));
        }
        assert!(tasks.stop(Duration::from_secs(1)).await);
    }
}
