//! The tests that look at more than one field: functions that the table calls by name (`call=…`).

mod containers;
mod definitions;
mod devices;
mod jobs;
mod others;
mod pods;
mod quantities;
mod scheduling;
mod services;
mod trust;
mod volumes;
mod workloads;

use super::Run;

/// The function for a name after `call=`.
pub fn find(name: &str) -> Option<Run> {
    [pods::CALLS, definitions::CALLS, containers::CALLS, quantities::CALLS, scheduling::CALLS, volumes::CALLS, workloads::CALLS, others::CALLS, services::CALLS, devices::CALLS].into_iter().flatten().find(|it| it.0 == name).map(|it| it.1)
}
