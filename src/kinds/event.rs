//! Events: `v1` and `events.k8s.io/v1` are two shapes of one stored object.
//! Source: `pkg/apis/events/v1/conversion.go`, `pkg/registry/core/event/strategy.go`.

use crate::meta::{Meta, Value};

/// The resource as stored, and how long an Event is kept after its last change (`--event-ttl`).
pub const RESOURCE: &str = "events";
pub const TTL: std::time::Duration = std::time::Duration::from_secs(3600);

/// The times of its changes that an Event tells.
pub fn times(event: &Value) -> impl Iterator<Item = &str> {
    let managed = event.items_at(&["metadata", "managedFields"]).iter().map(|it| it.text("time"));
    let own = [event.text_at(&["metadata", "creationTimestamp"]), event.text("lastTimestamp"), event.text_at(&["series", "lastObservedTime"])];
    managed.chain(own).filter(|it| !it.is_empty())
}

/// (core v1, events.k8s.io/v1)
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn rename(event: &mut Value, names: impl Iterator<Item = (&'static str, &'static str)>) {
    for (from, to) in names {
        if let Some(value) = event.remove_at(&[from]) {
            event[to] = value;
        }
    }
}

pub const FROM_CORE: fn(&mut Value) = |event| rename(event, NAMES.iter().copied());
pub const TO_CORE: fn(&mut Value) = |event| rename(event, NAMES.iter().map(|(core, new)| (*new, *core)));

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_two_shapes_turn_into_each_other() {
        let core = json!({"involvedObject": {"name": "p"}, "message": "m", "count": 2, "reason": "r"});
        let mut event = core.clone();
        FROM_CORE(&mut event);
        assert_eq!(event, json!({"regarding": {"name": "p"}, "note": "m", "deprecatedCount": 2, "reason": "r"}));
        TO_CORE(&mut event);
        assert_eq!(event, core);
    }
}
