//! Events end an hour after their last change, as ordinary deletions that watchers see (`--event-ttl`, a lease in etcd). Every server looks
//! for them; of several one is first, and the others find nothing left.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::Server;
use crate::{
    base::clock,
    kinds::event,
    meta::Value,
    store::{Revision, Stored, Transaction},
};

/// How often expired Events are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Deletions at the same time: a group of the writer.
const TOGETHER: usize = 256;

/// Deletes what has expired, until the server stops.
pub async fn follow(server: Arc<Server>) {
    let mut past = VecDeque::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        past.push_back((Instant::now(), server.store.revision()));
        // The revision of a TTL ago: what was not written since has expired, whatever it says.
        let mut old = None;
        while past.front().is_some_and(|(at, _)| at.elapsed() >= event::TTL) {
            old = past.pop_front().map(|(_, revision)| revision);
        }
        expire(&server, old, clock::now()).await;
    }
}

async fn expire(server: &Server, old: Option<Revision>, now: Timestamp) {
    let snapshot = server.store.snapshot();
    let expired: Vec<&Arc<Stored>> = snapshot.list(event::RESOURCE, None, None).filter(|it| is_expired(it, old, now)).collect();
    for some in expired.chunks(TOGETHER) {
        let deletions = some.iter().map(|it| server.store.submit(Transaction { writes: vec![it.removal()] }));
        futures::future::join_all(deletions).await;
    }
}

fn is_expired(stored: &Stored, old: Option<Revision>, now: Timestamp) -> bool {
    if old.is_some_and(|old| stored.revision <= old) {
        return true;
    }
    let event: Value = stored.value();
    let last = event::times(&event).filter_map(|it| it.parse::<Timestamp>().ok()).max();
    last.is_some_and(|it| now.duration_since(it).as_secs() >= event::TTL.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::store::{Header, Key};

    #[test]
    fn events_end_an_hour_after_their_last_change() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let check = |event: Value, old: Option<Revision>, expected: bool| {
            let json = Bytes::from(event.to_string());
            let stored = Stored { key: Key::new("events", "ns", "e"), revision: 5, json: json.into(), header: Header::default(), forms: Default::default() };
            assert_eq!(is_expired(&stored, old, now), expected, "{event}");
        };
        let made = |at: &str| json!({"metadata": {"creationTimestamp": at}});
        check(made("2026-01-01T11:00:01Z"), None, false);
        check(made("2026-01-01T11:00:00Z"), None, true);
        check(made("2026-01-01T11:59:00Z"), Some(5), true);
        check(made("2026-01-01T11:59:00Z"), Some(4), false);
        check(json!({"metadata": {"creationTimestamp": "2026-01-01T09:00:00Z"}, "lastTimestamp": "2026-01-01T11:30:00Z"}), None, false);
        check(json!({"metadata": {"creationTimestamp": "2026-01-01T09:00:00Z"}, "series": {"lastObservedTime": "2026-01-01T11:30:00.123456Z"}}), None, false);
        check(json!({}), None, false);
    }
}
