//! The journal in memory: for tests, and `up --store memory`.
