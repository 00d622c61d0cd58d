//! What every floor stands on: tasks and their shutdown, back-off, the wall clock, netlink, certificates.

pub mod backoff;
pub mod clock;
pub mod netlink;
pub mod pki;
pub mod tasks;

pub use tasks::Tasks;
