//! Tests at the boundary of the whole program.

mod cluster;
mod fixtures;
mod kubectl;
mod pods;
mod requests;
mod tidy;
