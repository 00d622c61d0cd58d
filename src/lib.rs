//! howdah: Kubernetes on Postgres, in one Rust binary.
//!
//! The modules are floors; each uses only those above it in this list. `tests/it/tidy.rs` enforces it.
//! Start with ARCHITECTURE.md, then `kinds/table.rs`, then `api/verbs.rs`.

/// JSON trees are many small pieces, made on one thread and freed on another: the C library's allocator took a quarter of a write.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
