//! The node: what makes pods real on one machine.

pub mod server;
pub mod simulated;
