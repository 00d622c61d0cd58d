//! Batches and entries of the journal, and their bytes.
