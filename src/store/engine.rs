//! What a database must do for the store: keep a journal with conditional append, and a folded state.

use super::Revision;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Database(String),
    #[error("{0}")]
    Corrupt(String),
}

/// See `journal.rs` for batches and entries.
pub trait Engine: Send + Sync {
    fn name(&self) -> &'static str;
    fn head(&self) -> Revision;
}
