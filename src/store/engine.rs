//! What a database must do for the store: keep a journal with conditional append, and a folded state.

use futures::{FutureExt, future::BoxFuture};
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
    /// The database cannot be used as it is, and what would help.
    #[error("{0}")]
    Unfit(String),
    /// A newer howdah has taken away what this one needs.
    #[error("{0}")]
    Outdated(String),
    /// The journal no longer continues what this process has seen: it lagged too long, or the database was restored or failed
    /// over with a loss. The state must be loaded anew.
    #[error("the journal does not continue revision {0}")]
    Broken(Revision),
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

/// The state to start from: the folded objects, and the batches after them and some before, a whole chain, from which the recent
/// events are told again.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Of `objects`.
    pub revision: Revision,
    pub objects: Vec<Entry>,
    pub batches: Vec<Batch>,
}

/// Batches that a start reads for their events alone: as old as a ring keeps them, twice, so that what was before each of them is
/// known too; and at most this many bytes and rows, so that a start takes time by the state and not by its history.
pub const RECENT_SECONDS: i64 = 600;
pub const RECENT_BYTES: i64 = 16 << 20;
pub const RECENT_ROWS: i64 = 20_000;

/// Seconds that folded batches are kept, for servers and watchers that lag.
pub const RETENTION_SECONDS: i64 = 3600;
/// Batches trimmed at once; more than are written in a second.
pub const TRIM_ROWS: i64 = 8192;

/// Names of migrations that take away what older programs need begin so.
pub const CONTRACTION: &str = "contract";

/// Whether a program that knows `own` migrations can use tables on which these were carried out (number and name): a newer one may have added to
/// them, but not taken away.
pub fn check_migrations(own: usize, carried_out: impl IntoIterator<Item = (i64, String)>) -> Result<(), Error> {
    let is_too_new = |(number, name): &(i64, String)| *number > own as i64 && name.starts_with(CONTRACTION);
    carried_out.into_iter().find(is_too_new).map_or(Ok(()), |(number, name)| {
        let version = env!("CARGO_PKG_VERSION");
        Err(Error::Outdated(format!("a newer howdah has taken away what this one ({version}) needs (migration {number}, \"{name}\"); run the newer one")))
    })
}

pub type Answer<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// A journal: an append-only chain of batches, each starting where the one before ends.
pub trait Engine: Send + Sync {
    fn name(&self) -> &'static str;

    /// Whether this process is the only one that appends, so that its own state is always the newest.
    fn is_exclusive(&self) -> bool;

    /// The whole state. Where the journal has lost what this process has seen, or was moved, a jump is appended first.
    fn load(&self) -> Answer<'_, Loaded>;

    /// The batches after `revision`, in order.
    fn tail(&self, revision: Revision) -> Answer<'_, Vec<Batch>>;

    /// Appends `batch` if the journal ends at `batch.prev`. An error leaves it open whether the batch is there;
    /// its id tells.
    fn append<'a>(&'a self, batch: &'a Batch) -> Answer<'a, Appended>;

    /// Like [`Engine::tail`], and keeps others from appending until the next [`Engine::append`] or [`Engine::release`]: who was
    /// behind once is not behind again.
    fn claim(&self, revision: Revision) -> Answer<'_, Vec<Batch>> {
        self.tail(revision)
    }

    /// Gives up what [`Engine::claim`] took.
    fn release(&self) -> Answer<'_, ()> {
        async { Ok(()) }.boxed()
    }

    /// The last revision of the journal, as of a moment after the call.
    fn head(&self) -> Answer<'_, Revision>;

    /// Wakes when another process may have appended.
    fn wakeups(&self) -> watch::Receiver<()>;

    /// Brings the folded state to `to`: `changed` holds the last entry of each key that changed since `from`. Returns how far it is
    /// folded, by this process or another.
    fn fold<'a>(&'a self, from: Revision, to: Revision, changed: &'a [Entry]) -> Answer<'a, Revision>;
}
