//! Tests at the boundary of the whole program.

mod cluster;
mod everyday;
mod fixtures;
mod kube_rs;
mod kubectl;
mod pods;
mod requests;
mod tidy;
