//! howdah: Kubernetes on Postgres, in one Rust binary.
//!
//! The modules are floors; each uses only those above it in this list. `tests/it/tidy.rs` enforces it.
//! Start with ARCHITECTURE.md, then `kinds/table.rs`, then `api/verbs.rs`.

pub mod base;

pub mod meta;

pub mod schema;

pub mod kinds;

pub mod store;

pub mod api;

pub mod client;

pub mod controllers;
pub mod dns;
pub mod proxy;
pub mod scheduler;

pub mod node;

pub mod process;
pub mod cli;
