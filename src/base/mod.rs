//! What every floor stands on: tasks and their shutdown, back-off, the wall clock.

pub mod backoff;
pub mod clock;
pub mod tasks;

pub use tasks::Tasks;
