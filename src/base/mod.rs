//! What every floor stands on: tasks and their shutdown, back-off, the wall clock, netlink.

pub mod backoff;
pub mod clock;
pub mod netlink;
pub mod tasks;

pub use tasks::Tasks;
