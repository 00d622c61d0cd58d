//! Tests at the boundary of the whole program.

mod tidy;
