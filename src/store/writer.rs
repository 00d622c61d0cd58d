//! The writer: the one place where revisions are made.
