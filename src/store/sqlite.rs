//! The journal in a SQLite file: one machine, one process.
