//! The node: what makes pods real on one machine.

mod admission;
pub mod agent;
pub mod certificates;
mod container;
mod ending;
mod environment;
mod eviction;
mod handlers;
pub mod http;
pub mod images;
pub mod links;
pub mod plan;
mod probes;
mod pulls;
mod register;
mod registry;
pub mod routes;
pub mod requirements;
pub mod runtime;
mod sandbox;
pub mod server;
pub mod simulated;
mod volumes;
