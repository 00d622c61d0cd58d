//! Tests at the boundary of the whole program.

mod cluster;
mod kubectl;
mod pods;
mod requests;
mod tidy;
