//! What is made of stored objects and asked for by every request, such as the index of roles: kept until one of the objects changes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwap;

use crate::store::{Snapshot, Stamp};

/// A value that follows from the objects of some resources; at first that of none.
#[derive(Default)]
pub struct Derived<T>(ArcSwap<Known<T>>);

/// The value as of `stamp`, which was still so at `revision`.
#[derive(Default)]
struct Known<T> {
    revision: AtomicU64,
    stamp: Stamp,
    value: Arc<T>,
}

impl<T> Derived<T> {
    /// The value that was made last.
    pub fn last(&self) -> Arc<T> {
        self.0.load().value.clone()
    }

    /// The value for a snapshot; where the objects are others, `make` makes it anew, after the one before.
    pub fn get(&self, snapshot: &Snapshot, resources: &[&str], make: impl FnOnce(&T) -> T) -> Arc<T> {
        let (known, revision) = (self.0.load(), snapshot.revision());
        if known.revision.load(Ordering::Relaxed) == revision {
            return known.value.clone();
        }
        let stamp = snapshot.stamp(resources);
        if known.stamp == stamp {
            known.revision.store(revision, Ordering::Relaxed);
            return known.value.clone();
        }
        let value = Arc::new(make(&known.value));
        self.0.store(Arc::new(Known { revision: revision.into(), stamp, value: value.clone() }));
        value
    }
}
