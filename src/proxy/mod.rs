//! The service proxy: Services and their ready endpoints into nftables, in the kernel of the node.
//!
//! `plan.rs` decides which front reaches which backends; `rules.rs` renders that into a constant ruleset with maps and finds
//! the difference to what is loaded; `nftables.rs` speaks to the kernel; `feed.rs` follows the informers.

pub mod feed;
pub mod nftables;
pub mod plan;
pub mod rules;
