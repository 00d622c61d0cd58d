//! The tests that are more than a line of the table: functions that it calls by name (`call=…`).

mod jobs;
mod others;
mod pods;
mod quantities;

use super::Run;

/// The function for a name after `call=`.
pub fn find(name: &str) -> Option<Run> {
    [pods::CALLS, quantities::CALLS, jobs::CALLS, others::CALLS].into_iter().flatten().find(|it| it.0 == name).map(|it| it.1)
}
