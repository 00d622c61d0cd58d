//! The node: what makes pods real on one machine.

pub mod agent;
pub mod images;
pub mod links;
pub mod plan;
pub mod runtime;
pub mod server;
pub mod simulated;
pub mod volumes;
