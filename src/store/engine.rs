//! What a database must do for the store: keep a journal with conditional append, and a folded state.

use futures::future::BoxFuture;
use tokio::sync::watch;

use super::{
    Revision,
    journal::{Batch, Entry},
};

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The database refused or did not answer; whether the last append is there is not known.
    #[error("{0}")]
    Database(String),
    /// What was read cannot be what was written.
    #[error("the journal is damaged: {0}")]
    Damaged(String),
    /// Another process has the file.
    #[error("{0} is in use by another process")]
    InUse(String),
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    Committed,
    /// Another writer appended at this revision first; nothing was written.
    Behind,
}

/// The state to start from: the folded objects, and the batches after them.
#[derive(Debug, Default)]
pub struct Loaded {
    pub revision: Revision,
    pub objects: Vec<Entry>,
    pub batches: Vec<Batch>,
}

pub type Answer<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// A journal: an append-only chain of batches, each starting where the one before ends.
pub trait Engine: Send + Sync {
    fn name(&self) -> &'static str;

    /// Whether this process is the only one that appends, so that its own state is always the newest.
    fn is_exclusive(&self) -> bool;

    fn load(&self) -> Answer<'_, Loaded>;

    /// The batches after `revision`, in order.
    fn tail(&self, revision: Revision) -> Answer<'_, Vec<Batch>>;

    /// Appends `batch` if the journal ends at `batch.prev`. An error leaves it open whether the batch is there;
    /// its id tells.
    fn append<'a>(&'a self, batch: &'a Batch) -> Answer<'a, Appended>;

    /// The last revision of the journal.
    fn head(&self) -> Answer<'_, Revision>;

    /// Wakes when another process may have appended.
    fn wakeups(&self) -> watch::Receiver<()>;

    /// Brings the folded state from `from` to `to`: `changed` holds the last entry of each key that changed between.
    fn fold<'a>(&'a self, from: Revision, to: Revision, changed: &'a [Entry]) -> Answer<'a, ()>;
}
