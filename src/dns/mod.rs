//! Cluster DNS: Services and their endpoints by name (specification: kubernetes/dns `docs/specification.md`, version 1.1.0).
//!
//! `zone.rs` decides (a name in, records out); `server.rs` speaks UDP and TCP and asks the host's resolvers for what is not the
//! cluster's; `feed.rs` keeps the zone as the informers' caches are.

pub mod feed;
pub mod server;
pub mod zone;
