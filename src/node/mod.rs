//! The node: what makes pods real on one machine.

mod admission;
pub mod agent;
mod container;
mod ending;
mod environment;
mod eviction;
mod handlers;
mod http;
pub mod images;
pub mod links;
pub mod plan;
mod probes;
mod pulls;
mod register;
mod registry;
pub mod runtime;
mod sandbox;
pub mod server;
pub mod simulated;
mod volumes;
